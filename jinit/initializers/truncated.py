"""The normal distribution without its tails."""

import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from jinit._known import known_arguments
from jinit.initializers.base import (
    RARE,
    Affine,
    RandomDistribution,
    Unit,
    is_complex,
    set_floats,
)
from jinit.initializers.polar import polar
from jinit.initializers.tails import Tail
from jinit.typing import Key

__all__ = ["truncated_normal", "truncated_std"]

FARTHEST = 1e6  # standard deviations; beyond, float64 has too few digits for the bounds


@known_arguments
@dataclass(frozen=True, repr=False)
class truncated_normal(RandomDistribution):
    r"""Draws from :math:`N(\text{mean}, \text{std}^2)` given that it lies in [low, high].

    ``std`` is that of the normal before it is cut. The bounds are numbers, as those of torch's
    ``trunc_normal_``, so ``std=0.02`` alone cuts nothing; ``relative=True`` counts them in
    standard deviations from the mean, as ``jax.nn.initializers.truncated_normal`` and Keras do
    (their default deviations are 0.01 and 0.05). Any interval is drawn as finely as the dtype
    holds its numbers, in the tails and however narrow. All arguments are keyword-only: the first
    is the mean in torch, and the standard deviation in JAX.

    Args:
        mean: The mean before the cut.
        std: The standard deviation before the cut, positive; with ``relative`` 0 will do.
        low: The lower bound; -inf is none.
        high: The upper bound, above ``low``; inf is none.
        relative: Whether the bounds are ``mean + low * std`` and ``mean + high * std``. JAX's
            ``stddev``, ``lower`` and ``upper`` are names of ``std``, ``low`` and ``high`` that
            imply it.
        dtype: What a call without a dtype draws; None is float32.

    Returns:
        An initializer for floating-point and complex dtypes. Of a complex number the modulus is
        cut, at ``high``; then the mean is 0 and ``low`` is ``-high``.

    Raises:
        ValueError: If an argument is nan or out of range, or the interval begins more than
            a million standard deviations from the mean.
        TypeError: If an argument is given by position.

    Example:
        >>> sample = truncated_normal(std=0.02, relative=True)(jax.random.key(0), (1000,))
        >>> bool(0.035 < abs(sample).max() < 0.04)
        True

    Source:
        ``torch.nn.init.trunc_normal_``.
    """

    mean: float = field(default=0.0, kw_only=True)
    std: float = field(default=1.0, kw_only=True)
    low: float = field(default=-2.0, kw_only=True)
    high: float = field(default=2.0, kw_only=True)
    relative: bool = field(default=False, kw_only=True, metadata=RARE)

    def __post_init__(self) -> None:
        set_floats(self, "mean", "std")
        set_floats(self, "low", "high", finite=False)
        if self.std < 0 or (self.std == 0 and not self.relative):
            raise ValueError(f"std must be positive, got {self.std}")
        if self.high <= self.low:
            raise ValueError(f"high must lie above low, got [{self.low}, {self.high}]")
        low, high = self._cut()
        if low > FARTHEST or high < -FARTHEST:
            raise ValueError(
                f"[{self.low}, {self.high}] begins {min(abs(low), abs(high)):.3g} standard "
                f"deviations from the mean {self.mean}: it must begin within {FARTHEST:g}"
            )

    def _cut(self) -> tuple[float, float]:
        """Returns the bounds in standard deviations from the mean."""
        if self.relative:
            return self.low, self.high
        return (self.low - self.mean) / self.std, (self.high - self.mean) / self.std

    def _bounds(self) -> tuple[float, float]:
        """Returns the bounds as numbers."""
        if not self.relative:
            return self.low, self.high
        if not self.std:
            return self.mean, self.mean
        return self.mean + self.low * self.std, self.mean + self.high * self.std

    def check(self, key: Key | None, shape: tuple[int, ...], dtype: jnp.dtype) -> None:
        """Raises for complex numbers around another mean than 0, or with two bounds."""
        super().check(key, shape, dtype)
        if is_complex(dtype) and (self.mean or self.low != -self.high):
            raise ValueError(
                f"{self!r} cannot make a {dtype}: a complex number is cut at its modulus, "
                "so the mean must be 0 and low must be -high"
            )

    def unit(self) -> Unit:
        """Returns the distribution with mean 0 and deviation 1 before the cut, or of its tail."""
        low, high = self._cut()
        if _is_tail(low, high):
            width = self.high - self.low
            return Tail(max(low, -high), width if self.relative else width / self.std)
        return type(self)(low=low, high=high)

    def affine(self, dtype: jnp.dtype) -> Affine:
        """Returns the standard deviation, over that of a sample of the unit, and the mean.

        Of a tail the summand is the bound where it begins: the digits of what is drawn beyond it
        are not lost in a sum.
        """
        if is_complex(dtype):
            return Affine(self.std, self.mean)
        bounds = self._bounds()
        if not _is_tail(*self._cut()):
            return Affine(self.std * math.sqrt(2), self.mean, *bounds)
        upward = self._cut()[0] >= 0
        return Affine(self.std if upward else -self.std, bounds[not upward], *bounds)

    def sample(self, key: Key, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        r"""Draws with a variance of 1/2 before the cut, or of 1 where it is complex."""
        if is_complex(dtype):
            mass = -math.expm1(-(self.high**2))
            return polar(key, shape, dtype, lambda u: jnp.sqrt(-jnp.log1p(-mass * u)))
        low, high = self.low / math.sqrt(2), self.high / math.sqrt(2)
        # erf rounds to -1 and 1 far out; its inverse there is infinite, and the cut an outlier.
        lowest = np.nextafter(dtype.type(-1), dtype.type(0))
        ranks = jax.random.uniform(key, shape, dtype, max(lowest, math.erf(low)), math.erf(high))
        return jnp.clip(jax.lax.erf_inv(jnp.minimum(ranks, -lowest)), low, high)


def _is_tail(low: float, high: float) -> bool:
    """Returns whether a cut leaves the ranks of erf too few numbers to draw from.

    They lie close to 1 in a tail, and close together in a narrow interval.
    """
    nearest = max(low, -high)
    return nearest >= 1 or (nearest >= 0 and high - low < 1)


def truncated_std(cut: float, *, is_complex: bool = False) -> float:
    r"""Returns the standard deviation of a unit normal which is cut at ``-cut`` and ``cut``.

    :math:`\sqrt{1 - 2 c \varphi(c) / (2 \Phi(c) - 1)}`, and for a complex number with the modulus
    cut :math:`\sqrt{1 - c^2 / (e^{c^2} - 1)}`.

    Args:
        cut: Where it is cut, positive.
        is_complex: Whether the numbers are complex.

    Returns:
        The standard deviation.

    Example:
        >>> round(truncated_std(2.0), 6), round(truncated_std(2.0, is_complex=True), 6)
        (0.879626, 0.961962)
    """
    if is_complex:
        return math.sqrt(1 - cut**2 / math.expm1(cut**2))
    density = math.exp(-(cut**2) / 2) * math.sqrt(2 / math.pi)
    return math.sqrt(1 - cut * density / math.erf(cut / math.sqrt(2)))
