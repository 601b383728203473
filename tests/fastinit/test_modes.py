"""Within other transformations, and in JAX's modes."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import random
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jinit
from jinit import fast_init
from tests.debug_modes import checking_leaks
from tests.fastinit.reference import assert_same, ways
from tests.fastinit.test_frameworks import Module, Net, X
from tests.fastinit.test_shardings import init_fn, make_mesh


@pytest.fixture(scope="module")
def expected():
    return jax.jit(init_fn)(random.key(0))


def test_within_jit(expected):
    init = fast_init(init_fn)
    assert_same(jax.jit(init)(random.key(0)), expected)
    assert init.report is None


@pytest.mark.cases
@pytest.mark.parametrize("kind", ["auto", "explicit"])
def test_shardings_within_jit(kind):
    sharding = NamedSharding(make_mesh(kind=kind), P("data"))
    init = fast_init(lambda key: {"w": random.normal(key, (8, 4))}, out_shardings=sharding)
    with jax.set_mesh(sharding.mesh):
        found = jax.jit(init)(random.key(0))["w"]
    assert found.sharding.is_equivalent_to(sharding, 2)
    assert_same(found, jax.jit(random.normal, static_argnums=1)(random.key(0), (8, 4)))


def test_within_vmap():
    net = nn.Dense(3)
    keys = random.split(random.key(0), 4)
    found = jax.vmap(fast_init(net.init), (0, None))(keys, X)
    assert_same(found, jax.vmap(net.init, (0, None))(keys, X))


def test_within_eval_shape(expected):
    shapes = jax.eval_shape(fast_init(init_fn), random.key(0))
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in shapes.items()} == {
        name: (leaf.shape, leaf.dtype) for name, leaf in expected.items()
    }


def test_within_grad():
    def scaled(scale, key):
        return {"w": scale * random.normal(key, (3, 4))}

    def loss(init_fn, scale):
        return jnp.sum(init_fn(scale, random.key(0))["w"] ** 2)

    found = jax.grad(lambda scale: loss(fast_init(scaled), scale))(2.0)
    np.testing.assert_allclose(found, jax.grad(lambda scale: loss(scaled, scale))(2.0), rtol=1e-6)


def test_within_a_transform_of_nnx():
    @nnx.jit
    def make(rngs):
        return fast_init(Module)(rngs)

    assert_same(nnx.state(make(nnx.Rngs(0))), nnx.state(Module(nnx.Rngs(0))), relative=1e-6)


def test_a_tracer_that_is_closed_over_does_not_stay():
    init, gain = None, []

    @jax.jit
    def scaled(scale):
        init = fast_init(lambda key: scale * random.normal(key, (3,)))
        gain.append(init)
        return init(random.key(0))

    expected = random.normal(random.key(0), (3,))
    np.testing.assert_allclose(scaled(2.0), 2 * expected, rtol=1e-6)
    assert init is None
    assert gain[0]._programs == {}


MODES = {
    "leaks": checking_leaks,
    "nans": lambda: jax.debug_nans(True),
    "strict dtypes": lambda: jax.numpy_dtype_promotion("strict"),
    "key reuse": lambda: jax.debug_key_reuse(True),
    "x64": lambda: jax.enable_x64(True),
    "no jit": jax.disable_jit,
    "high precision": lambda: jax.default_matmul_precision("highest"),
}


@pytest.mark.parametrize(
    "mode",
    [*MODES][:-2] + [pytest.param(name, marks=pytest.mark.thorough) for name in [*MODES][-2:]],
)
def test_modes(mode):
    def plain(key):
        one, two, three = random.split(key, 3)
        return {
            "w": nn.initializers.lecun_normal()(one, (8, 4), jnp.float32),
            "q": nn.initializers.orthogonal()(two, (4, 4), jnp.float32),
            "u": random.uniform(three, (5,), jnp.float32),
            "b": jnp.zeros(4, jnp.float32),
        }

    expected = jax.jit(plain)(random.key(0))
    with MODES[mode]():
        assert_same(fast_init(plain)(random.key(0)), expected, relative=1e-6)


@pytest.mark.cases
@pytest.mark.thorough
@pytest.mark.parametrize("mode", ["leaks", "nans", "key reuse"])
def test_modules_in_modes(mode):
    expected = jax.jit(Net().init)(random.key(0), X)
    with MODES[mode]():
        assert_same(fast_init(Net().init)(random.key(0), X), expected)
        nnx_net = fast_init(Module)(nnx.Rngs(0))
    assert_same(nnx.state(nnx_net), nnx.state(Module(nnx.Rngs(0))))


@pytest.mark.thorough
def test_nothing_stays_of_a_trace():
    with jax.checking_leaks():
        init = fast_init(Net().init)
        init(random.key(0), X)
        init(random.key(1), X)


@pytest.mark.cases
@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_another_generator(impl):
    key, init = random.key(0, impl=impl), fast_init(init_fn)
    assert_same(init(key), jax.jit(init_fn)(key))
    assert ways(init) == {"at once": 8}
    assert init.report.reason == f"its keys are of {impl}, not of threefry2x32"
    assert str(init.report).endswith(f"at once: its keys are of {impl}, not of threefry2x32")


@pytest.mark.thorough
@pytest.mark.thorough
def test_another_generator_as_the_default():
    with jax.default_prng_impl("rbg"):
        init = fast_init(init_fn)
        assert_same(init(random.PRNGKey(0)), jax.jit(init_fn)(random.PRNGKey(0)))
        assert init.report.reason == "its keys are of rbg, not of threefry2x32"


@pytest.mark.thorough
def test_another_generator_on_devices():
    sharding = NamedSharding(make_mesh(), P())
    init = fast_init(init_fn, out_shardings=sharding)
    found = init(random.key(0, impl="rbg"))
    assert {leaf.sharding for leaf in found.values()} == {sharding}


def test_threefry_that_is_not_partitionable():
    with jax.threefry_partitionable(False):
        init = fast_init(init_fn)
        assert_same(init(random.key(0)), jax.jit(init_fn)(random.key(0)))
    assert init.report.reason == (
        "jax_threefry_partitionable is off, and a number depends on the shape as a whole"
    )


def test_a_program_that_does_something_beside(capfd):
    def init_fn(key):
        jax.debug.print("drawing {}", 3)
        return random.normal(key, (3,))

    init = fast_init(init_fn)
    assert_same(init(random.key(0)), jax.jit(lambda key: random.normal(key, (3,)))(random.key(0)))
    jax.effects_barrier()
    assert init.report.reason == (
        "it does something beside computing its results, such as printing"
    )
    assert capfd.readouterr().out.strip().endswith("drawing 3")


def test_keras_defaults_within_jit():
    net = nn.Dense(3)
    with jinit.keras_defaults():
        found = jax.jit(fast_init(net.init))(random.key(0), X)
        assert_same(found, jax.jit(net.init)(random.key(0), X))


def test_the_function_is_wrapped():
    init = fast_init(Net().init)
    assert repr(init) == "fast_init(Module.init)"
    assert init.__name__ == "init"
    assert re.match("Initializes a module", init.__doc__)
