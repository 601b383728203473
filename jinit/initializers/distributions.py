"""Initializers that look at no fans: constants, the normal and the uniform distribution."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jinit.initializers.base import Distribution, RealDistribution, set_floats

__all__ = ["constant", "normal", "ones", "uniform", "zeros"]


@dataclass(frozen=True, repr=False)
class constant(Distribution):
    """Fills an array with a value.

    Args:
        value: A number, or an array or nested sequence that broadcasts to the shape asked for.

    Returns:
        An initializer for any dtype; its key is not used and may be None.

    Example:
        >>> constant(0.5)(None, (2,))
        Array([0.5, 0.5], dtype=float32)

    Source:
        ``torch.nn.init.constant_``.
    """

    value: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", _hashable(np.asarray(self.value).tolist()))

    def sample(self, key: Any, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        """Broadcasts the value."""
        return jnp.broadcast_to(jnp.asarray(self.value, dtype), shape)


def zeros() -> constant:
    """Fills an array with zeros.

    ``zeros`` is a factory like its neighbours: write ``zeros()`` where ``jax.nn.initializers``
    and Keras take a bare ``zeros``.

    Returns:
        An initializer for any dtype; its key is not used and may be None.

    Example:
        >>> zeros()(None, (3,))
        Array([0., 0., 0.], dtype=float32)

    Source:
        ``torch.nn.init.zeros_``.
    """
    return constant(0.0)


def ones() -> constant:
    """Fills an array with ones.

    ``ones`` is a factory like its neighbours: write ``ones()`` where ``jax.nn.initializers`` and
    Keras take a bare ``ones``.

    Returns:
        An initializer for any dtype; its key is not used and may be None.

    Example:
        >>> ones()(None, (3,), "bfloat16")
        Array([1, 1, 1], dtype=bfloat16)

    Source:
        ``torch.nn.init.ones_``.
    """
    return constant(1.0)


@dataclass(frozen=True, repr=False)
class normal(RealDistribution):
    r"""Draws from the normal distribution :math:`N(\text{mean}, \text{std}^2)`, not truncated.

    The first argument is the mean, as in torch; that of ``jax.nn.initializers.normal`` is the
    standard deviation, 0.01 by default.

    Args:
        mean: The mean.
        std: The standard deviation, not negative.

    Returns:
        An initializer for floating-point dtypes.

    Raises:
        ValueError: If an argument is not finite, or the standard deviation is negative.

    Example:
        >>> normal(std=0.02)
        normal(mean=0.0, std=0.02)

    Source:
        ``torch.nn.init.normal_``.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        set_floats(self, "mean", "std")
        if self.std < 0:
            raise ValueError(f"std must not be negative, got {self.std}")

    def sample_wide(self, key: Any, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        """Inverts the distribution function at uniform numbers."""
        # jax.random.normal would multiply by sqrt(2) first and by std afterwards; compilers fold
        # the two factors in one context and not in another, and the last bit would follow.
        low = np.nextafter(dtype.type(-1), dtype.type(0))
        quantile = jax.lax.erf_inv(jax.random.uniform(key, shape, dtype, low, 1.0))
        sample = quantile * (math.sqrt(2) * self.std)
        return sample + self.mean if self.mean else sample


@dataclass(frozen=True, repr=False)
class uniform(RealDistribution):
    r"""Draws from the uniform distribution on :math:`[\text{low}, \text{high})`.

    The default interval is [0, 1), as in torch; that of ``jax.nn.initializers.uniform`` is
    [0, 0.01), and of Keras [-0.05, 0.05). Where the dtype is narrower than float32 the last
    rounding can yield ``high`` itself.

    Args:
        low: The lower end.
        high: The upper end, not below ``low``.

    Returns:
        An initializer for floating-point dtypes.

    Raises:
        ValueError: If an end is not finite, or ``high`` lies below ``low``.

    Example:
        >>> uniform(-0.05, 0.05)
        uniform(low=-0.05, high=0.05)

    Source:
        ``torch.nn.init.uniform_``.
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        set_floats(self, "low", "high")
        if self.high < self.low:
            raise ValueError(f"high must not lie below low, got [{self.low}, {self.high})")

    def sample_wide(self, key: Any, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        """Draws with ``jax.random.uniform``."""
        return jax.random.uniform(key, shape, dtype, self.low, self.high)


def _hashable(value: Any) -> Any:
    """Turns nested lists into nested tuples."""
    return tuple(map(_hashable, value)) if isinstance(value, list) else value
