"""What every initializer is: hashable data that names a distribution, and one way to draw it."""

import functools
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from jinit._arithmetic import is_float_dtype
from jinit._kinds import is_key
from jinit.typing import Key

__all__ = [
    "RARE",
    "Affine",
    "Distribution",
    "Initializer",
    "RandomDistribution",
    "Sharding",
    "Unit",
    "as_integer",
    "holds_zero",
    "is_complex",
    "set_floats",
    "set_tuples",
]

Sharding = NamedSharding | PartitionSpec

RARE = MappingProxyType({"rare": True})
"""Marks a field that is printed only where it is not the default."""


class Affine(NamedTuple):
    """The numbers that make samples of a unit a distribution's own; None leaves a step out.

    Attributes:
        factor: What samples are multiplied by.
        summand: What is added then.
        low: What nothing may lie below, however the two were rounded.
        high: What nothing may lie above.
    """

    factor: Any = None
    summand: Any = None
    low: Any = None
    high: Any = None


@dataclass(frozen=True, repr=False)
class Initializer(ABC):
    """A frozen configuration which draws an array when it is called.

    Attributes:
        dtype: What a call without a dtype draws; None is float32.
    """

    dtype: DTypeLike | None = field(default=None, kw_only=True, metadata=RARE)

    def shown(self) -> dict[str, Any]:
        """Returns the fields that a call which makes it would name."""
        values = {f: getattr(self, f.name) for f in fields(self)}
        usual = {f.name: value for f, value in values.items() if not f.metadata}
        return usual | {f.name: v for f, v in values.items() if f.metadata and v != f.default}

    @abstractmethod
    def resolve(
        self, shape: Sequence[int], dtype: DTypeLike | None = jnp.float32
    ) -> "Distribution":
        """Returns what an array of ``shape`` and ``dtype`` is drawn from."""

    def __call__(
        self,
        key: jax.Array | None,
        shape: Sequence[int] | None = None,
        dtype: DTypeLike | None = None,
        out_sharding: Sharding | None = None,
    ) -> jax.Array:
        """Draws an array.

        Args:
            key: A typed or legacy JAX key; None will do where nothing random is drawn.
            shape: The shape of the array.
            dtype: Its dtype; None is that of the initializer, float32 if it has none. A narrower
                one is drawn in float32 and cast last; finite numbers that are out of its range
                become its largest.
            out_sharding: Where the array is born: a ``NamedSharding``, or a ``PartitionSpec`` on
                the mesh of ``jax.set_mesh``. The values do not depend on it.

        Returns:
            The array.

        Raises:
            TypeError: If it is called with a shape in place of the key, as Haiku and Keras do, or
                the shape is not of integers.
            ValueError: If the shape holds a negative size.
        """
        if isinstance(key, tuple | list) or shape is None:
            raise TypeError(_without_key(self, key))
        shape = _as_shape(shape)
        if min(shape, default=0) < 0:
            raise ValueError(f"shape must hold no negative size, got {shape}")
        dtype = self.dtype if dtype is None else dtype
        # Where 64-bit types are off, JAX draws in 32 bits, and so do the numbers that go with it.
        dtype = jax.dtypes.canonicalize_dtype(jnp.float32 if dtype is None else dtype)
        distribution = self.resolve(shape, dtype)
        distribution.check(key, shape, dtype)
        # Numbers are arguments of the program and not part of it: one compilation draws arrays
        # of a shape at every scale.
        affine = _as_arrays(distribution.affine(dtype), dtype)
        return _draw(key, affine, distribution.unit(), shape, dtype, out_sharding)

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in self.shown().items())
        return f"{type(self).__name__}({values})"


def _as_shape(shape: Any) -> tuple[int, ...]:
    try:
        return tuple(map(operator.index, shape))
    except jax.errors.JAXTypeError:  # a traced size, of which JAX says more
        raise
    except TypeError:
        raise TypeError(f"shape must be a tuple of integers, got {shape!r}") from None


def _without_key(init: Initializer, shape: Any) -> str:
    return (
        f"{init!r} is called with a key and a shape, got {shape!r} alone: where a library calls "
        "initializers with the shape, hand it a function that has a key, for Haiku "
        "w_init=lambda shape, dtype: init(hk.next_rng_key(), shape, dtype), for Keras "
        "kernel_initializer=lambda shape, dtype: init(key, shape, dtype)"
    )


class Distribution(Initializer):
    """An initializer whose entries are drawn alike for every shape.

    It draws ``unit * factor + summand``: the unit is what is compiled, the numbers are given to it.
    """

    @abstractmethod
    def unit(self) -> "Unit":
        """Returns what samples before ``affine`` is applied."""

    @abstractmethod
    def affine(self, dtype: jnp.dtype) -> Affine:
        """Returns the factor and the summand that make samples of the unit its own."""

    def resolve(
        self, shape: Sequence[int], dtype: DTypeLike | None = jnp.float32
    ) -> "Distribution":
        """Returns itself."""
        return self

    def check(self, key: Key | None, shape: tuple[int, ...], dtype: jnp.dtype) -> None:
        """Raises if it cannot draw with this key, or an array of this shape and dtype."""


class Unit(Distribution):
    """A distribution that can sample; by default it is its own unit."""

    def unit(self) -> "Unit":
        """Returns what samples before ``affine`` is applied."""
        return self

    def affine(self, dtype: jnp.dtype) -> Affine:
        """Returns the factor and the summand that make samples of the unit its own."""
        return Affine()

    @abstractmethod
    def sample(self, key: Key, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        """Draws from a unit, within jit, in a dtype that is not narrower than float32."""


class RandomDistribution(Unit):
    """A distribution over real or complex numbers that needs a key."""

    def check(self, key: Key | None, shape: tuple[int, ...], dtype: jnp.dtype) -> None:
        """Raises if there is no key, or the dtype is none of numbers around zero."""
        if not is_float_dtype(dtype) or not holds_zero(dtype):
            raise TypeError(f"{self!r} draws floating-point numbers, it cannot make a {dtype}")
        if key is None:
            raise TypeError(f"{self!r} needs a key, e.g. jax.random.key(0)")
        if not is_key(key):
            raise TypeError(f"{self!r} needs a key, e.g. jax.random.key(0), got {key!r}")


def is_complex(dtype: DTypeLike | None) -> bool:
    """Returns whether a dtype holds complex numbers; None is float32."""
    return dtype is not None and jnp.issubdtype(dtype, jnp.complexfloating)


def holds_zero(dtype: jnp.dtype) -> bool:
    """Returns whether a dtype holds zero: ``float8_e8m0fnu``, powers of two, makes it nan."""
    return not jnp.issubdtype(dtype, jnp.floating) or float(jnp.finfo(dtype).min) < 0


def set_floats(initializer: Initializer, *names: str, finite: bool = True) -> None:
    """Turns fields into Python floats, which are hashable whatever scalar was given."""
    for name in names:
        value = getattr(initializer, name)
        if not _is_finite(name, value) and (finite or math.isnan(value)):
            raise ValueError(f"{name} must be {'finite' if finite else 'a number'}, got {value}")
        object.__setattr__(initializer, name, float(value))


def _is_finite(name: str, value: Any) -> bool:
    try:
        return math.isfinite(value)
    except jax.errors.JAXTypeError:  # a traced value, of which JAX says more
        raise
    except TypeError:
        hint = f"; write gain=calculate_gain({value!r})" if isinstance(value, str) else ""
        hint = hint if name == "gain" else ""
        raise TypeError(f"{name} must be a number, got {value!r}{hint}") from None


def as_integer(name: str, value: Any) -> int:
    """Returns an argument as a Python int, which is hashable whatever integer was given."""
    try:
        return operator.index(value)
    except jax.errors.JAXTypeError:
        raise
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None


def set_tuples(initializer: Initializer, *names: str) -> None:
    """Turns fields that are sequences into tuples, and numbers into ints, which are hashable."""
    for name in names:
        value = getattr(initializer, name)
        if isinstance(value, np.ndarray) and value.ndim:
            value = value.tolist()
        if isinstance(value, Sequence):
            object.__setattr__(initializer, name, tuple(value))
        elif value is not None:
            object.__setattr__(initializer, name, as_integer(name, value))


def _wide(dtype: jnp.dtype) -> jnp.dtype:
    """Returns the dtype to draw in: half-precision samplers give few values and short tails."""
    narrow = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4
    return jnp.dtype(jnp.float32) if narrow else dtype


def _as_arrays(affine: Affine, dtype: jnp.dtype) -> Affine:
    """Rounds the numbers to the real dtype that belongs to the one drawn in."""
    real = jnp.finfo(_wide(dtype)).dtype if any(n is not None for n in affine) else None
    return Affine(*(None if number is None else np.asarray(number, real) for number in affine))


@functools.partial(jax.jit, static_argnames=("unit", "shape", "dtype", "out_sharding"))
def _draw(
    key: Any,
    affine: Affine,
    unit: Unit,
    shape: tuple[int, ...],
    dtype: jnp.dtype,
    out_sharding: Sharding | None,
) -> jax.Array:
    """Draws in one program, the same whoever calls it, so that the bits are the same too."""

    def sample(key: Any, *numbers: Any) -> jax.Array:
        factor, summand, low, high = numbers
        values = unit.sample(key, shape, _wide(dtype))
        values = values if factor is None else values * factor
        values = values if summand is None else values + summand
        # Rounding is monotone: in a narrower dtype no value lies beyond the bound it has there.
        return _narrow(values if low is None else jnp.clip(values, low, high), dtype)

    return _born(sample, out_sharding)(key, *affine)


def _narrow(values: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Casts; finite numbers out of range become the largest there are, not inf or nan."""
    if values.dtype != dtype and jnp.issubdtype(dtype, jnp.floating):
        limits = jnp.finfo(dtype)
        inside = jnp.clip(values, float(limits.min), float(limits.max))
        values = jnp.where(jnp.isinf(values), values, inside)
    return values.astype(dtype)


def _born(sample: Callable[..., jax.Array], out_sharding: Sharding | None) -> Callable:
    """Makes a sampler's result come into being with a sharding."""
    if out_sharding is None:
        return sample
    explicit_axes = jax.sharding.get_abstract_mesh().explicit_axes
    if explicit_axes:
        return jax.sharding.auto_axes(sample, axes=explicit_axes, out_sharding=out_sharding)
    return jax.jit(sample, out_shardings=out_sharding)
