"""Goodness of fit, written out with NumPy and independent of what it tests.

Seeds are fixed, so a test passes always or never. A correct sampler fails one comparison with a
probability of about ALPHA over the choice of the seed; there are a few hundred comparisons.
"""

import math

import numpy as np
from scipy.special import ndtr

ALPHA = 1e-6


def normal_cdf(mean, std):
    return lambda x: ndtr((x - mean) / std)


def uniform_cdf(low, high):
    return lambda x: np.clip((x - low) / (high - low), 0, 1)


def ks_distance(samples, cdf):
    """The largest distance between the empirical distribution function and the true one."""
    x = np.sort(np.asarray(samples, np.float64).ravel())
    steps = np.arange(len(x) + 1) / len(x)
    return max(np.max(steps[1:] - cdf(x)), np.max(cdf(x) - steps[:-1]))


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
