"""Complex numbers: modulus and phase, against their distributions."""

import math

import jax
import numpy as np
import pytest

from jinit.initializers import (
    constant,
    dirac,
    eye,
    normal,
    orthogonal,
    sparse,
    truncated_normal,
    uniform,
    variance_scaling,
    xavier_normal,
)
from jinit.initializers.polar import disc
from tests.initializers.statistics import follows, moments_fit, normal_cdf, uniform_cdf

pytestmark = pytest.mark.usefixtures("compile_fast")
SHAPE, FAN_IN = (5, 50, 400), 250
DTYPES = pytest.mark.parametrize("dtype", ["complex64", "complex128"])


def draw(init, dtype):
    with jax.enable_x64(dtype == "complex128"):
        sample = np.asarray(init(jax.random.key(11), SHAPE, dtype))
    assert sample.dtype == dtype
    assert follows(np.angle(sample), uniform_cdf(-np.pi, np.pi))
    return sample


@pytest.mark.cases
@DTYPES
@pytest.mark.parametrize("init", [normal(std=0.3), xavier_normal(gain=0.3, fans=(1, 1))], ids=repr)
def test_normal(init, dtype):
    sample = draw(init, dtype)
    for part in (sample.real, sample.imag):
        assert moments_fit(part, 0, 0.3 / math.sqrt(2), kurtosis=3)
        assert follows(part, normal_cdf(0, 0.3 / math.sqrt(2)))


@DTYPES
def test_uniform_is_a_disc(dtype):
    sample = draw(variance_scaling(2.0, distribution="uniform"), dtype)
    radius = math.sqrt(2 * 2.0 / FAN_IN)
    assert follows(abs(sample / radius) ** 2, uniform_cdf(0, 1))
    assert np.mean(abs(sample) ** 2) == pytest.approx(2.0 / FAN_IN, rel=0.01)


@DTYPES
def test_truncated_modulus(dtype):
    sample = draw(variance_scaling(2.0), dtype)
    assert np.mean(abs(sample) ** 2) == pytest.approx(2.0 / FAN_IN, rel=0.01)
    # before the cut at 2 deviations |z|^2 is exponential
    square = abs(sample) ** 2 * FAN_IN / 2.0 * (1 - 4 / math.expm1(4))
    assert follows(square, lambda x: np.clip(np.expm1(-x) / math.expm1(-4), 0, 1))


def test_the_mean_is_real():
    sample = np.asarray(normal(mean=2.0, std=0.1)(jax.random.key(0), (1000,), "complex64"))
    assert abs(sample.mean() - 2) < 5 * 0.1 / math.sqrt(1000)


def test_what_has_zeros_or_ones():
    np.testing.assert_array_equal(constant(1 + 2j)(None, (2,), "complex64"), 1 + 2j)
    np.testing.assert_array_equal(eye(2.0)(None, (2, 2), "complex64"), 2 * np.eye(2))
    assert dirac()(None, (3, 1, 1), "complex64").sum() == 1
    sample = np.asarray(sparse(0.5, 2.0)(jax.random.key(0), (100, 100), "complex64"))
    assert (np.count_nonzero(sample, axis=0) == 50).all()
    assert np.sqrt(np.mean(abs(sample) ** 2)) == pytest.approx(2.0 / math.sqrt(2), rel=0.05)


def test_a_unitary_matrix():
    sample = np.asarray(orthogonal(3.0)(jax.random.key(0), (30, 20), "complex64"))
    assert abs(sample.imag).max() > 0.5
    np.testing.assert_allclose(sample.conj().T @ sample, 9 * np.eye(20), atol=1e-4)


@pytest.mark.parametrize(
    ("init", "dtype", "kind", "message"),
    [
        (
            uniform(),
            "complex64",
            TypeError,
            r"^uniform\(low=0.0, high=1.0\) is an interval, it cannot make a complex64; "
            r"variance_scaling\(distribution='uniform'\) draws complex numbers from a disc$",
        ),
        (
            truncated_normal(mean=0.5),
            "complex64",
            ValueError,
            r"^truncated_normal\(mean=0.5, std=1.0, low=-2.0, high=2.0\) cannot make a complex64: "
            "a complex number is cut at its modulus, so the mean must be 0 and low must be -high$",
        ),
        (
            disc(),
            "float32",
            TypeError,
            r"^disc\(radius=1.0\) draws complex numbers, it cannot make a float32$",
        ),
    ],
)
def test_what_is_refused(init, dtype, kind, message):
    with pytest.raises(kind, match=message):
        init(jax.random.key(0), (2,), dtype)
