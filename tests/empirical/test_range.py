"""Sizes over the whole range of float32: no square leaves it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jinit
from jinit._arithmetic import rms


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def model(params, x):
    for w in params[:-1]:
        x = jax.nn.relu(x @ w)
    return x @ params[-1]


def calibrate(size, x=None, **options):
    params = [size * normal(i, 16, 16) for i in range(3)]
    slope = normal(9, 64, 16)
    x = normal(8, 64, 16) if x is None else x
    return jinit.calibrate(
        params, model, x, lambda y: jnp.sum(y * slope), samples=1, **options
    )  # fmt: skip


SIZES = [1e-33, 1e-22, 3e17, 1e33]


@pytest.mark.cases
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_weights_of_any_size_give_the_same_result(optimizer, size):
    found, expected = (calibrate(s, optimizer=optimizer) for s in (size, 1.0))
    for one, other in zip(found.params, expected.params, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.multipliers, expected.multipliers, rtol=1e-3)
    assert found.report.null == ()
    for row in found.report.rows:
        assert row.activation_after == pytest.approx(1, rel=1e-3)
        assert row.update_after == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("size", SIZES)
def test_empirical_init_scales_weights_of_any_size(size):
    params = [size * normal(i, 16, 16) for i in range(3)]
    x = normal(8, 64, 16)
    y, tuned = np.float64(x), jinit.empirical_init(params, model, x, jnp.sum, samples=1)
    for w in tuned:
        y = y @ np.float64(w)
        assert np.sqrt(np.mean(y**2)) == pytest.approx(1, rel=1e-4)
        y = np.maximum(y, 0)


@pytest.mark.cases
@pytest.mark.parametrize("size", [1e-15, 1e15])
def test_inputs_of_any_size_are_followed(size):
    found = calibrate(1.0, size * normal(8, 64, 16), optimizer="adam")
    assert [row.activation_after for row in found.report.rows] == pytest.approx([1] * 3, rel=1e-3)
    assert [row.update_after for row in found.report.rows] == pytest.approx([1] * 3, rel=1e-3)


@pytest.mark.thorough
def test_scales_that_float32_has_not_are_refused():
    with pytest.raises(ValueError, match=r"the backward scale of 0 is .*beyond the range of float"):
        calibrate(1e-22, optimizer="sgd", mode="explicit")


def reference(x, axes=None):
    wide = np.asarray(x).astype(np.complex128)
    return np.sqrt(np.mean(abs(wide) ** 2, axes))


@pytest.mark.cases
@pytest.mark.parametrize("size", [1.2e-37, 1e-30, 8.5e-21, 1.0, 1e19, 1e30, 1.6e38])
@pytest.mark.parametrize("shape", [(), (7,), (3, 5)])
def test_an_rms_is_that_of_float64(shape, size):
    x = size * jax.random.uniform(jax.random.key(0), shape, minval=0.5, maxval=1.5)
    for value in (x, x * (0.6 + 0.8j), -x):
        for run in (rms, jax.jit(rms)):
            assert float(run(value)) == pytest.approx(reference(value), rel=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_an_rms_of_half_numbers_is_float32(dtype):
    x = (300 * normal(0, 64)).astype(dtype)
    assert rms(x).dtype == jnp.float32
    assert float(rms(x)) == pytest.approx(reference(x), rel=1e-6)


def test_an_rms_of_zeros_nothing_infinities_and_nan():
    assert float(rms(jnp.zeros(3))) == 0
    assert float(rms(jnp.zeros((0, 3)))) == 0
    assert rms(jnp.zeros((2, 0)), (1,)).shape == (2,)
    assert float(rms(jnp.array([1.0, jnp.inf]))) == np.inf
    assert np.isnan(float(rms(jnp.array([1.0, jnp.nan]))))


@pytest.mark.thorough
def test_an_rms_differentiates_and_maps_as_its_formula():
    x = normal(0, 4, 6)
    np.testing.assert_allclose(rms(x, (1,)), jax.vmap(rms)(x), rtol=1e-6)
    np.testing.assert_allclose(rms(x, (1,)), reference(x, 1), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(rms)(x), x / (x.size * rms(x)), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(jax.grad(rms)(0 * x), 0 * x)


@pytest.mark.thorough
def test_a_coordinate_check_measures_changes_of_any_size():
    def make(width):
        weights = [1e-25 * normal(0, 8, width), normal(1, width, 4)]
        return weights, lambda p, x: x @ p[0] @ p[1]

    x = normal(2, 16, 8)
    check = jinit.coord_check(make, [8, 16], x, lambda y: 1e-25 * jnp.sum(y), steps=1)
    for width in (8, 16):
        weights = np.float64(make(width)[0][0])
        row = next(r for r in check.rows if (r.width, r.step, r.path) == (width, 0, "0"))
        assert row.activation == pytest.approx(reference(np.float64(x) @ weights), rel=1e-5)
        assert row.activation < 1e-23
