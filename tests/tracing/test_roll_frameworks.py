"""Networks as each framework writes them, rolled and compared to themselves."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jinit.tracing import roll, trace
from tests.tracing.rolling import check, lengths, size

DEPTH, WIDTH, HEADS, RATE = 5, 8, 2, 0.1
X = jax.random.normal(jax.random.key(1), (2, 5, WIDTH))
KEY = jax.random.key(3)

pytestmark = pytest.mark.usefixtures("allow_rank_promotion")


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        attention = nn.MultiHeadDotProductAttention(HEADS, dropout_rate=RATE, deterministic=False)
        h = attention(nn.LayerNorm()(x), mask=nn.make_causal_mask(x[..., 0]))
        x = x + nn.Dropout(RATE, deterministic=False)(h)
        h = nn.Dense(WIDTH)(nn.gelu(nn.Dense(2 * WIDTH)(nn.LayerNorm()(x))))
        return x + nn.Dropout(RATE, deterministic=False)(h)


class Transformer(nn.Module):
    depth: int = DEPTH
    block: type = Block

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(11, WIDTH)(tokens) + self.param("place", nn.initializers.normal(), (5, WIDTH))
        for _ in range(self.depth):
            x = self.block()(x)
        return nn.Dense(11)(nn.LayerNorm()(x))


TOKENS = jnp.array([[1, 2, 3, 4, 5], [10, 0, 7, 7, 1]])


def linen(depth, block=Block):
    model = Transformer(depth, block)

    def init():
        return model.init({"params": KEY, "dropout": KEY}, TOKENS)

    def apply(variables, tokens, key):
        return model.apply(variables, tokens, rngs={"dropout": key})

    return init, apply


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("block", "depth", "name"),
    [(Block, DEPTH, "Block"), (Block, 12, "Block"), (nn.remat(Block), DEPTH, "CheckpointBlock")],
)
def test_a_linen_transformer(block, depth, name):
    init, apply = linen(depth, block)
    variables = jax.jit(init)()
    rolled = check(apply, variables, TOKENS, KEY, least_saved=24)
    assert lengths(rolled) == [depth]
    of_a_block = len(jax.tree.leaves(variables["params"][f"{name}_0"]))
    assert [len(group) for group in rolled.groups].count(depth) == of_a_block


@pytest.mark.thorough
def test_its_program_does_not_grow_with_depth():
    def rolled(depth):
        init, apply = linen(depth)
        variables = jax.eval_shape(init)
        traced = trace(apply, variables, TOKENS, KEY)
        return roll(traced, [True] * len(jax.tree.leaves(variables)))

    assert len({size(rolled(depth)) for depth in (8, 16, 64)}) == 1


@pytest.mark.thorough
def test_a_cast_of_all_variables_ahead_of_the_model():
    init, apply = linen(4)
    variables = jax.jit(init)()

    def low(variables, *inputs):
        variables = jax.tree.map(lambda v: v.astype(jnp.bfloat16), variables)
        return apply(variables, *inputs).astype(jnp.float32)

    rolled = check(low, variables, TOKENS, KEY, tolerance=0.1)  # fusions round differently
    assert lengths(rolled) == [4]


@pytest.mark.thorough
def test_layers_that_flax_scans_are_left_alone():
    class Scanned(nn.Module):
        @nn.compact
        def __call__(self, x):
            stack = nn.scan(
                lambda block, x, _: (block(x), None),
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                length=4,
            )
            return stack(Block(), x, None)[0]

    model = Scanned()
    variables = model.init({"params": KEY, "dropout": KEY}, X)
    traced = trace(lambda v, x, k: model.apply(v, x, rngs={"dropout": k}), variables, X, KEY)
    assert roll(traced, [True] * len(jax.tree.leaves(variables))).traced is traced


class ResNet(nn.Module):
    blocks: int = 3

    @nn.compact
    def __call__(self, x, train):
        def norm():
            return nn.BatchNorm(not train)

        for width in (4, 8):
            x = nn.Conv(width, (3, 3), strides=2, use_bias=False)(x)
            for _ in range(self.blocks):
                h = nn.relu(norm()(nn.Conv(width, (3, 3), use_bias=False)(x)))
                x = nn.relu(x + norm()(nn.Conv(width, (3, 3), use_bias=False)(h)))
        return nn.Dense(3)(x.mean((1, 2)))


@pytest.mark.cases
@pytest.mark.parametrize("train", [True, False])
def test_a_resnet_has_one_loop_a_stage(train):
    images = jax.random.normal(KEY, (2, 8, 8, 3))
    model = ResNet()
    variables = jax.jit(model.init, static_argnums=2)(KEY, images, True)
    trainable = [path[0].key == "params" for path, _ in jax.tree.leaves_with_path(variables)]

    def apply(variables, images):
        return model.apply(variables, images, train, mutable=["batch_stats"])

    rolled = check(apply, variables, images, trainable=trainable, tolerance=1e-4)
    assert lengths(rolled) == [model.blocks] * 2
    # two norms and two convolutions a block; evaluation hands the statistics out again
    statistics, trained = (4 if train else 0), 6
    assert sorted(map(len, rolled.groups)).count(model.blocks) == 2 * (statistics + trained)


class NNXBlock(nnx.Module):
    def __init__(self, rngs):
        self.first, self.second = nnx.LayerNorm(WIDTH, rngs=rngs), nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            HEADS, WIDTH, dropout_rate=RATE, deterministic=False, decode=False, rngs=rngs
        )
        self.up = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(RATE, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.first(x), mask=nnx.make_causal_mask(x[..., 0]))
        return x + self.dropout(self.down(nnx.gelu(self.up(self.second(x)))))


class NNXTransformer(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([NNXBlock(rngs) for _ in range(DEPTH)])

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.thorough
def test_an_nnx_transformer_with_the_state_of_its_dropout():
    graph, state = nnx.split(NNXTransformer(nnx.Rngs(0)))
    variables = jax.tree.leaves(state, is_leaf=lambda v: isinstance(v, nnx.Variable))
    trainable = [isinstance(variable, nnx.Param) for variable in variables]

    def apply(state, x):
        model = nnx.merge(graph, state)
        return model(x), nnx.state(model, nnx.RngCount)

    rolled = check(apply, state, X, trainable=trainable)
    assert lengths(rolled) == [DEPTH]
    assert {len(group) for group, flag in zip(rolled.groups, trainable, strict=False) if flag} == {
        DEPTH
    }


class EqxBlock(eqx.Module):
    norms: list
    attention: eqx.nn.MultiheadAttention
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    dropout: eqx.nn.Dropout

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.norms = [eqx.nn.LayerNorm(WIDTH), eqx.nn.LayerNorm(WIDTH)]
        self.attention = eqx.nn.MultiheadAttention(HEADS, WIDTH, dropout_p=RATE, key=keys[0])
        self.up = eqx.nn.Linear(WIDTH, 2 * WIDTH, key=keys[1])
        self.down = eqx.nn.Linear(2 * WIDTH, WIDTH, key=keys[2])
        self.dropout = eqx.nn.Dropout(RATE)

    def __call__(self, x, key):
        first, second = jax.random.split(key)
        h = jax.vmap(self.norms[0])(x)
        x = x + self.attention(h, h, h, mask=jnp.tri(5, dtype=bool), key=first)
        h = jax.nn.gelu(jax.vmap(self.up)(jax.vmap(self.norms[1])(x)))
        return x + self.dropout(jax.vmap(self.down)(h), key=second)


@pytest.mark.thorough
def test_an_equinox_transformer():
    blocks = [EqxBlock(key) for key in jax.random.split(KEY, DEPTH)]
    arrays, static = eqx.partition(blocks, eqx.is_array)

    def apply(arrays, x, keys):
        def one(x, key):
            keys = jax.random.split(key, DEPTH)
            for block, own in zip(eqx.combine(arrays, static), keys, strict=True):
                x = block(x, own)
            return x

        return jax.vmap(one)(x, keys)

    rolled = check(apply, arrays, X, jax.random.split(KEY, 2))
    assert lengths(rolled) == [DEPTH]
    assert {len(group) for group in rolled.groups} == {DEPTH}


@pytest.mark.thorough
def test_a_haiku_transformer_that_splits_its_key_along_the_way():
    init = hk.initializers.VarianceScaling(1.0)

    def model(x):
        for _ in range(DEPTH):
            h = hk.LayerNorm(-1, True, True)(x)
            attention = hk.MultiHeadAttention(HEADS, 4, w_init=init, model_size=WIDTH)
            h = attention(h, h, h, mask=jnp.tri(5)[None, None])
            x = x + hk.dropout(hk.next_rng_key(), RATE, h)
            h = jax.nn.gelu(hk.Linear(2 * WIDTH)(hk.LayerNorm(-1, True, True)(x)))
            x = x + hk.dropout(hk.next_rng_key(), RATE, hk.Linear(WIDTH)(h))
        return x

    transformed = hk.transform(model)
    params = jax.jit(transformed.init)(KEY, X)
    rolled = check(lambda p, x, key: transformed.apply(p, key, x), params, X, KEY)
    assert lengths(rolled) == [DEPTH]
    assert {len(group) for group in rolled.groups} == {DEPTH}
