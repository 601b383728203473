import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jinit import initializers
from jinit.initializers import (
    bilinear,
    kaiming_normal,
    lecun_normal,
    variance_scaling,
    xavier_uniform,
)
from jinit.initializers.fans import axis_roles, compute_fans


@pytest.mark.parametrize(
    ("shape", "axes", "fans"),
    [
        ((64, 128), {}, (64, 128)),
        ((3, 32, 64), {}, (96, 192)),
        ((3, 3, 32, 64), {}, (288, 576)),
        ((3, 3, 3, 16, 24), {}, (432, 648)),
        ((3, 3, 8, 64), {}, (72, 576)),
        ((64, 32, 3, 3), {"in_axis": 1, "out_axis": 0}, (288, 576)),
        ((5, 4, 8, 16), {"in_axis": (0, 1), "out_axis": (2, 3)}, (20, 128)),
        ((7, 5, 6), {"batch_axis": 0}, (5, 6)),
        ((10,), {"in_axis": (), "out_axis": -1}, (1, 10)),
        ((10,), {"in_axis": 0, "out_axis": ()}, (10, 1)),
        ((0, 5), {}, (0, 5)),
        ((0, 3, 4), {}, (0, 0)),
    ],
)
def test_the_fans_of_a_shape(shape, axes, fans):
    assert compute_fans(shape, **axes) == fans


@pytest.mark.usefixtures("compile_fast")
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((3, 2, 4, 6), {}),
        ((2, 3, 4, 5), {"in_axis": (0, 2), "out_axis": 3}),
        ((7, 2, 5), {"batch_axis": (0,)}),
    ],
)
def test_jaxs_numbers_on_the_same_axes(shape, axes):
    ours = xavier_uniform(**axes)(jax.random.key(0), shape)
    theirs = jax.nn.initializers.glorot_uniform(**axes)(jax.random.key(0), shape)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_a_vector_has_no_default_fans():
    message = (
        "shape (3,) has no axis -2, so its fans are unknown: give in_axis and out_axis "
        "(for a vector in_axis=(), out_axis=-1), or the fans themselves"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        lecun_normal()(jax.random.key(0), (3,))
    assert lecun_normal(fans=(4, 1)).std((3,)) == 0.5
    assert lecun_normal(fans=(4, None)).std((3,)) == 0.5
    assert xavier_uniform(fans=(3, 3)).std((3,)) ** 2 == pytest.approx(1 / 3)  # as in Keras


def test_a_fan_that_is_not_given_is_the_shapes():
    assert xavier_uniform(fans=(None, 6)).std((3, 3, 2, 8)) ** 2 == pytest.approx(2 / (18 + 6))
    with pytest.raises(ValueError, match="has no axis -2"):
        xavier_uniform(fans=(4, None)).std((3,))


def test_an_axis_has_one_role():
    message = "in_axis=0, out_axis=-1 and batch_axis=(0,) name an axis of shape (2, 3)"
    with pytest.raises(ValueError, match=re.escape(message)):
        axis_roles((2, 3), 0, -1, (0,))


def _axes(rng, rank):
    """One axis or a tuple of up to two, counted from either end; the tuple may repeat one."""
    if rng.random() < 0.5:
        return int(rng.integers(-rank, rank))
    return tuple(int(axis) for axis in rng.integers(-rank, rank, rng.integers(0, 3)))


@pytest.mark.thorough
@pytest.mark.parametrize("mode", ["fan_in", "fan_out", "fan_avg"])
def test_every_choice_of_axes_that_jax_takes_has_jaxs_variance(mode):
    """Axes that overlap, repeat and are missing, in ranks 1 to 5: JAX scales a known draw."""
    rng, key = np.random.default_rng(0), jax.random.key(0)
    for _ in range(40):
        shape = tuple(int(size) for size in rng.integers(1, 5, rng.integers(1, 6)))
        in_axis, out_axis, batch_axis = (_axes(rng, len(shape)) for _ in range(3))
        axes = {"in_axis": in_axis, "out_axis": out_axis, "batch_axis": batch_axis}
        if len(shape) == 1 and in_axis == -2:
            continue  # JAX refuses what it takes for its default
        theirs = jax.nn.initializers.variance_scaling(2.0, mode, "normal", **axes)(key, shape)
        std = np.ravel(theirs)[0] / np.ravel(jax.random.normal(key, shape))[0]
        assert variance_scaling(2.0, mode, "normal", **axes).std(shape) == pytest.approx(std), (
            shape,
            axes,
        )


@pytest.mark.parametrize(
    "axes", [(2, -1, ()), (-2, -4, ()), (0, 1, 3), ((0, 3), 1, ()), (-2, 0, 1)]
)
@pytest.mark.parametrize("shape", [(2, 3, 4), (5,)])
def test_axes_that_a_shape_lacks_are_refused_as_in_jax(axes, shape):
    named = dict(zip(("in_axis", "out_axis", "batch_axis"), axes, strict=True))
    for module in (jax.nn.initializers, initializers):
        init = module.variance_scaling(1.0, "fan_avg", "normal", **named)
        if shape == (2, 3, 4) and axes in [(2, -1, ()), (-2, 0, 1)]:
            assert init(jax.random.key(0), shape).shape == shape
        else:
            with pytest.raises((IndexError, ValueError)):
                init(jax.random.key(0), shape)


JAXS = {
    "scale": 2.0,
    "mode": "fan_out",
    "distribution": "uniform",
    "stddev": 0.3,
    "value": 0.5,
    "in_axis": 1,
    "out_axis": 2,
    "batch_axis": [0],
    "column_axis": 0,
    "lower": -1.0,
    "upper": 0.5,
    "dtype": jnp.bfloat16,
}
FACTORIES = [
    name
    for name in dir(jax.nn.initializers)
    if name.islower() and name[0] != "_" and name not in ("ones", "zeros")
]


@pytest.mark.cases
@pytest.mark.parametrize("name", FACTORIES)
def test_every_argument_that_jax_takes_is_taken_and_draws_the_same(name):
    """Each alone and all at once, by name, in float32: jax draws in half precision else.

    Only the default sizes differ: normal has a deviation of 1 here, and uniform ends at 1.
    """
    theirs, ours = getattr(jax.nn.initializers, name), getattr(initializers, name)
    parameters = inspect.signature(theirs).parameters
    needed = {
        p: JAXS[p]
        for p in parameters
        if parameters[p].default is inspect.Parameter.empty or p in ("stddev", "scale")
    }
    choices = [
        needed,
        *({**needed, p: JAXS[p]} for p in parameters),
        {p: JAXS[p] for p in parameters},
    ]
    key, shape = jax.random.key(0), (3, 4, 6)
    # jax cuts what is named after Glorot, He and LeCun
    cut = {"truncated": True} if name.endswith("_normal") and name != "truncated_normal" else {}
    for given in choices:
        sample, truth = ours(**given, **cut)(key, shape), theirs(**given)(key, shape, jnp.float32)
        assert sample.dtype == given.get("dtype", "float32")
        sample = ours(**given, **cut)(key, shape, jnp.float32)
        if name == "delta_orthogonal":  # another matrix of the same distribution
            sample, truth = (np.linalg.norm(x, axis=-1) for x in (sample, truth))
        np.testing.assert_allclose(sample, truth, rtol=2e-5, atol=1e-6, err_msg=str(given))


def test_embeddings_of_flax_have_the_variance_that_flax_gives_them():
    embed = variance_scaling(1.0, "fan_in", "normal", out_axis=0)
    assert embed.std((50, 32)) == pytest.approx(32**-0.5)
    sample = embed(jax.random.key(0), (500, 320))
    assert np.std(sample) == pytest.approx(320**-0.5, rel=0.01)  # 6 standard errors


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 2, 3), (0, 0)])
def test_an_empty_kernel_is_empty_and_no_error(shape):
    assert kaiming_normal()(jax.random.key(0), shape).shape == shape
    assert xavier_uniform()(jax.random.key(0), shape).shape == shape


def test_a_negative_size_is_an_error():
    with pytest.raises(ValueError, match=r"^shape must hold no negative size, got \(-2, 3\)$"):
        lecun_normal()(jax.random.key(0), (-2, 3))


@pytest.mark.parametrize("fans", [(0, 1), (1, 2, 3), (-1, 4), (float("inf"), 1)])
def test_given_fans_are_two_positive_numbers(fans):
    message = f"fans must be two positive numbers, got {fans}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        lecun_normal(fans=fans)


def test_bilinear_needs_two_inputs():
    with pytest.raises(ValueError, match=r"^in_axis must be the axes of two inputs, got -2$"):
        bilinear(in_axis=-2)
    with pytest.raises(ValueError, match=r"^convention must be 'keras' or 'torch', got 'flax'$"):
        bilinear("flax")


def test_bilinear_counts_products():
    # an output sums 6 products; the inputs reach 5 * 3, 5 * 3, 5 * 2, 5 * 2 and 5 * 2 of them
    assert bilinear().shape_fans((2, 3, 5)) == (6, (2 * 15 + 3 * 10) / 5)
    assert bilinear()(jax.random.key(0), (0, 0, 5)).shape == (0, 0, 5)
