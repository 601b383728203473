"""The same bits eagerly, under jit, and on every mesh."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jinit.initializers import normal, ones, uniform

SHAPE = (64, 48)
INITS = [normal(0.1, 0.37), uniform(-0.3, 1.7)]
ROWS, BOTH = PartitionSpec("x"), PartitionSpec("x", "y")
AXIS_TYPES = pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)


def mesh_of(count, axis_type):
    sizes = (count // 2, 2) if count > 1 else (1, 1)
    return jax.make_mesh(
        sizes, ("x", "y"), axis_types=(axis_type,) * 2, devices=jax.devices()[:count]
    )


def bits(array):
    return np.asarray(array).view(np.uint32)


def check(draw, init, sharding):
    np.testing.assert_array_equal(bits(draw), bits(init(jax.random.key(0), SHAPE)))
    assert draw.sharding.is_equivalent_to(sharding, draw.ndim)


@pytest.mark.parametrize("init", INITS, ids=repr)
def test_jit_gives_the_eager_bits(init, make_key):
    def model(key):
        # Neighbours in the same program must not change how the draw is compiled.
        draw = init(key, SHAPE)
        return draw, draw * 2 + 1

    drawn, _ = jax.jit(model)(make_key(0))
    np.testing.assert_array_equal(bits(drawn), bits(init(make_key(0), SHAPE)))


@pytest.mark.parametrize("count", [1, 2, 4, 8])
@AXIS_TYPES
@pytest.mark.parametrize("init", INITS, ids=repr)
def test_every_mesh_gives_the_same_bits(init, axis_type, count):
    sharding = NamedSharding(mesh_of(count, axis_type), BOTH)
    check(init(jax.random.key(0), SHAPE, out_sharding=sharding), init, sharding)


@AXIS_TYPES
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("named", [False, True], ids=["PartitionSpec", "NamedSharding"])
def test_a_mesh_context_gives_the_same_bits(named, jit, axis_type):
    init, mesh = INITS[0], mesh_of(8, axis_type)
    sharding = NamedSharding(mesh, ROWS)

    def draw(key):
        return init(key, SHAPE, out_sharding=sharding if named else ROWS)

    with jax.set_mesh(mesh):
        check((jax.jit(draw) if jit else draw)(jax.random.key(0)), init, sharding)


@AXIS_TYPES
def test_jit_needs_no_mesh_context(axis_type):
    sharding = NamedSharding(mesh_of(8, axis_type), BOTH)
    draw = jax.jit(lambda key: INITS[1](key, SHAPE, out_sharding=sharding))
    check(draw(jax.random.key(0)), INITS[1], sharding)


def test_constants_are_born_sharded_too():
    sharding = NamedSharding(mesh_of(8, AxisType.Explicit), ROWS)
    check(ones()(None, SHAPE, out_sharding=sharding), ones(), sharding)


def test_half_precision_is_born_sharded_too():
    sharding = NamedSharding(mesh_of(8, AxisType.Auto), ROWS)
    draw = normal()(jax.random.key(0), SHAPE, "bfloat16", sharding)
    assert draw.sharding.is_equivalent_to(sharding, 2)
    np.testing.assert_array_equal(draw, normal()(jax.random.key(0), SHAPE, "bfloat16"))
