"""What is printed of an initializer draws, evaluated, what the initializer draws."""

import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jinit
from jinit import initializers
from jinit.defaults.provenance.explain import explain
from jinit.defaults.tables.gates import Blocks, blocks
from jinit.initializers.base import Initializer

KEY = jax.random.key(0)
NAMES = {name: getattr(initializers, name) for name in initializers.__all__} | {"blocks": blocks}
JAX = jax.nn.initializers


def evaluated(text):
    return eval(text, {"__builtins__": {}}, NAMES)


def close(printed, drawn):
    # Numbers are printed with four digits.
    printed, drawn = np.asarray(printed, np.float64), np.asarray(drawn, np.float64)
    np.testing.assert_allclose(printed, drawn, rtol=2e-3, atol=2e-3 * abs(drawn).max() + 1e-12)


FACTORIES = [
    JAX.zeros,
    JAX.ones,
    JAX.constant(0.3),
    JAX.constant(-2),
    JAX.constant(jnp.arange(4.0)),
    JAX.normal(),
    JAX.normal(0.1),
    JAX.uniform(),
    JAX.uniform(0.1),
    JAX.truncated_normal(0.02),
    JAX.truncated_normal(0.5, lower=-1.0, upper=3.0),
    JAX.orthogonal(),
    JAX.orthogonal(2.0, column_axis=0),
    JAX.lecun_normal(),
    JAX.lecun_uniform(),
    JAX.he_normal(in_axis=-1, out_axis=-2),
    JAX.he_uniform(),
    JAX.glorot_normal(),
    JAX.glorot_uniform(),
    JAX.variance_scaling(2.0, "fan_out", "normal"),
    nn.with_partitioning(JAX.truncated_normal(0.3), ("a", "b")),
    nn.initializers.zeros_init(),
    nn.linear.default_embed_init,
    nn.linear.default_kernel_init,
    0.25,
    initializers.constant(0.5),
    initializers.zeros(),
    initializers.ones(),
    initializers.eye(),
    initializers.identity(),
    initializers.normal(mean=1.0, std=0.5),
    initializers.uniform(low=-0.5, high=0.25),
    initializers.truncated_normal(std=0.3, relative=True),
    initializers.truncated_normal(mean=0.1, std=0.3, low=-0.2, high=0.6),
    initializers.orthogonal(gain=1.5, out_axis=-2),
    initializers.sparse(0.5),
    initializers.lecun_normal(truncated=True),
    initializers.kaiming_uniform(mode="fan_out"),
    initializers.xavier_normal(gain=2.0, fans=(3, 5)),
    initializers.variance_scaling(2.0, "fan_avg", "uniform", batch_axis=()),
    initializers.scaled(initializers.lecun_normal(truncated=True), 0.5),
    initializers.scaled(JAX.normal(0.1), -2.0),
]


@pytest.mark.cases
@pytest.mark.parametrize("init", FACTORIES, ids=lambda init: explain(init, (8, 4))[0])
def test_a_factorys_text(init):
    text, _ = explain(init, (8, 4))
    drawn = init(KEY, (8, 4), jnp.float32) if callable(init) else np.full((8, 4), init)
    close(evaluated(text)(KEY, (8, 4), jnp.float32), nn.meta.unbox(drawn))


KERNELS = [JAX.delta_orthogonal(2.0), initializers.dirac(2), initializers.bilinear()]


@pytest.mark.parametrize("init", KERNELS, ids=["delta_orthogonal", "dirac", "bilinear"])
def test_a_kernels_text(init):
    text, _ = explain(init, (3, 4, 4))
    close(evaluated(text)(KEY, (3, 4, 4)), init(KEY, (3, 4, 4), jnp.float32))


OURS = [init for init in FACTORIES if isinstance(init, Initializer) and "init" not in repr(init)]


@pytest.mark.parametrize("init", OURS, ids=repr)
def test_a_representation(init):
    assert evaluated(repr(init)) == init


LAYERS = {
    "Dense": (nn.Dense(4), (2, 8)),
    "DenseGeneral": (nn.DenseGeneral((2, 3), axis=(-2, -1)), (2, 4, 8)),
    "Einsum": (nn.Einsum((8, 4), "ab,bc->ac"), (2, 8)),
    "Conv": (nn.Conv(4, (3,)), (1, 5, 8)),
    "ConvLocal": (nn.ConvLocal(4, (3,)), (1, 5, 8)),
    "ConvTranspose": (nn.ConvTranspose(4, (3,)), (1, 5, 8)),
    "Embed": (nn.Embed(8, 4), None),
    "attention": (nn.MultiHeadDotProductAttention(2), (1, 5, 8)),
    "LSTM": (nn.RNN(nn.LSTMCell(4)), (1, 5, 8)),
    "OptimizedLSTM": (nn.RNN(nn.OptimizedLSTMCell(4)), (1, 5, 8)),
    "GRU": (nn.RNN(nn.GRUCell(4)), (1, 5, 8)),
    "MGU": (nn.RNN(nn.MGUCell(4)), (1, 5, 8)),
    "Simple": (nn.RNN(nn.SimpleCell(4)), (1, 5, 8)),
    "PReLU": (nn.PReLU(), (2, 8)),
    "LayerNorm": (nn.LayerNorm(), (2, 8)),
    "GroupNorm": (nn.GroupNorm(2), (2, 8)),
    "BatchNorm": (nn.BatchNorm(True), (2, 8)),
}
SYSTEMS = {
    "flax": contextlib.nullcontext,
    "keras": lambda: jinit.keras_defaults(True, None, None),
    "torch": lambda: jinit.torch_defaults(True, None, None),
}


def agrees(text, shape, array):
    """The same distribution: other keys, so the numbers are compared with their bounds alone."""
    init, array = evaluated(text), np.asarray(array, np.float64)
    if isinstance(init, Blocks | initializers.constant):
        close(init(KEY, shape, jnp.float32), array)
    elif isinstance(init, initializers.orthogonal):
        assert abs(array).max() <= init.gain * (1 + 1e-6)
    else:
        many = np.asarray(init(KEY, (4000,)), np.float64)
        # The largest of 4000 bounds those of a small array; the deviation is 6 sigma of its error.
        assert abs(array).max() <= 1.3 * abs(many).max() + 1e-12
        error = many.std() * 6 / array.size**0.5
        assert abs(array.mean() - many.mean()) <= error
        assert abs(array.std() - many.std()) <= error


@pytest.mark.cases
@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_linen_layers_table(name, system):
    layer, shape = LAYERS[name]
    inputs = jnp.zeros((2,), int) if shape is None else jnp.ones(shape)
    with SYSTEMS[system]():
        description = jinit.describe(layer, inputs)
        params = jax.jit(layer.init)(KEY, inputs)["params"]
    leaves = jax.tree_util.tree_leaves_with_path(params)
    drawn = {"/".join(key.key for key in path): leaf for path, leaf in leaves}
    assert {p.path for p in description.parameters} == set(drawn)
    for p in description.parameters:
        agrees(p.distribution, p.shape, drawn[p.path])


NNX = {
    "Linear": lambda r: nnx.Linear(8, 4, rngs=r),
    "LinearGeneral": lambda r: nnx.LinearGeneral((4, 8), (2, 3), axis=(-2, -1), rngs=r),
    "Einsum": lambda r: nnx.Einsum("ab,bc->ac", (8, 4), (4,), rngs=r),
    "Conv": lambda r: nnx.Conv(8, 4, (3,), rngs=r),
    "ConvTranspose": lambda r: nnx.ConvTranspose(8, 4, (3,), rngs=r),
    "Embed": lambda r: nnx.Embed(8, 4, rngs=r),
    "MultiHeadAttention": lambda r: nnx.MultiHeadAttention(2, 8, rngs=r),
    "LSTMCell": lambda r: nnx.LSTMCell(8, 4, rngs=r),
    "OptimizedLSTMCell": lambda r: nnx.OptimizedLSTMCell(8, 4, rngs=r),
    "GRUCell": lambda r: nnx.GRUCell(8, 4, rngs=r),
    "SimpleCell": lambda r: nnx.SimpleCell(8, 4, rngs=r),
    "PReLU": lambda r: nnx.PReLU(),
    "LayerNorm": lambda r: nnx.LayerNorm(8, rngs=r),
    "BatchNorm": lambda r: nnx.BatchNorm(8, rngs=r),
}


@pytest.mark.cases
@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("name", NNX)
def test_an_nnx_layers_table(name, system):
    with SYSTEMS[system]():
        description = jinit.describe(lambda: NNX[name](nnx.Rngs(0)))
        layer = NNX[name](nnx.Rngs(0))
    state = nnx.to_flat_state(nnx.state(layer, nnx.Param))
    drawn = {"/".join(map(str, path)): variable[...] for path, variable in state}
    for p in description.parameters:
        agrees(p.distribution, p.shape, drawn[p.path])


def test_flaxs_dense_is_cut_where_it_says():
    dense = nn.Dense(500, use_bias=False)
    (kernel,) = jinit.describe(dense, jnp.ones((1, 8))).parameters
    assert kernel.distribution == (
        "truncated_normal(mean=0, std=0.4019, low=-2, high=2, relative=True)"
    )
    drawn = dense.init(KEY, jnp.ones((1, 8)))["params"]["kernel"]
    printed = evaluated(kernel.distribution)(KEY, (8, 500))
    assert float(abs(printed).max()) == pytest.approx(float(abs(drawn).max()), rel=0.01)
    assert abs(printed).max() < 0.81
