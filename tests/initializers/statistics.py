"""Goodness of fit, written out with NumPy and independent of what it tests.

Seeds are fixed, so a test passes always or never. A correct sampler fails one comparison with a
probability of about ALPHA over the choice of the seed; there are a few hundred comparisons.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy import stats
from scipy.special import ndtr, ndtri

ALPHA = 1e-6


def normal_cdf(mean, std):
    return lambda x: ndtr((x - mean) / std)


def uniform_cdf(low, high):
    return lambda x: np.clip((x - low) / (high - low), 0, 1)


def ks_distance(samples, cdf):
    """The largest distance between the empirical distribution function and the true one."""
    x = np.sort(np.asarray(samples, np.float64).ravel())
    steps = np.arange(len(x) + 1) / len(x)
    truth = cdf(x)
    return max(np.max(steps[1:] - truth), np.max(truth - steps[:-1]))


def ks_threshold(n):
    """What a correct sampler exceeds with probability ALPHA (Dvoretzky, Kiefer, Wolfowitz)."""
    return math.sqrt(math.log(2 / ALPHA) / (2 * n))


def follows(samples, cdf):
    return ks_distance(samples, cdf) < ks_threshold(np.size(samples))


def moments_fit(samples, mean, std, kurtosis):
    """Whether mean and standard deviation lie within five standard errors."""
    x = np.asarray(samples, np.float64).ravel()
    mean_error = std / math.sqrt(len(x))
    std_error = std * math.sqrt((kurtosis - 1) / (4 * len(x)))
    return abs(x.mean() - mean) < 5 * mean_error and abs(x.std() - std) < 5 * std_error


def rounded(values, dtype):
    """Rounds float64 numbers to a narrow dtype, the nearest finite number there is."""
    limit = float(jnp.finfo(dtype).max)
    # by way of float32, in which they are drawn
    return np.clip(values, -limit, limit).astype(np.float32).astype(dtype)


class Unit(NamedTuple):
    """A distribution function, its inverse, and where it is 0 and 1."""

    cdf: Callable
    ppf: Callable
    ends: tuple[float, float]


OUTSIDE = ndtr(-2.0)  # on either side of the cut
UNITS = {
    "normal": Unit(ndtr, ndtri, (-math.inf, math.inf)),
    "cut": Unit(
        lambda x: np.clip((ndtr(x) - OUTSIDE) / (1 - 2 * OUTSIDE), 0, 1),
        lambda rank: ndtri(OUTSIDE + rank * (1 - 2 * OUTSIDE)),
        (-2, 2),
    ),
    "flat": Unit(lambda x: np.clip(x, 0, 1), lambda rank: rank, (0, 1)),
}
# mean, standard deviation and kurtosis of each
MOMENTS = {
    "normal": (0.0, 1.0, 3.0),
    "flat": (0.5, 1 / math.sqrt(12), 1.8),
    "cut": (0.0, float(stats.truncnorm(-2, 2).std()), float(stats.truncnorm(-2, 2).stats("k")) + 3),
}


class Truth(NamedTuple):
    """A distribution: ``shift`` plus ``scale`` times one of ``UNITS``."""

    kind: str
    scale: float
    shift: float = 0.0

    @property
    def moments(self):
        mean, std, kurtosis = MOMENTS[self.kind]
        return self.shift + self.scale * mean, self.scale * std, kurtosis

    def cdf(self, x):
        return UNITS[self.kind].cdf((x - self.shift) / self.scale)

    def reaches(self, samples):
        """Whether the extremes are those of a bounded distribution, and not beyond."""
        low, high = UNITS[self.kind].ends
        if math.isinf(high):
            return True
        least, most = ((float(x) - self.shift) / self.scale for x in (samples.min(), samples.max()))
        return low - 1e-6 < least < low + 0.01 and high - 0.01 < most < high + 1e-6

    def quantiles(self):
        return self.shift + self.scale * UNITS[self.kind].ppf((np.arange(20_000) + 0.5) / 20_000)


class Rounded:
    """A distribution after rounding to a narrow dtype, from its quantiles.

    Attributes:
        moments: Mean, standard deviation and kurtosis.
    """

    def __init__(self, truth, dtype):
        self._sorted = x = rounded(truth.quantiles(), dtype).astype(np.float64)
        self.moments = x.mean(), x.std(), np.mean((x - x.mean()) ** 4) / x.std() ** 4

    def follows(self, samples):
        """Whether samples follow it; the steps of both distribution functions coincide."""
        x = np.sort(np.asarray(samples).astype(np.float64).ravel())
        atoms = np.concatenate([x[np.flatnonzero(np.diff(x, append=np.inf))], self._sorted])
        functions = [np.searchsorted(s, atoms, "right") / len(s) for s in (x, self._sorted)]
        return np.max(np.abs(functions[0] - functions[1])) < ks_threshold(len(x))
