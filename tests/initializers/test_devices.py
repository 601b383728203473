"""The same bits eagerly, under jit, and on every mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jinit.initializers import (
    delta_orthogonal,
    dirac,
    normal,
    ones,
    orthogonal,
    scaled,
    sparse,
    truncated_normal,
    uniform,
    variance_scaling,
)

SHAPE = (64, 48)
INITS = [normal(mean=0.1, std=0.37), uniform(low=-0.3, high=1.7)]
OTHERS = [
    (truncated_normal(mean=0.1, std=0.37), SHAPE, "float32"),
    (orthogonal(0.7), SHAPE, "float32"),
    (scaled(orthogonal(0.7, batch_axis=0), 0.3), (8, 6, 4), "bfloat16"),
    (delta_orthogonal(0.7), (2, 6, 8), "float32"),
    (sparse(0.6, 0.37), SHAPE, "float32"),
    (variance_scaling(0.3, distribution="uniform"), SHAPE, "complex64"),
    (dirac(), (2, 6, 8), "float32"),
]
EACH = pytest.mark.parametrize(
    ("init", "shape", "dtype"), OTHERS, ids=[f"{init!r}-{dtype}" for init, _, dtype in OTHERS]
)
ROWS, BOTH = PartitionSpec("x"), PartitionSpec("x", "y")
AXIS_TYPES = pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)


def mesh_of(count, axis_type):
    sizes = (count // 2, 2) if count > 1 else (1, 1)
    return jax.make_mesh(
        sizes, ("x", "y"), axis_types=(axis_type,) * 2, devices=jax.devices()[:count]
    )


def bits(array):
    return np.asarray(array).view(np.uint8)


def check(draw, expected, sharding):
    np.testing.assert_array_equal(bits(draw), bits(expected))
    assert draw.sharding.is_equivalent_to(sharding, draw.ndim)


def in_a_model(init, shape, dtype="float32"):
    """Neighbours in the same program must not change how the draw is compiled."""

    @jax.jit
    def model(key):
        draw = init(key, shape, dtype)
        return draw, draw.astype(jnp.complex64) * 2 + 1

    return lambda key: model(key)[0]


@pytest.mark.exact
@pytest.mark.cases
@pytest.mark.parametrize("init", INITS, ids=repr)
def test_jit_gives_the_eager_bits(init, make_key):
    drawn = in_a_model(init, SHAPE)(make_key(0))
    np.testing.assert_array_equal(bits(drawn), bits(init(make_key(0), SHAPE)))


@pytest.mark.cases
@pytest.mark.parametrize("count", [1, 2, 4, 8])
@pytest.mark.parametrize("init", [*INITS, orthogonal(0.7)], ids=repr)
def test_every_mesh_gives_the_same_bits(init, count):
    axis_type = AxisType.Explicit if count == 4 else AxisType.Auto
    sharding = NamedSharding(mesh_of(count, axis_type), BOTH)
    expected = init(jax.random.key(0), SHAPE)
    check(init(jax.random.key(0), SHAPE, out_sharding=sharding), expected, sharding)


@pytest.mark.exact
@pytest.mark.cases
@EACH
def test_all_give_the_same_bits_under_jit_and_on_eight_devices(init, shape, dtype):
    """Orthogonal matrices are cut in rows, kernels and stacks in both axes of their matrices."""
    key = jax.random.key(0)
    expected = init(key, shape, dtype)
    np.testing.assert_array_equal(bits(in_a_model(init, shape, dtype)(key)), bits(expected))
    spec = ROWS if shape == SHAPE else PartitionSpec(None, "y", "x")
    sharding = NamedSharding(mesh_of(8, AxisType.Auto), spec)
    check(init(key, shape, dtype, sharding), expected, sharding)


@pytest.mark.cases
@pytest.mark.parametrize(
    ("init", "shape"),
    [(orthogonal(0.7), SHAPE), (delta_orthogonal(0.7), (2, 6, 8)), (sparse(0.6, 0.37), SHAPE)],
    ids=repr,
)
def test_all_are_born_on_a_mesh_in_force(init, shape):
    expected = init(jax.random.key(0), shape)
    mesh, spec = mesh_of(8, AxisType.Explicit), PartitionSpec(None, "y")
    with jax.set_mesh(mesh):
        draw = jax.jit(lambda key: init(key, shape, out_sharding=spec))(jax.random.key(0))
        check(draw, expected, NamedSharding(mesh, spec))


@pytest.mark.cases
@AXIS_TYPES
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("named", [False, True], ids=["PartitionSpec", "NamedSharding"])
def test_a_mesh_context_gives_the_same_bits(named, jit, axis_type):
    init, mesh = INITS[0], mesh_of(8, axis_type)
    sharding = NamedSharding(mesh, ROWS)

    def draw(key):
        return init(key, SHAPE, out_sharding=sharding if named else ROWS)

    expected = init(jax.random.key(0), SHAPE)
    with jax.set_mesh(mesh):
        check((jax.jit(draw) if jit else draw)(jax.random.key(0)), expected, sharding)


@AXIS_TYPES
def test_jit_needs_no_mesh_context(axis_type):
    init, sharding = INITS[1], NamedSharding(mesh_of(8, axis_type), BOTH)
    draw = jax.jit(lambda key: init(key, SHAPE, out_sharding=sharding))
    check(draw(jax.random.key(0)), init(jax.random.key(0), SHAPE), sharding)


def test_constants_are_born_sharded_too():
    sharding = NamedSharding(mesh_of(8, AxisType.Explicit), ROWS)
    check(ones()(None, SHAPE, out_sharding=sharding), np.ones(SHAPE, np.float32), sharding)


def test_jax_refuses_what_is_done_here():
    """When this fails JAX has learnt it, and the docstrings may say so."""
    sharding = NamedSharding(mesh_of(8, AxisType.Auto), ROWS)
    with pytest.raises(NotImplementedError):
        jax.nn.initializers.orthogonal()(jax.random.key(0), SHAPE, out_sharding=sharding)
