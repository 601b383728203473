"""Calibration and precision on Auto and Explicit meshes, against the same without a mesh."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jinit
from jinit import amp
from tests.compiler import QUICK
from tests.processes import run_two

KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
KEYS = jax.random.split(jax.random.key(0), 4)
PARAMS = {
    "in": 3 * jax.random.normal(KEYS[0], (8, 16)),
    "bias": jnp.ones(16),
    "out": 3 * jax.random.normal(KEYS[1], (16, 4)),
}
X = jax.random.normal(KEYS[2], (8, 8))
SPECS = [
    {"in": P(), "bias": P(), "out": P(None, "m")},
    {"in": P(None, "m"), "bias": P("m"), "out": P()},
    {"in": P("d"), "bias": P(), "out": P("d")},
]


def net(params, x):
    return jnp.tanh(x @ params["in"] + params["bias"][None]) @ params["out"]


def loss(y, key):
    return jnp.mean(y * jax.random.normal(key, y.shape))


def make_mesh(kind):
    return jax.make_mesh((4, 2), ("d", "m"), axis_types=(KINDS[kind],) * 2)


def placed(mesh, specs):
    return {name: jax.device_put(PARAMS[name], NamedSharding(mesh, specs[name])) for name in specs}


def calibrated(params, x, mode):
    return jinit.calibrate(params, net, x, loss, mode=mode, samples=2, key=KEYS[3])


@functools.cache
def without_mesh(mode):
    found = calibrated(PARAMS, X, mode)
    return found, found.apply_fn(found.params, X)


@pytest.mark.cases
@pytest.mark.parametrize(
    ("rows", "entered"), [(None, False), ("d", True)], ids=["free", "set_mesh"]
)
@pytest.mark.parametrize("mode", ["fold", "explicit"])
@pytest.mark.parametrize("specs", SPECS, ids=["out", "in", "rows"])
@pytest.mark.parametrize("kind", KINDS)
def test_calibrate_gives_the_same_and_leaves_everything_in_its_place(
    kind, specs, mode, rows, entered
):
    mesh, (expected, output) = make_mesh(kind), without_mesh(mode)
    params = placed(mesh, specs)
    x = X if rows is None else jax.device_put(X, NamedSharding(mesh, P(rows)))
    with jax.set_mesh(mesh) if entered else contextlib.nullcontext():
        found = calibrated(params, x, mode)
        for name, leaf in found.params.items():
            assert leaf.sharding.is_equivalent_to(params[name].sharding, leaf.ndim)
            np.testing.assert_allclose(leaf, expected.params[name], rtol=1e-4)
            multiplier = found.multipliers[name]
            assert multiplier.sharding.device_set == params[name].sharding.device_set
            np.testing.assert_allclose(multiplier, expected.multipliers[name], rtol=1e-4)
        np.testing.assert_allclose(found.apply_fn(found.params, x), output, rtol=1e-3)


@pytest.mark.cases
@pytest.mark.parametrize("specs", SPECS[:2], ids=["out", "in"])
@pytest.mark.parametrize("kind", KINDS)
def test_inside_jit(kind, specs):
    params = placed(make_mesh(kind), specs)
    found = jax.jit(lambda params: jinit.empirical_init(params, net, X, loss, key=KEYS[3]))(params)
    expected = jinit.empirical_init(PARAMS, net, X, loss, key=KEYS[3])
    for name, leaf in found.items():
        assert leaf.sharding.is_equivalent_to(params[name].sharding, leaf.ndim)
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-4)


def train(params, x, level):
    """Two steps: calibrated multipliers, loss scaling, and what the level casts."""
    found = jinit.calibrate(params, net, x, loss, samples=2, key=KEYS[3])
    tx = optax.chain(optax.scale(-0.1), found.transform())
    masters = {"master_weights": "optimizer"} if level == "O2" else {}
    model, tx = amp.initialize(net, tx, level, half_dtype="float16", verbosity=0, **masters)
    params = model.policy.cast_to_param(found.params)
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        value, grads = amp.value_and_grad(lambda p: jnp.mean(model(p, x) ** 2), state)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    for _ in range(2):
        params, state, value = step(params, state)
    return params, value


@pytest.mark.cases
@pytest.mark.parametrize("entered", [False, True], ids=["free", "set_mesh"])
@pytest.mark.parametrize("level", ["O0", "O1", "O2", "O3"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_at_every_level(kind, level, entered):
    mesh = make_mesh(kind)
    params = placed(mesh, SPECS[1])
    x = jax.device_put(X, NamedSharding(mesh, P("d")))
    with jax.set_mesh(mesh) if entered else contextlib.nullcontext():
        found, value = train(params, x, level)
    expected, wanted = train(PARAMS, X, level)
    np.testing.assert_allclose(value, wanted, rtol=1e-2)
    for name, leaf in found.items():
        if kind == "explicit":  # on Auto axes the compiler places the result of a step
            assert leaf.sharding.is_equivalent_to(params[name].sharding, leaf.ndim)
        np.testing.assert_allclose(
            np.asarray(leaf, np.float32), np.asarray(expected[name], np.float32), atol=5e-3
        )


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
def test_reinit_and_coord_check_on_a_mesh(kind):
    mesh = make_mesh(kind)
    params = placed(mesh, SPECS[1])
    draw = dict.fromkeys(("in", "out"), jinit.initializers.lecun_normal())
    drawn = jinit.initializers.reinit(KEYS[0], params, draw)
    expected = jinit.initializers.reinit(KEYS[0], PARAMS, draw)
    for name, leaf in drawn.items():
        assert leaf.sharding.is_equivalent_to(params[name].sharding, leaf.ndim)
        np.testing.assert_array_equal(leaf, expected[name])

    def made(sharded):
        def make_model(width):
            sizes = {"in": (8, width), "bias": (width,), "out": (width, 4)}
            values = {n: jax.random.normal(KEYS[0], size) / 4 for n, size in sizes.items()}
            at = {n: NamedSharding(mesh, SPECS[1][n]) for n in values}
            return jax.device_put(values, at) if sharded else values, net

        return make_model

    def squared(y, key):
        return jnp.mean(y**2)

    checks = [jinit.coord_check(made(s), [8, 16], X, squared, steps=2) for s in (False, True)]
    tables = [check.to_dict() for check in checks]
    np.testing.assert_allclose(
        *(jax.flatten_util.ravel_pytree(_numbers(table))[0] for table in tables), rtol=1e-3
    )


def _numbers(tree):
    leaves = jax.tree.leaves(tree)
    return [float(leaf) for leaf in leaves if isinstance(leaf, (int, float)) and leaf is not True]


TWO = """
import jax.numpy as jnp, numpy as np, optax
from jax.experimental import multihost_utils
import tests.test_meshes as t

mesh = jax.make_mesh((2,), ("d",), axis_types=(t.KINDS[KIND],))
specs = {"in": t.P(None, "d"), "bias": t.P("d"), "out": t.P()}
def place(value, spec):
    sharding = t.NamedSharding(mesh, spec)
    return jax.make_array_from_callback(value.shape, sharding, lambda i: np.asarray(value)[i])
params = {name: place(t.PARAMS[name], specs[name]) for name in specs}
x = place(t.X, t.P())
with jax.set_mesh(mesh):
    start = t.jinit.empirical_init(params, t.net, x, t.loss, key=t.KEYS[3])
    trained, value = t.train(params, x, "O2")
whole = multihost_utils.process_allgather((start, trained), tiled=True)
leaves = (np.asarray(leaf, np.float32).tolist() for leaf in jax.tree.leaves(whole))
print(json.dumps([float(value), *leaves]))
"""


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes(kind):
    first, second = run_two(
        f"KIND = {kind!r}\n{TWO}", JAX_CPU_COLLECTIVES_IMPLEMENTATION="gloo", XLA_FLAGS=QUICK
    )
    assert first == second
    start = jinit.empirical_init(PARAMS, net, X, loss, key=KEYS[3])
    trained, value = train(PARAMS, X, "O2")
    np.testing.assert_allclose(first[0], value, rtol=1e-2)
    for found, expected in zip(first[1:], jax.tree.leaves((start, trained)), strict=True):
        np.testing.assert_allclose(found, np.asarray(expected, np.float32), atol=5e-3)
