"""The tails of the normal distribution, and narrow pieces of it, to the last digit."""

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jinit.initializers.base import RandomDistribution
from jinit.typing import Key

__all__ = ["Tail"]

NODES = 32  # of Gauss and Legendre; a hazard rate is all but linear
FLAT = 1e-9  # less of the hazard, and the density is the same all over
DEGREES = {4: 24, 8: 64}  # of the polynomial, by the bytes of the dtype: errors of 1e-8 and 1e-14


@dataclass(frozen=True, repr=False)
class Tail(RandomDistribution):
    r"""Draws how far beyond ``low`` a standard normal number lies that is cut to a width there.

    With the survival function :math:`S`, the hazard rate :math:`h = -S'/S` and
    :math:`H(d) = \int_0^d h(\text{low} + s)\,ds`, it is :math:`H^{-1}` of a standard exponential
    number that is cut at :math:`H(\text{width})`. Nothing there is a small difference of large
    numbers, as the ranks of the normal are. :math:`H^{-1}(e) / e` is smooth: it is computed once,
    in float64, and drawn as a polynomial.

    Args:
        low: Where it begins, not negative.
        width: How wide it is; inf will do.

    Returns:
        A distribution over [0, width].

    Example:
        >>> beyond = Tail(8.0, math.inf)(jax.random.key(0), (10_000,))
        >>> bool(abs(beyond.mean() - 0.1213) < 0.01)  # E[x | x > 8] is 8.1213
        True

    Source:
        The inverse of the distribution function, written with hazard rates.
    """

    low: float
    width: float

    def sample(self, key: Key, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        """Draws distances from the lower bound."""
        ranks = jax.random.uniform(key, shape, dtype)
        # No rank lies closer to 1 than half a unit in the last place.
        most = -math.log(float(jnp.finfo(dtype).epsneg) / 2)
        ends = float(_integral(self.low, np.array(self.width))) if self.width < most else math.inf
        if ends < FLAT:
            return ranks * self.width
        exponential = -jnp.log1p(math.expm1(-ends) * ranks)
        reach = min(ends, most)
        series = _inverse_integral(self.low, reach, DEGREES[dtype.itemsize])
        ratio = _chebyshev(series.tolist(), exponential * (2 / reach) - 1)
        return jnp.minimum(exponential * ratio, self.width)


def _hazard(points: np.ndarray) -> np.ndarray:
    from scipy.special import erfcx

    return math.sqrt(2 / math.pi) / erfcx(points / math.sqrt(2))


def _integral(low: float, widths: np.ndarray) -> np.ndarray:
    """Integrates the hazard rate of a standard normal number from ``low`` over each width."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    return widths * (_hazard(low + widths[..., None] * (nodes + 1) / 2) @ (weights / 2))


@functools.lru_cache(maxsize=256)
def _inverse_integral(low: float, reach: float, degree: int) -> np.ndarray:
    """Expands the inverse of the integral, over its argument, in Chebyshev's polynomials."""
    points = np.polynomial.chebyshev.chebpts1(degree + 1)
    goals = (points + 1) / 2 * reach
    widths = goals / _hazard(np.array(low))
    for _ in range(20):  # Newton's: the integral is convex, so it comes from above and stays there
        widths = widths - (_integral(low, widths) - goals) / _hazard(low + widths)
    return np.polynomial.chebyshev.chebfit(points, widths / goals, degree)


def _chebyshev(series: list[float], x: jax.Array) -> jax.Array:
    """Evaluates a series by Clenshaw's recurrence."""
    last, before = jnp.zeros_like(x), jnp.zeros_like(x)
    for coefficient in reversed(series[1:]):
        last, before = 2 * x * last - before + coefficient, last
    return x * last - before + series[0]
