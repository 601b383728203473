"""Cuts anywhere: the tails of the normal distribution, and pieces of it however narrow.

Every Kolmogorov-Smirnov comparison fails for a correct sampler with probability 1e-6 over the
seeds, which are fixed.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jinit.initializers import normal, scaled, truncated_normal, uniform
from tests.initializers.statistics import follows, ks_distance, rounded, uniform_cdf

INF, COUNT = math.inf, 50_000
CUTS = [
    (2.9, 2.9001),
    (-2.9001, -2.9),
    (0.5, 0.5001),
    (0.0, 1e-6),
    (-1e-4, 1e-4),
    (1e-3, 0.9),
    (0.99, 1.98),
    (1.0, 1.5),
    (1.0, INF),
    (3.0, INF),
    (-INF, -8.0),
    (8.0, 8.01),
    (8.0, 20.0),
    (-40.0, -39.0),
    (100.0, INF),
    (-0.2, INF),
    (-INF, INF),
    (-8.0, 8.0),
]


def draw(init, dtype="float32", count=COUNT, seed=1):
    return np.asarray(init(jax.random.key(seed), (count,), dtype))


@pytest.mark.cases
@pytest.mark.parametrize(("low", "high"), CUTS)
def test_a_cut_follows_its_distribution_and_stays_inside(low, high):
    sample = draw(truncated_normal(low=low, high=high))
    assert follows(sample, stats.truncnorm(low, high).cdf)
    assert np.float32(low) <= sample.min() <= sample.max() <= np.float32(high)


@pytest.mark.parametrize(("low", "high"), [(2.9, 2.9001), (8.0, 8.0001), (1.0, INF), (40.0, INF)])
def test_float64_is_drawn_as_finely(low, high):
    with jax.enable_x64(True):
        sample = draw(
            truncated_normal(
                mean=-3.0,
                std=0.02,
                low=-3 + 0.02 * low,
                high=INF if high == INF else -3 + 0.02 * high,
            ),
            "float64",
        )
    low, high = (sample.min() + 3) / 0.02, (sample.max() + 3) / 0.02
    assert sample.dtype == "float64"
    assert len(np.unique(sample)) > 0.99 * COUNT
    assert low < high


def test_a_narrow_cut_draws_every_number_that_float32_has_there():
    low, high = np.float32(2.9), np.float32(2.9001)
    numbers = round((high - low) / np.spacing(low)) + 1
    assert len(np.unique(draw(truncated_normal(low=2.9, high=2.9001)))) == numbers


def test_a_mean_that_cancels_costs_no_digits():
    """Beyond 0 float32 has many more numbers than beyond 2.9, where the normal is cut."""
    sample = draw(truncated_normal(mean=-2.9, low=0.0, high=1e-4))
    assert len(np.unique(sample)) > 0.98 * COUNT
    assert follows(sample, stats.truncnorm(2.9, 2.9001, -2.9).cdf)


def test_an_interval_between_two_numbers_of_float32_is_rounded_to_them():
    sample = draw(truncated_normal(mean=1.0, std=1.0, low=1.5, high=1.5 + 1e-9))
    np.testing.assert_array_equal(sample, np.float32(1.5))


def test_the_moments_far_out_are_those_of_the_truncated_normal():
    truth = stats.truncnorm(8, INF, 2.0, 0.5)
    sample = draw(truncated_normal(mean=2.0, std=0.5, low=6.0, high=INF)).astype(np.float64)
    # five standard errors
    assert abs(sample.mean() - truth.mean()) < 5 * truth.std() / math.sqrt(COUNT)
    assert abs(sample.std() / truth.std() - 1) < 5 * math.sqrt(8 / (4 * COUNT))


def test_no_end_without_a_bound_makes_an_outlier(monkeypatch):
    """Ranks round to 1 in float32, where the inverse of erf is infinite."""
    highest = lambda key, shape, dtype, *ends: jnp.full(shape, ends[-1], dtype)  # noqa: E731
    monkeypatch.setattr(jax.random, "uniform", highest)
    for high in (100.0, INF):
        unit = truncated_normal(low=-0.2, high=high).unit()
        sample = unit.sample(None, (1,), jnp.dtype("float32"))
        assert 5 < math.sqrt(2) * float(sample[0]) < 6


@pytest.mark.cases
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float8_e4m3fn"])
@pytest.mark.parametrize(
    "init",
    [
        truncated_normal(std=0.7, low=0.3, high=0.9),
        truncated_normal(std=0.02, relative=True),
        truncated_normal(low=2.9, high=2.9001),
        uniform(low=-0.1, high=0.3),
        uniform(low=1000.0, high=1000.0001),
        scaled(uniform(low=0.1, high=0.3), -1.7),
    ],
    ids=repr,
)
def test_nothing_lies_beyond_a_bound_as_the_dtype_holds_it(init, dtype):
    low, high = init.resolve((1,)).affine(jnp.dtype("float32"))[2:]
    sample = draw(init, dtype).astype(np.float64)
    low, high = rounded(np.array([low, high]), dtype).astype(np.float64)
    assert low <= sample.min()
    assert sample.max() <= high


def test_a_uniform_interval_may_be_a_point_or_narrow_or_huge():
    np.testing.assert_array_equal(draw(uniform(low=0.3, high=0.3)), np.float32(0.3))
    np.testing.assert_array_equal(
        np.unique(draw(uniform(low=1.0, high=1.0000001))), np.float32([1.0, 1.0000001])
    )
    for low, high in ((-1.7e38, 1.7e38), (0.0, 3e38), (1e-30, 3e-30), (-1e6, 1e-6)):
        assert follows(draw(uniform(low=low, high=high)), uniform_cdf(low, high))


def test_cuts_hold_under_jit_and_vmap_with_legacy_keys_and_strict_promotion():
    init = truncated_normal(low=2.9, high=2.9001)
    expected = draw(init, count=100)
    with jax.numpy_dtype_promotion("strict"), jax.checking_leaks():
        jitted = jax.jit(lambda key: init(key, (100,)))(jax.random.key(1))
    np.testing.assert_array_equal(jitted, expected)
    rows = jax.vmap(lambda key: init(key, (100,)))(jax.random.PRNGKey(1)[None])
    np.testing.assert_array_equal(rows[0], expected)


def test_the_comparison_sees_what_ranks_in_float32_did():
    """Ranks of erf between 2.9 and 2.9001 take some twenty values."""
    ranks = np.linspace(math.erf(2.9 / math.sqrt(2)), math.erf(2.9001 / math.sqrt(2)), COUNT)
    sample = math.sqrt(2) * np.asarray(jax.lax.erf_inv(ranks.astype(np.float32)))
    assert ks_distance(sample, stats.truncnorm(2.9, 2.9001).cdf) > 0.02
    assert not follows(sample, stats.truncnorm(2.9, 2.9001).cdf)
    assert len(np.unique(sample)) < 30


def test_a_cut_may_not_be_nowhere():
    with pytest.raises(ValueError, match=r"^high must be a number, got nan$"):
        truncated_normal(high=math.nan)
    with pytest.raises(ValueError, match=r"begins 2e\+06 standard deviations from the mean 0\.0"):
        truncated_normal(low=2e6, high=INF)
    with pytest.raises(ValueError, match=r"^std must be finite, got inf$"):
        normal(std=INF)
