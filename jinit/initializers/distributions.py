"""Initializers that look at no fans: constants, the normal and the uniform distribution."""

import math
from dataclasses import dataclass, field
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from numpy.typing import ArrayLike

from jinit._known import known_arguments
from jinit.initializers.base import (
    Affine,
    RandomDistribution,
    Unit,
    holds_zero,
    is_complex,
    set_floats,
)
from jinit.typing import Key

__all__ = ["constant", "normal", "ones", "uniform", "zeros"]


@known_arguments
@dataclass(frozen=True, repr=False)
class constant(Unit):
    """Fills an array with a value.

    Args:
        value: A number, or an array or nested sequence that broadcasts to the shape asked for.
        dtype: What a call without a dtype draws; None is float32.

    Returns:
        An initializer for any dtype; its key is not used and may be None.

    Raises:
        TypeError: If the value is not a number, or not an array of numbers.

    Example:
        >>> constant(0.5)(None, (2,))
        Array([0.5, 0.5], dtype=float32)

    Source:
        ``torch.nn.init.constant_``.
    """

    value: ArrayLike

    def __post_init__(self) -> None:
        value = np.asarray(self.value)
        if not any(jnp.issubdtype(value.dtype, kind) for kind in (np.number, np.bool_)):
            raise TypeError(f"value must be a number or an array of numbers, got {self.value!r}")
        object.__setattr__(self, "value", _hashable(value.tolist()))

    def check(self, key: Key | None, shape: tuple[int, ...], dtype: jnp.dtype) -> None:
        """Raises for a dtype of positive numbers alone, unless the value is one."""
        if not holds_zero(dtype) and np.min(self.value) <= 0:
            raise TypeError(f"{self!r} cannot make a {dtype}, which holds positive numbers alone")

    def sample(self, key: Key, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        """Broadcasts the value."""
        return jnp.broadcast_to(jnp.asarray(self.value, dtype), shape)


@known_arguments
def zeros(*, dtype: DTypeLike | None = None) -> constant:
    """Fills an array with zeros.

    ``zeros`` is a factory like its neighbours: write ``zeros()`` where ``jax.nn.initializers``
    and Keras take a bare ``zeros``.

    Args:
        dtype: What a call without a dtype draws; None is float32.

    Returns:
        An initializer for any dtype; its key is not used and may be None.

    Example:
        >>> zeros()(None, (3,))
        Array([0., 0., 0.], dtype=float32)

    Source:
        ``torch.nn.init.zeros_``.
    """
    return constant(0.0, dtype=dtype)


@known_arguments
def ones(*, dtype: DTypeLike | None = None) -> constant:
    """Fills an array with ones.

    ``ones`` is a factory like its neighbours: write ``ones()`` where ``jax.nn.initializers`` and
    Keras take a bare ``ones``.

    Args:
        dtype: What a call without a dtype draws; None is float32.

    Returns:
        An initializer for any dtype; its key is not used and may be None.

    Example:
        >>> ones()(None, (3,), "bfloat16")
        Array([1, 1, 1], dtype=bfloat16)

    Source:
        ``torch.nn.init.ones_``.
    """
    return constant(1.0, dtype=dtype)


@known_arguments
@dataclass(frozen=True, repr=False)
class normal(RandomDistribution):
    r"""Draws from the normal distribution :math:`N(\text{mean}, \text{std}^2)`, not truncated.

    Both arguments are keyword-only: the first is the mean in torch, and the standard deviation in
    ``jax.nn.initializers.normal``, 0.01 by default. Keras's default is 0.05.

    Args:
        mean: The mean.
        std: The standard deviation, not negative. Of complex numbers it is
            :math:`\sqrt{E|z - \text{mean}|^2}`: both parts have a variance of half its square.
        dtype: What a call without a dtype draws; None is float32.

    Returns:
        An initializer for floating-point and complex dtypes.

    Raises:
        ValueError: If an argument is not finite, or the standard deviation is negative.
        TypeError: If an argument is given by position.

    Example:
        >>> normal(std=0.02)
        normal(mean=0.0, std=0.02)

    Source:
        ``torch.nn.init.normal_``.
    """

    mean: float = field(default=0.0, kw_only=True)
    std: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        set_floats(self, "mean", "std")
        if self.std < 0:
            raise ValueError(f"std must not be negative, got {self.std}")

    def unit(self) -> Self:
        """Returns the distribution with default arguments."""
        return type(self)()

    def affine(self, dtype: jnp.dtype) -> Affine:
        """Returns the standard deviation, over that of a sample of the unit, and the mean."""
        return Affine(self.std * (1 if is_complex(dtype) else math.sqrt(2)), self.mean)

    def sample(self, key: Key, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        r"""Draws numbers whose real and imaginary parts have a variance of 1/2."""
        # Not jax.random.normal, which multiplies by sqrt(2): compilers fold that and the factor
        # into one number where the factor is a constant, and the last bit would follow.
        if is_complex(dtype):
            real, imaginary = jax.random.split(key)
            part = jnp.finfo(dtype).dtype
            return jax.lax.complex(
                self.sample(real, shape, part), self.sample(imaginary, shape, part)
            )
        low = np.nextafter(dtype.type(-1), dtype.type(0))
        return jax.lax.erf_inv(jax.random.uniform(key, shape, dtype, low, 1.0))


@known_arguments
@dataclass(frozen=True, repr=False)
class uniform(RandomDistribution):
    r"""Draws from the uniform distribution on :math:`[\text{low}, \text{high})`.

    The default interval is [0, 1), as in torch; that of ``jax.nn.initializers.uniform`` is
    [0, 0.01), and of Keras [-0.05, 0.05). The last rounding can yield ``high`` itself,
    the more often the fewer numbers of the dtype lie between, and never what lies beyond it. Both
    arguments are keyword-only: the first is the lower end in torch, and the upper one in JAX.

    Args:
        low: The lower end.
        high: The upper end, not below ``low``.
        dtype: What a call without a dtype draws; None is float32.

    Returns:
        An initializer for floating-point dtypes. Complex numbers have no interval; the uniform
        initializers that scale with the fans draw them from a disc.

    Raises:
        ValueError: If an end is not finite, ``high`` lies below ``low``, or float32 cannot hold
            the width of the interval.
        TypeError: If an argument is given by position.

    Example:
        >>> uniform(low=-0.05, high=0.05)
        uniform(low=-0.05, high=0.05)

    Source:
        ``torch.nn.init.uniform_``.
    """

    low: float = field(default=0.0, kw_only=True)
    high: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        set_floats(self, "low", "high")
        if self.high < self.low:
            raise ValueError(f"high must not lie below low, got [{self.low}, {self.high})")
        if self.high - self.low > float(jnp.finfo(jnp.float32).max):
            raise ValueError(f"high - low must fit float32, got [{self.low}, {self.high})")

    def check(self, key: Key | None, shape: tuple[int, ...], dtype: jnp.dtype) -> None:
        """Raises for complex numbers too."""
        super().check(key, shape, dtype)
        if is_complex(dtype):
            raise TypeError(
                f"{self!r} is an interval, it cannot make a {dtype}; "
                "variance_scaling(distribution='uniform') draws complex numbers from a disc"
            )

    def unit(self) -> Self:
        """Returns the distribution with default arguments."""
        return type(self)()

    def affine(self, dtype: jnp.dtype) -> Affine:
        """Returns the width of the interval and its lower end."""
        return Affine(self.high - self.low, self.low, self.low, self.high)

    def sample(self, key: Key, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        """Draws from [0, 1)."""
        return jax.random.uniform(key, shape, dtype)


def _hashable(value: Any) -> Any:
    """Turns nested lists into nested tuples."""
    return tuple(map(_hashable, value)) if isinstance(value, list) else value
