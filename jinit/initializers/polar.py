"""Complex numbers drawn by modulus and phase."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from jinit.initializers.base import Affine, RandomDistribution, is_complex, set_floats
from jinit.typing import Key

__all__ = ["disc", "polar"]


@dataclass(frozen=True, repr=False)
class disc(RandomDistribution):
    r"""Draws complex numbers from the uniform distribution on the disc :math:`|z| < r`.

    Its standard deviation is :math:`r / \sqrt 2`.

    Args:
        radius: The radius, not negative.

    Returns:
        An initializer for complex dtypes.

    Raises:
        ValueError: If the radius is not finite, or negative.

    Example:
        >>> bool(abs(disc(0.5)(jax.random.key(0), (9,), "complex64")).max() < 0.5)
        True

    Source:
        What ``jax.nn.initializers.variance_scaling`` calls uniform for complex numbers.
    """

    radius: float = 1.0

    def __post_init__(self) -> None:
        set_floats(self, "radius")
        if self.radius < 0:
            raise ValueError(f"radius must not be negative, got {self.radius}")

    def check(self, key: Key | None, shape: tuple[int, ...], dtype: jnp.dtype) -> None:
        """Raises for real numbers too."""
        super().check(key, shape, dtype)
        if not is_complex(dtype):
            raise TypeError(f"{self!r} draws complex numbers, it cannot make a {dtype}")

    def unit(self) -> Self:
        """Returns the disc with radius 1."""
        return type(self)()

    def affine(self, dtype: jnp.dtype) -> Affine:
        """Returns the radius."""
        return Affine(self.radius)

    def sample(self, key: Key, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        """Draws from the disc with radius 1."""
        return polar(key, shape, dtype, jnp.sqrt)


def polar(
    key: Any,
    shape: tuple[int, ...],
    dtype: jnp.dtype,
    quantile: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """Draws complex numbers with uniform phases.

    Args:
        key: The key.
        shape: The shape of the array.
        dtype: Its complex dtype.
        quantile: The inverse of the modulus's distribution function.

    Returns:
        The array.
    """
    modulus, phase = (
        jax.random.uniform(part, shape, jnp.finfo(dtype).dtype) for part in jax.random.split(key)
    )
    return quantile(modulus) * jnp.exp(2j * np.pi * phase)
