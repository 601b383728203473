"""Modules of every framework, as they are: values, structures, states, aliases."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import random

import jinit
from jinit import fast_init
from tests.fastinit.reference import assert_same, check, ways

X = jnp.ones((2, 8))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
        return nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x)))), None


class Net(nn.Module):
    depth: int = 2
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x):
        x = nn.Embed(11, 8)(jnp.zeros((2, 3), jnp.int32)) + x[:, None]
        for _ in range(self.depth):
            x, _ = Block()(x)
        x = nn.BatchNorm(use_running_average=False)(x)
        return nn.Dense(3, param_dtype=self.param_dtype)(x)


class Looped(nn.Module):
    """Five layers as one scan, whose body is computed again in the backward pass."""

    @nn.compact
    def __call__(self, x):
        layers = nn.scan(
            nn.remat(Block),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=5,
        )
        x, _ = layers()(x[:, None], None)
        return nn.Dense(3, kernel_init=nn.initializers.orthogonal())(x)


class Mapped(nn.Module):
    """Three heads at once, of which each draws its own."""

    @nn.compact
    def __call__(self, x):
        heads = nn.vmap(
            nn.Dense,
            variable_axes={"params": 1},
            split_rngs={"params": True},
            in_axes=None,
            axis_size=3,
        )
        return heads(4)(x)


class OfData(nn.Module):
    """A scale that the batch decides, and a norm of the weights."""

    @nn.compact
    def __call__(self, x):
        y = nn.Dense(8)(x * jnp.arange(8.0)[None])
        scale = self.param("scale", lambda key: y.std())
        self.param("drawn", lambda key: scale * random.normal(key, (3,)))
        return nn.WeightNorm(nn.Dense(4))(y / scale)


@pytest.mark.cases
@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_linen(make_key, param_dtype):
    init = check(Net(param_dtype=param_dtype).init, make_key(0), X)
    assert ways(init).keys() == {"drawn", "filled"}


def test_linen_loops():
    init = check(Looped().init, random.key(0), X, relative=1e-6)
    assert ways(init)["computed"] == 1
    assert [row.leaves for row in init.report.rows if row.way == "computed"] == [
        ("params/Dense_0/kernel",)
    ]


def test_linen_maps():
    check(Mapped().init, random.key(0), X)


def test_linen_of_data():
    init = check(OfData().init, random.key(0), X, relative=1e-6)
    computed = {leaf for row in init.report.rows if row.way == "computed" for leaf in row.leaves}
    assert {"params/scale", "params/drawn"} <= computed
    assert "params/Dense_0/kernel" not in computed


def test_linen_collections_and_streams():
    class Streams(nn.Module):
        @nn.compact
        def __call__(self, x, *, scale):
            self.variable("noise", "z", lambda: random.normal(self.make_rng("other"), (3,)))
            return scale * nn.Dropout(0.5, deterministic=False)(nn.Dense(4)(x))

    rngs = {"params": random.key(0), "other": random.key(1), "dropout": random.key(2)}
    check(Streams().init, rngs, X, scale=2.0)


@pytest.mark.cases
@pytest.mark.parametrize("defaults", [jinit.keras_defaults, jinit.torch_defaults])
def test_defaults(defaults):
    """What is active when it is called decides, also after a call without."""
    net, key = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(3)]), random.key(0)
    init = fast_init(net.init)
    plain = init(key, X)
    with defaults():
        expected = jax.jit(net.init)(key, X)
        assert_same(init(key, X), expected)
    kernels = [tree["params"]["layers_0"]["kernel"] for tree in (plain, expected)]
    assert not np.allclose(*kernels)
    assert_same(init(key, X), plain)


class Module(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(3)])
        self.tied = self.layers[0]
        self.norm, self.dropout = nnx.BatchNorm(8, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        self.name = "net"

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.dropout(self.norm(x))


def test_nnx():
    found, expected = fast_init(Module)(nnx.Rngs(0)), Module(nnx.Rngs(0))
    assert isinstance(found, Module)
    assert nnx.graphdef(found) == nnx.graphdef(expected)
    assert_same(nnx.state(found), nnx.state(expected))
    assert found.name == "net"
    assert found(X).shape == (2, 8)


def test_nnx_aliases():
    found = fast_init(lambda rngs: Module(rngs=rngs))(nnx.Rngs(0))
    assert found.tied is found.layers[0]


def test_nnx_counters_of_the_given_streams():
    given, expected = nnx.Rngs(0, params=1), nnx.Rngs(0, params=1)
    init = fast_init(Module)
    for _ in range(2):
        assert_same(nnx.state(init(given)), nnx.state(Module(expected)))
        assert_same(nnx.state(given), nnx.state(expected))
    assert_same(given.params(), expected.params())


def test_nnx_streams_that_are_shared():
    """A dropout draws from the streams that were given, as after the plain call."""
    given = nnx.Rngs(0)
    found = fast_init(lambda rngs: (Module(rngs), rngs))(given)[1]
    assert found is given


@pytest.mark.parametrize("fault", ["function", "sharding", "memory"])
def test_nnx_streams_after_a_failure(fault):
    def make(rngs):
        made = nnx.Linear(8, 2**41 if fault == "memory" else 8, rngs=rngs)
        if fault == "function":
            raise RuntimeError("of the function")
        return made

    mesh = jax.make_mesh((8,), ("a",))
    shardings = jax.NamedSharding(mesh, jax.P(None, None, "a")) if fault == "sharding" else None
    given, untouched = nnx.Rngs(0), nnx.Rngs(0)
    error = {"function": RuntimeError, "sharding": ValueError, "memory": MemoryError}[fault]
    with pytest.raises(error):
        fast_init(make, out_shardings=shardings)(given)
    assert_same(nnx.state(given), nnx.state(untouched))


def test_equinox():
    eqx = pytest.importorskip("equinox")

    def make(key):
        return eqx.nn.MLP(3, 4, 50, 3, key=key)

    found, expected = fast_init(make)(random.key(0)), make(random.key(0))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert found.layers[0].in_features == 3
    arrays = [eqx.filter(net, eqx.is_array) for net in (found, expected)]
    assert_same(*arrays)


def test_haiku():
    hk = pytest.importorskip("haiku")

    def forward(x):
        return hk.BatchNorm(True, True, 0.9)(hk.nets.MLP([8, 8, 3])(x), True)

    check(hk.transform_with_state(forward).init, random.PRNGKey(0), X, relative=1e-6)


def test_a_plain_function():
    def init_fn(key, width, *, gain=1.0, name="net"):
        one, other = random.split(key)
        return {
            "w": gain * random.normal(one, (3, width)),
            "b": jnp.zeros(width),
            "name": name,
            "rate": 0.5,
            "none": None,
            "key": other,
        }

    found = fast_init(init_fn)(random.key(0), 4, gain=0.3)
    expected = init_fn(random.key(0), 4, gain=0.3)
    assert (found.pop("name"), found.pop("rate")) == ("net", 0.5)
    assert found["none"] is None
    assert_same(found, {key: expected[key] for key in found})
    assert fast_init(init_fn)(random.key(0), 4, name="other")["name"] == "other"
