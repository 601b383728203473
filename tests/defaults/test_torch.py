"""Torch's defaults: against the closed forms of its documentation, and torch where it is there."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.linen.experimental import layers_with_named_axes as named_axes

import jinit
from tests.initializers.statistics import follows, moments_fit, normal_cdf, uniform_cdf

KEY = jax.random.key(0)


def bound(fan):
    return 1 / math.sqrt(fan)


# The layer, its input, and the limit of the kernel and of the bias.
LAYERS = {
    "Dense": (nn.Dense(256), (1, 400), bound(400), bound(400)),
    "named axes": (named_axes.Dense(256, kernel_axes=("a", "b")), (1, 400), *[bound(400)] * 2),
    "DenseGeneral": (nn.DenseGeneral((8, 40), axis=(-2, -1)), (1, 16, 20), *[bound(320)] * 2),
    "DenseGeneral, batch": (nn.DenseGeneral(128, batch_dims=0), (12, 3, 70), *[bound(70)] * 2),
    "Einsum": (nn.Einsum((320, 8, 40), "abc,cde->abde"), (1, 2, 320), *[bound(320)] * 2),
    "Conv": (nn.Conv(160, (3, 3)), (1, 5, 5, 80), *[bound(720)] * 2),
    "Conv, groups": (
        nn.Conv(320, (3, 3), feature_group_count=4),
        (1, 4, 4, 160),
        *[bound(360)] * 2,
    ),
    "ConvLocal": (nn.ConvLocal(64, (3,), padding="VALID"), (1, 6, 400), *[bound(1200)] * 2),
    # Torch counts the outputs of a transposed convolution as its inputs.
    "ConvTranspose": (nn.ConvTranspose(160, (3, 3)), (1, 5, 5, 80), *[bound(1440)] * 2),
    "ConvTranspose, transposed": (
        nn.ConvTranspose(160, (3, 3), transpose_kernel=True),
        (1, 5, 5, 80),
        *[bound(1440)] * 2,
    ),
}


def initialized(layer, *inputs):
    with jinit.torch_defaults():
        return jax.jit(layer.init)(KEY, *inputs)["params"]


@pytest.mark.cases
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_drawn_as_documented(name):
    layer, shape, kernel_limit, bias_limit = LAYERS[name]
    params = initialized(layer, jnp.ones(shape))
    kernel, bias = params["kernel"], params["bias"]
    assert kernel.size >= 80_000
    assert follows(kernel, uniform_cdf(-kernel_limit, kernel_limit))
    assert moments_fit(kernel, 0, kernel_limit / math.sqrt(3), kurtosis=1.8)
    assert follows(bias, uniform_cdf(-bias_limit, bias_limit))
    assert 0.8 * bias_limit < abs(bias).max() <= bias_limit


@pytest.mark.parametrize("embed", [nn.Embed(1600, 64), named_axes.Embed(1600, 64)])
def test_an_embedding_is_normal(embed):
    embedding = initialized(embed, jnp.zeros(1, int))["embedding"]
    assert follows(embedding, normal_cdf(0, 1))


@pytest.mark.cases
@pytest.mark.parametrize(
    "cell", [nn.LSTMCell, nn.OptimizedLSTMCell, nn.GRUCell, nn.SimpleCell, nn.MGUCell]
)
def test_a_recurrent_cell_counts_the_hidden_size(cell):
    params = initialized(nn.RNN(cell(64)), jnp.ones((1, 2, 25)))["cell"]
    limit = bound(64)
    for gate in params.values():
        assert follows(gate["kernel"], uniform_cdf(-limit, limit))
        assert 0.98 * limit < abs(gate["kernel"]).max() <= limit
        if "bias" in gate and cell is not nn.MGUCell:
            assert follows(gate["bias"], uniform_cdf(-limit, limit))
            assert 0.8 * limit < abs(gate["bias"]).max()
    if cell is nn.MGUCell:
        assert (params["if"]["bias"] == 1).all()


def test_attention_projects_with_one_matrix():
    x = jnp.ones((1, 5, 128))
    params = initialized(nn.MultiHeadDotProductAttention(4), x)
    for name, limit in (
        *[(name, math.sqrt(6 / (128 + 3 * 128))) for name in ("query", "key", "value")],
        ("out", bound(128)),
    ):
        kernel = params[name]["kernel"]
        assert follows(kernel, uniform_cdf(-limit, limit))
        assert 0.999 * limit < abs(kernel).max() <= limit
        assert not params[name]["bias"].any()
    with pytest.deprecated_call():
        of_subclass = initialized(nn.SelfAttention(4), x)
    assert jax.tree.all(jax.tree.map(np.array_equal, of_subclass, params))


def test_attention_over_other_features_projects_with_three():
    x, memory = jnp.ones((1, 5, 128)), jnp.ones((1, 5, 64))
    params = initialized(nn.MultiHeadDotProductAttention(4), x, memory)
    for name, limit in (
        ("query", math.sqrt(6 / 256)),
        *[(name, math.sqrt(6 / 192)) for name in ("key", "value")],
    ):
        assert 0.999 * limit < abs(params[name]["kernel"]).max() <= limit


def rngs():
    return nnx.Rngs(0)


NNX_LAYERS = {
    "Linear": (lambda: nnx.Linear(100, 64, rngs=rngs()), 100),
    "LinearGeneral": (lambda: nnx.LinearGeneral((4, 25), (8, 8), axis=(-2, -1), rngs=rngs()), 100),
    "LinearGeneral, batch": (
        lambda: nnx.LinearGeneral(100, 64, batch_axis={0: 3}, rngs=rngs()),
        100,
    ),
    "Einsum": (lambda: nnx.Einsum("ab,bc->ac", (100, 64), (64,), rngs=rngs()), 100),
    "Conv": (lambda: nnx.Conv(32, 64, (3,), feature_group_count=2, rngs=rngs()), 48),
    "ConvTranspose": (lambda: nnx.ConvTranspose(16, 64, 3, rngs=rngs()), 192),
    "LSTMCell": (lambda: nnx.LSTMCell(25, 64, rngs=rngs()), 64),
    "OptimizedLSTMCell": (lambda: nnx.OptimizedLSTMCell(25, 64, rngs=rngs()), 64),
    "GRUCell": (lambda: nnx.GRUCell(25, 64, rngs=rngs()), 64),
    "SimpleCell": (lambda: nnx.SimpleCell(25, 64, rngs=rngs()), 64),
}


@pytest.mark.cases
@pytest.mark.parametrize("name", NNX_LAYERS)
def test_an_nnx_layer_is_drawn_as_documented(name):
    build, fan = NNX_LAYERS[name]
    with jinit.torch_defaults():
        layer = build()
    for _, parameter in nnx.to_flat_state(nnx.state(layer, nnx.Param)):
        values = np.asarray(parameter[...])
        assert follows(values, uniform_cdf(-bound(fan), bound(fan)))
        assert 0.8 * bound(fan) < abs(values).max() <= bound(fan)


def test_nnx_attention_and_embedding():
    with jinit.torch_defaults():
        same = nnx.MultiHeadAttention(4, 128, rngs=rngs())
        other = nnx.MultiHeadAttention(4, 128, in_kv_features=64, rngs=rngs())
        embed = nnx.Embed(1600, 64, rngs=rngs())
    for layer, limit in (
        *[(layer, math.sqrt(6 / 512)) for layer in (same.query, same.key, same.value)],
        (same.out, bound(128)),
        (other.query, math.sqrt(6 / 256)),
        (other.key, math.sqrt(6 / 192)),
    ):
        assert 0.999 * limit < abs(layer.kernel[...]).max() <= limit
        assert not layer.bias[...].any()
    assert follows(embed.embedding[...], normal_cdf(0, 1))


def test_norms_and_prelu():
    x = jnp.ones((2, 4))
    wrapped = jinit.torch_defaults().wrap
    for norm in (nn.LayerNorm(), nn.GroupNorm(2), nn.InstanceNorm(), nn.BatchNorm(False)):
        found = jinit.describe(wrapped(norm), x[:, None])
        numbers = {n.field: (n.value, n.decided_by) for n in found.norms}
        assert numbers["epsilon"] == (1e-5, "torch")
        if isinstance(norm, nn.BatchNorm):
            assert numbers["momentum"] == (0.9, "torch")
    (number,) = jinit.describe(wrapped(nn.RMSNorm()), x).norms
    assert number.decided_by == "default"
    with jinit.torch_defaults():
        assert nn.PReLU().init(KEY, x)["params"]["negative_slope"] == 0.25
        assert nnx.PReLU().negative_slope[...] == 0.25
        assert nnx.BatchNorm(3, rngs=rngs()).momentum == 0.9


def test_the_arguments_and_the_repr():
    assert repr(jinit.torch_defaults(norm_epsilon=None)) == (
        "torch_defaults(parameter_initialization=True, batchnorm_momentum=0.9, norm_epsilon=None)"
    )
    plain = nn.Dense(3).init(KEY, jnp.ones((1, 2)))
    with jinit.torch_defaults(False):
        inside = nn.Dense(3).init(KEY, jnp.ones((1, 2)))
    assert jax.tree.all(jax.tree.map(np.array_equal, inside, plain))
    with pytest.raises(TypeError, match=r"write torch_defaults\(\)\(function\)$"):
        jinit.torch_defaults(nn.Dense(3).init)


def test_torch_itself():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    attention = torch.nn.MultiheadAttention(128, 4)
    cases = [
        *[(p, bound(400)) for p in torch.nn.Linear(400, 256).parameters()],
        *[(p, bound(360)) for p in torch.nn.Conv2d(160, 320, 3, groups=4).parameters()],
        *[(p, bound(1440)) for p in torch.nn.ConvTranspose2d(80, 160, 3).parameters()],
        *[(p, bound(64)) for p in torch.nn.LSTMCell(25, 64).parameters()],
        *[(p, bound(64)) for p in torch.nn.GRUCell(25, 64).parameters()],
        *[(p, bound(64)) for p in torch.nn.RNNCell(25, 64).parameters()],
        (attention.in_proj_weight, math.sqrt(6 / 512)),
        (attention.out_proj.weight, bound(128)),
    ]
    for parameter, limit in cases:
        values = parameter.detach().numpy()
        assert follows(values, uniform_cdf(-limit, limit))
        assert 0.8 * limit < abs(values).max() <= limit
    assert not attention.in_proj_bias.any()
    assert not attention.out_proj.bias.any()
    assert follows(torch.nn.Embedding(1600, 64).weight.detach().numpy(), normal_cdf(0, 1))
    assert torch.nn.PReLU().weight.item() == 0.25
    for norm in (torch.nn.BatchNorm1d(2), torch.nn.LayerNorm(2), torch.nn.GroupNorm(1, 2)):
        assert norm.eps == 1e-5
    assert torch.nn.BatchNorm1d(2).momentum == pytest.approx(1 - 0.9)
