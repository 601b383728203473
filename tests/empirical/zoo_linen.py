"""Flax modules of the zoo."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.empirical.models import CNN, MLP, random_loss
from tests.empirical.zoo import BIAS, GAIN, OTHER, Case, case, linen, normal

NORMS = {r".*Norm_\d+/scale": GAIN, r".*Norm_\d+/bias": BIAS}


class Submodules(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = functools.partial(nn.Dense, 256, use_bias=False)
        return layer(name="lin1")(jnp.tanh(layer(name="lin0")(x)))


class OriginalNet(nn.Module):
    """The net that the original package is tested with."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(64, name="lin0")(x))
        x = nn.relu(nn.Dense(128, name="lin1")(x))
        x = nn.relu(nn.Dense(256, use_bias=False, name="lin2")(x))
        x = nn.relu(Submodules(name="smdm")(x))
        x = nn.relu(nn.Dense(128, use_bias=False, name="lin3")(x))
        x = nn.relu(nn.Dense(32, use_bias=False, name="lin4")(x))
        return nn.softmax(nn.Dense(2, use_bias=False, name="lin5")(x))


@case("original_test_net")
def original_net() -> Case:
    def loss(probabilities, key):
        labels = jax.random.randint(key, (len(probabilities), 1), 0, 2)
        return -jnp.log(jnp.take_along_axis(probabilities, labels, -1)).mean()

    return linen(OriginalNet(), normal(64, 20), loss=loss)


@case("mlp_4_relu", 4, nn.relu)
@case("mlp_64_relu", 64, nn.relu)
@case("mlp_16_tanh", 16, jnp.tanh)
@case("mlp_64_tanh", 64, jnp.tanh, slow=True)
@case("mlp_16_gelu", 16, nn.gelu)
@case("mlp_64_gelu", 64, nn.gelu, slow=True)
def mlp(depth: int, activation: Any) -> Case:
    """The size of a deep net's output differs much from input to input: it takes many of them."""
    samples = 32 if depth == 64 and activation is nn.gelu else 8
    net = MLP(depth, 32, activation)
    return linen(net, normal(512, 32), options={"samples": samples})


@case("cnn")
def cnn() -> Case:
    return linen(CNN(), normal(32, 8, 8, 1))


# -- transformers -----------------------------------------------------------------------------


class Block(nn.Module):
    width: int = 32

    @nn.compact
    def __call__(self, x, _=None):
        x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
        y = nn.gelu(nn.Dense(2 * self.width)(nn.LayerNorm()(x)))
        return x + nn.Dense(self.width)(y), None


class Transformer(nn.Module):
    form: str
    depth: int = 12
    width: int = 32

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(50, self.width)
        table = self.param("position_table", nn.initializers.normal(0.02), (8, self.width))
        x = embed(tokens) + table[None]
        x = self.blocks(x)
        x = nn.LayerNorm()(x)
        return embed.attend(x) if self.form == "scan_tied" else nn.Dense(50)(x)

    def blocks(self, x):
        if self.form == "unrolled":
            for _ in range(self.depth):
                x, _ = Block()(x)
            return x
        block = nn.remat(Block, prevent_cse=False) if self.form == "scan_remat" else Block
        axes = {"params": 0, "intermediates": 0}
        stack = nn.scan(block, axes, split_rngs={"params": True}, length=self.depth)
        return stack(name="blocks")(x, None)[0]


def tokens(key: jax.Array) -> jax.Array:
    return jax.random.randint(key, (16, 8), 0, 50)


@case("transformer_unrolled", "unrolled")
@case("transformer_scan", "scan")
@case("transformer_scan_remat", "scan_remat")
@case("transformer_scan_tied", "scan_tied")
def transformer(form: str) -> Case:
    slices = {} if form == "unrolled" else {"params/blocks/.*": 1}
    return linen(
        Transformer(form),
        tokens,
        scans=slices,
        own=slices,
        shared=("params/Embed_0/embedding",) if form == "scan_tied" else (),
        not_tuned={**NORMS, "params/position_table": BIAS},
        null=(".*/key/bias",),
    )


@case("attention_key_bias")
def key_bias() -> Case:
    """A shift of every key by the same vector moves all logits of a query alike."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.MultiHeadDotProductAttention(2)(x)

    return linen(Net(), normal(16, 8, 32), null=(".*/key/bias",))


# -- normalization and statistics -------------------------------------------------------------


class ResNet(nn.Module):
    blocks: tuple[tuple[int, int], ...] = ((16, 1), (32, 2))
    train: bool = True

    @nn.compact
    def __call__(self, x):
        norm = functools.partial(nn.BatchNorm, use_running_average=not self.train)
        conv = functools.partial(nn.Conv, kernel_size=(3, 3), use_bias=False)
        x = conv(16)(x)
        for width, stride in self.blocks:
            y = nn.relu(norm()(x))
            y = conv(width, strides=stride)(y)
            y = conv(width)(nn.relu(norm()(y)))
            x = nn.Conv(width, (1, 1), strides=stride)(x) if x.shape != y.shape else x
            x = x + y
        return nn.Dense(10)(nn.relu(norm()(x)).mean((1, 2)))


TAKEN_AWAY = (r"params/Conv_\d+/bias",)  # by the mean of the norm that follows


@case("resnet_with_batch_statistics")
def resnet() -> Case:
    def apply(variables, x):
        return ResNet().apply(variables, x, mutable=["batch_stats"])[0]

    return linen(
        ResNet(),
        normal(16, 8, 8, 3),
        mutable=["batch_stats"],
        apply_fn=apply,
        not_tuned=NORMS,
        perhaps_null=TAKEN_AWAY,
    )


@case("resnet_with_running_statistics")
def resnet_for_evaluation() -> Case:
    return linen(ResNet(((32, 2),), train=False), normal(16, 8, 8, 3), not_tuned=NORMS)


@case("weight_norm")
def weight_norm() -> Case:
    """The kernel's size cancels: the gain beside it carries the layer's scale."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(3):
                x = nn.relu(nn.WeightNorm(nn.Dense(32))(x))
            return nn.WeightNorm(nn.Dense(4))(x)

    return linen(Net(), normal(64, 16), constants={".*/bias": 0.2})


# -- dropout ----------------------------------------------------------------------------------


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x = nn.Dropout(0.3, deterministic=False)(nn.relu(nn.Dense(32)(x)))
        return nn.Dense(4)(x)


def dropout_rngs(key: jax.Array) -> Mapping[str, Any]:
    return {"rngs": {"dropout": jax.random.fold_in(key, 7)}}


@case("dropout_by_partial")
def dropout_by_partial() -> Case:
    fixed = dropout_rngs(jax.random.key(5))
    apply = functools.partial(Dropped().apply, **fixed)
    return linen(Dropped(), normal(64, 32), apply_fn=apply, keywords=lambda key: fixed)


@case("dropout_by_lambda")
def dropout_by_lambda() -> Case:
    """The dropout key is one of the inputs, so that every sample drops other units."""
    found = linen(Dropped(), normal(64, 32))

    def captured(variables, x, key):
        return found.captured(variables, x, rngs={"dropout": key})

    return Case(
        params=found.params,
        captured=captured,
        draw=lambda key: (normal(64, 32)(key), jax.random.fold_in(key, 7)),
        apply_fn=lambda variables, x, key: Dropped().apply(variables, x, rngs={"dropout": key}),
    )


@case("dropout_by_rngs")
def dropout_by_rngs() -> Case:
    return linen(Dropped(), normal(64, 32), options={"rngs": ("dropout",)}, keywords=dropout_rngs)


@case("resnet_by_has_aux")
def resnet_by_has_aux() -> Case:
    net = ResNet(((32, 2),))
    return linen(
        net,
        normal(16, 8, 8, 3),
        mutable=["batch_stats"],
        apply_fn=functools.partial(net.apply, mutable=["batch_stats"]),
        not_tuned=NORMS,
        perhaps_null=TAKEN_AWAY,
        options={"has_aux": True},
    )


# -- recurrence and shared layers -------------------------------------------------------------


class Recurrent(nn.Module):
    cell: Any

    @nn.compact
    def __call__(self, x):
        hidden = nn.RNN(self.cell(32, name="cell"), variable_axes={"intermediates": 0})(x)
        return nn.Dense(4)(hidden[:, -1])


START = r"params/cell/h[fgio]/(kernel|bias)\[0\]"  # the hidden state starts at 0


@case("lstm")
def lstm() -> Case:
    weights = "params/cell/.*kernel"
    return linen(
        Recurrent(nn.LSTMCell),
        normal(32, 6, 16),
        scans={weights: 1},
        shared=(weights,),
        # the forget gate has nothing to forget at first
        perhaps_null=(START, r"params/cell/if/kernel\[0\]"),
    )


@case("lstm_with_fused_kernels")
def fused_lstm() -> Case:
    """Four kernels are joined before the product, and no layer is called that could be captured.

    ``fused_recurrence`` of the plain functions is the same with captures.
    """
    kernels = "params/cell/[hi][fgio]/kernel"
    return linen(
        Recurrent(nn.OptimizedLSTMCell),
        normal(32, 6, 16),
        shared=(kernels,),
        unseen=(kernels,),
        perhaps_not_tuned={"params/cell/h[fgio]/bias": BIAS},
        perhaps_null=(START,),
    )


@case("shared_dense")
def shared_dense() -> Case:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Dense(32)
            for _ in range(5):
                x = jnp.tanh(layer(x))
            return nn.Dense(4)(x)

    return linen(
        Net(),
        normal(64, 32),
        constants={"params/Dense_0/bias": 0.2},
        shared=("params/Dense_0/kernel",),
        perhaps_not_tuned={"params/Dense_0/bias": BIAS},
    )


@case("siamese_towers")
def siamese() -> Case:
    """Two inputs of very different size through one layer, then another of its own."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, y):
            layer = nn.Dense(32)
            return nn.Dense(4)(nn.relu(layer(x)) * nn.relu(layer(y)))

    return linen(
        Net(),
        lambda key: (normal(64, 32)(key), 100 * normal(64, 32)(jax.random.fold_in(key, 1))),
        shared=("params/Dense_0/kernel",),
        perhaps_not_tuned={"params/Dense_0/bias": BIAS},
    )


# -- nothing passes ---------------------------------------------------------------------------


@case("zero_initialized_head")
def zero_head() -> Case:
    """No gradient reaches what stands before the head."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(3):
                x = nn.relu(nn.Dense(32)(x))
            return nn.Dense(4)(x)

    return linen(
        Net(),
        normal(64, 32),
        constants={"params/Dense_3/kernel": 0.0},
        null=("params/Dense_3/kernel",),
        perhaps_null=("params/Dense_[0-2]/.*",),
    )


@case("rezero_gate")
def rezero() -> Case:
    """Each branch is multiplied by a gate that starts at 0, and has no gradient until it opens."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(32)(x)
            for i in range(3):
                y = nn.Dense(32)(nn.relu(nn.Dense(32)(x)))
                x = x + self.param(f"gate_{i}", nn.initializers.zeros, ()) * y
            return nn.Dense(4)(x)

    return linen(
        Net(),
        normal(64, 32),
        null=(r"params/gate_\d",),
        perhaps_null=("params/Dense_[1-6]/.*",),
        not_tuned={r"params/gate_\d": GAIN},
    )


@case("dead_relu")
def dead_relu() -> Case:
    """A bias of -100 switches every unit off: the layer behind produces nothing."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.relu(nn.Dense(32)(x))
            return nn.Dense(4)(x) + nn.Dense(4)(nn.relu(nn.Dense(32)(y)))

    return linen(
        Net(),
        normal(64, 32),
        constants={"params/Dense_0/bias": -100.0},
        null=("params/Dense_[23]/kernel",),
        perhaps_null=("params/Dense_[023]/.*",),
    )


@case("parameters_that_are_not_weights")
def odd_parameters() -> Case:
    """A table that is added, the slope of PReLU, an exponent, a layer that is not used."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = x + self.param("table", nn.initializers.normal(1.0), (1, 32))
            x = nn.PReLU()(nn.Dense(32)(x))
            power = self.param("power", nn.initializers.zeros, ())
            x = jnp.abs(x) ** (1 + jnp.square(power))
            nn.Dense(7, name="forgotten")(x)
            return nn.Dense(4)(x)

    gain = {"params/PReLU_0/negative_slope": GAIN}
    return linen(
        Net(),
        normal(64, 32),
        constants=dict.fromkeys(gain, 0.01),
        not_tuned={"params/table": BIAS, "params/power": OTHER, **gain},
        perhaps_null=("params/power",),
        unused=("params/forgotten/(kernel|bias)",),
    )


# -- half precision ---------------------------------------------------------------------------


class Half(nn.Module):
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x):
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        for _ in range(5):
            x = nn.relu(nn.Dense(32, **dtypes)(x))
        return nn.Dense(4, **dtypes)(x)


@case("bfloat16", jnp.bfloat16, jnp.bfloat16)
@case("float16", jnp.float16, jnp.float16)
@case("bfloat16_with_float32_parameters", jnp.bfloat16, jnp.float32)
def half(dtype: Any, param_dtype: Any) -> Case:
    def loss(output, key):
        return random_loss(output.astype(jnp.float32), key)

    return linen(Half(dtype, param_dtype), normal(64, 32), loss=loss)
