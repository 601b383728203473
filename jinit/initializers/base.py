"""What every initializer is: hashable data that names a distribution, and one way to draw it."""

import functools
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

__all__ = ["Distribution", "Initializer", "RealDistribution", "Sharding", "set_floats"]

Sharding = NamedSharding | PartitionSpec


@dataclass(frozen=True, repr=False)
class Initializer(ABC):
    """A frozen configuration which draws an array when it is called."""

    @abstractmethod
    def distribution(self, shape: Sequence[int]) -> "Distribution":
        """Returns what the entries of an array of ``shape`` are drawn from."""

    def __call__(
        self,
        key: jax.Array | None,
        shape: Sequence[int],
        dtype: DTypeLike | None = jnp.float32,
        out_sharding: Sharding | None = None,
    ) -> jax.Array:
        """Draws an array.

        Args:
            key: A typed or legacy JAX key; None will do where nothing random is drawn.
            shape: The shape of the array.
            dtype: Its dtype; None is float32. A narrower one is drawn in float32 and cast last.
            out_sharding: Where the array is born: a ``NamedSharding``, or a ``PartitionSpec`` on
                the mesh of ``jax.set_mesh``. The values do not depend on it.

        Returns:
            The array.
        """
        shape = tuple(map(operator.index, shape))
        if min(shape, default=0) < 0:
            raise ValueError(f"shape must hold no negative size, got {shape}")
        dtype = jnp.dtype(jnp.float32 if dtype is None else dtype)
        distribution = self.distribution(shape)
        distribution.check(key, dtype)
        return _draw(key, distribution, shape, dtype, out_sharding)

    def __repr__(self) -> str:
        # Keyword-only fields are the rarely used ones: shown only where they say something.
        usual = [f for f in fields(self) if not f.kw_only]
        rare = [f for f in fields(self) if f.kw_only and getattr(self, f.name) != f.default]
        values = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in usual + rare)
        return f"{type(self).__name__}({values})"


class Distribution(Initializer):
    """An initializer whose entries are drawn alike for every shape."""

    def distribution(self, shape: Sequence[int]) -> "Distribution":
        """Returns itself."""
        return self

    def check(self, key: Any, dtype: jnp.dtype) -> None:
        """Raises if it cannot draw with this key or for this dtype."""

    @abstractmethod
    def sample(self, key: Any, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        """Draws an array, within jit."""


class RealDistribution(Distribution):
    """A distribution over the reals, for floating-point arrays."""

    def check(self, key: Any, dtype: jnp.dtype) -> None:
        """Raises if there is no key, or the dtype is not a floating-point one."""
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"{self!r} draws floating-point numbers, it cannot make a {dtype}")
        if key is None:
            raise TypeError(f"{self!r} needs a key, e.g. jax.random.key(0)")

    def sample(self, key: Any, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        """Draws in float32 or wider and casts last."""
        # Half-precision samplers yield few distinct values, a biased mean and short tails.
        wide = dtype if dtype.itemsize > 4 else jnp.dtype(jnp.float32)
        return self.sample_wide(key, shape, wide).astype(dtype)

    @abstractmethod
    def sample_wide(self, key: Any, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        """Draws in float32 or float64."""


def set_floats(initializer: Initializer, *names: str) -> None:
    """Turns fields into Python floats, which are hashable whatever scalar was given."""
    for name in names:
        value = getattr(initializer, name)
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
        object.__setattr__(initializer, name, float(value))


@functools.partial(jax.jit, static_argnames=("distribution", "shape", "dtype", "out_sharding"))
def _draw(
    key: Any,
    distribution: Distribution,
    shape: tuple[int, ...],
    dtype: jnp.dtype,
    out_sharding: Sharding | None,
) -> jax.Array:
    """Draws in one program, the same whoever calls it, so that the bits are the same too."""

    def sample(key: Any) -> jax.Array:
        return distribution.sample(key, shape, dtype)

    return _born(sample, out_sharding)(key)


def _born(sample: Callable, out_sharding: Sharding | None) -> Callable:
    """Makes a sampler's result come into being with a sharding."""
    if out_sharding is None:
        return sample
    explicit_axes = jax.sharding.get_abstract_mesh().explicit_axes
    if explicit_axes:
        return jax.sharding.auto_axes(sample, axes=explicit_axes, out_sharding=out_sharding)
    return jax.jit(sample, out_shardings=out_sharding)
