"""Moments and Kolmogorov-Smirnov distance: every factory, shape and dtype.

One comparison fails for a correct sampler with probability ALPHA, or that of five standard
errors, 6e-7: of all in this file one in a thousand choices of the seed. The seeds are fixed.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jinit.initializers import lecun_normal, normal, truncated_normal
from tests.initializers.cases import BILINEAR, DENSE, PLAIN, SCALING, SHAPES, distributions
from tests.initializers.statistics import Rounded, follows, moments_fit, rounded, uniform_cdf

NARROW = ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"]
RARE = """
    float8_e4m3 float8_e3m4 float8_e4m3b11fnuz float8_e4m3fnuz float8_e5m2fnuz float4_e2m1fn
""".split()
# what looks at no fans draws alike for every shape
CASES = [(case, shape) for shape in SHAPES for case in range(len(SCALING))]
CASES += [(len(SCALING) + case, DENSE) for case in range(len(PLAIN))]
cases = pytest.mark.parametrize(
    ("case", "shape"), CASES, ids=[f"{shape}-{(SCALING + PLAIN)[c][0]!r}" for c, shape in CASES]
)
pytestmark = pytest.mark.usefixtures("compile_fast")


def draw(init, seed, shape, dtype="float32"):
    sample = np.asarray(init(jax.random.key(seed), shape, dtype))
    assert (sample.shape, sample.dtype) == (shape, dtype)
    return sample


def check(sample, truth):
    assert moments_fit(sample, *truth.moments)
    assert follows(sample, truth.cdf)
    assert truth.reaches(sample)


@pytest.mark.cases
@cases
def test_float32(case, shape):
    init, truth = distributions(shape)[case]
    check(draw(init, case, shape), truth)


@pytest.mark.cases
@cases
def test_float64(case, shape):
    init, truth = distributions(shape)[case]
    with jax.enable_x64(True):
        sample = draw(init, case, shape, "float64")
    assert not np.array_equal(sample, sample.astype(np.float32))
    check(sample, truth)


@pytest.mark.cases
@pytest.mark.parametrize("dtype", NARROW)
@cases
def test_narrow_dtypes_hold_the_rounded_distribution(case, shape, dtype):
    init, truth = distributions(shape)[case]
    sample, expected = draw(init, case, shape, dtype), Rounded(truth, dtype)
    assert moments_fit(sample, *expected.moments)
    assert expected.follows(sample)


@pytest.mark.exact
@pytest.mark.parametrize("dtype", NARROW + RARE)
def test_narrow_dtypes_hold_the_rounded_draw(dtype):
    wide, narrow = (draw(normal(std=9.0), 4, DENSE, d) for d in ("float32", dtype))
    np.testing.assert_array_equal(narrow, rounded(wide.astype(np.float64), dtype))


@pytest.mark.parametrize(
    ("low", "high"), [(0.5, 3.0), (-0.2, 0.1), (1.8, 9.0), (-9.0, -0.5), (-2.0, 1e4)]
)
def test_a_normal_cut_anywhere(low, high):
    truth = stats.truncnorm((low - 1) / 0.5, (high - 1) / 0.5, 1.0, 0.5)
    sample = draw(truncated_normal(mean=1.0, std=0.5, low=low, high=high), 5, DENSE)
    assert follows(sample, truth.cdf)
    assert low - 1e-6 < sample.min()
    assert sample.max() < high + 1e-6


def test_a_far_cut_makes_no_outlier(monkeypatch):
    """erf is -1 in float32 beyond 5.6 deviations, and the inverse there -inf, cut to ``low``."""
    lowest = lambda key, shape, dtype, minval, maxval: jnp.full(shape, minval, dtype)  # noqa: E731
    monkeypatch.setattr(jax.random, "uniform", lowest)
    sample = truncated_normal(std=0.02).unit().sample(None, (1,), jnp.dtype("float32"))
    assert -6 < math.sqrt(2) * float(sample[0]) < -5


@pytest.mark.parametrize(("init", "shape", "limit"), BILINEAR, ids=[repr(c[0]) for c in BILINEAR])
def test_bilinear(init, shape, limit):
    sample = draw(init, 3, shape)
    assert follows(sample, uniform_cdf(-limit, limit))
    assert 0.999 * limit < abs(sample).max() <= np.float32(limit)


def test_the_tests_can_fail():
    """A plain normal is no truncated one, and two per cent of scale are seen."""
    truth = dict(distributions(DENSE))[lecun_normal(truncated=True)]
    theirs = np.asarray(jax.nn.initializers.lecun_normal()(jax.random.key(0), DENSE))
    assert follows(theirs, truth.cdf)
    assert not follows(draw(lecun_normal(), 0, DENSE), truth.cdf)
    assert not moments_fit(theirs * 1.02, *truth.moments)
    assert not Rounded(truth, "float8_e4m3fn").follows(rounded(theirs * 1.1, "float8_e4m3fn"))
