"""The normal distribution without its tails."""

import math
from dataclasses import dataclass, field
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from jinit.initializers.base import Affine, RandomDistribution, is_complex, set_floats
from jinit.initializers.polar import polar

__all__ = ["truncated_normal", "truncated_std"]

FARTHEST = 3.0  # standard deviations; beyond, float32 has too few numbers to draw from


@dataclass(frozen=True, repr=False)
class truncated_normal(RandomDistribution):
    r"""Draws from :math:`N(\text{mean}, \text{std}^2)` given that it lies in [low, high].

    ``std`` is that of the normal before it is cut. The bounds are numbers, as those of torch's
    ``trunc_normal_``, so ``std=0.02`` alone cuts nothing; ``relative=True`` counts them in
    standard deviations from the mean, as ``jax.nn.initializers.truncated_normal`` and Keras do
    (their default deviations are 0.01 and 0.05).

    Args:
        mean: The mean before the cut.
        std: The standard deviation before the cut, positive; with ``relative`` 0 will do.
        low: The lower bound.
        high: The upper bound, above ``low``.
        relative: Whether the bounds are ``mean + low * std`` and ``mean + high * std``;
            keyword-only.

    Returns:
        An initializer for floating-point and complex dtypes. Of a complex number the modulus is
        cut, at ``high``; then the mean is 0 and ``low`` is ``-high``.

    Raises:
        ValueError: If an argument is not finite or out of range, or the interval begins more than
            three standard deviations from the mean.

    Example:
        >>> sample = truncated_normal(std=0.02, relative=True)(jax.random.key(0), (1000,))
        >>> bool(0.035 < abs(sample).max() < 0.04)
        True

    Source:
        ``torch.nn.init.trunc_normal_``.
    """

    mean: float = 0.0
    std: float = 1.0
    low: float = -2.0
    high: float = 2.0
    relative: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        set_floats(self, "mean", "std", "low", "high")
        if self.std < 0 or (self.std == 0 and not self.relative):
            raise ValueError(f"std must be positive, got {self.std}")
        if self.high <= self.low:
            raise ValueError(f"high must lie above low, got [{self.low}, {self.high}]")
        low, high = self._cut()
        if low > FARTHEST or high < -FARTHEST:
            raise ValueError(
                f"[{self.low}, {self.high}] begins {min(abs(low), abs(high)):.3g} standard "
                f"deviations from the mean {self.mean}, and float32 has too few numbers there: "
                f"it must begin within {FARTHEST:g}"
            )

    def _cut(self) -> tuple[float, float]:
        """Returns the bounds in standard deviations from the mean."""
        if self.relative:
            return self.low, self.high
        return (self.low - self.mean) / self.std, (self.high - self.mean) / self.std

    def check(self, key: Any, shape: tuple[int, ...], dtype: jnp.dtype) -> None:
        """Raises for complex numbers around another mean than 0, or with two bounds."""
        super().check(key, shape, dtype)
        if is_complex(dtype) and (self.mean or self.low != -self.high):
            raise ValueError(
                f"{self!r} cannot make a {dtype}: a complex number is cut at its modulus, "
                "so the mean must be 0 and low must be -high"
            )

    def unit(self) -> Self:
        """Returns the distribution with mean 0 and standard deviation 1 before the cut."""
        return type(self)(0.0, 1.0, *self._cut())

    def affine(self, dtype: jnp.dtype) -> Affine:
        """Returns the standard deviation, over that of a sample of the unit, and the mean."""
        return self.std * (1 if is_complex(dtype) else math.sqrt(2)), self.mean

    def sample(self, key: Any, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        r"""Draws with a variance of 1/2 before the cut, or of 1 where it is complex."""
        if is_complex(dtype):
            mass = -math.expm1(-(self.high**2))
            return polar(key, shape, dtype, lambda u: jnp.sqrt(-jnp.log1p(-mass * u)))
        low, high = self.low / math.sqrt(2), self.high / math.sqrt(2)
        # erf rounds to -1 far out; its inverse there is -inf, and the cut an outlier.
        lowest = np.nextafter(dtype.type(-1), dtype.type(0))
        ranks = jax.random.uniform(key, shape, dtype, max(lowest, math.erf(low)), math.erf(high))
        return jnp.clip(jax.lax.erf_inv(ranks), low, high)


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
