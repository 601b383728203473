"""The arithmetic of statistics and scales, in float32 or wider."""

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import DTypeLike

__all__ = [
    "apply_scale",
    "bytes_of",
    "inverse_rms",
    "is_float",
    "is_float_dtype",
    "merge",
    "multiply",
    "namespace",
    "on_cpu",
    "rms",
    "segment_sum",
    "wider",
]


def is_float(x: Any) -> bool:
    """Returns whether a value is a real or complex floating-point number."""
    return is_float_dtype(jnp.result_type(x))


def is_float_dtype(dtype: DTypeLike) -> bool:
    """Returns whether a dtype, which may be one of keys, is of real or complex floats."""
    return jnp.issubdtype(dtype, jnp.inexact)


def bytes_of(shape: Sequence[int], dtype: Any) -> int:
    """Returns how many bytes an array is; of keys, their words."""
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        words = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(tuple(shape), dtype))
        shape, dtype = words.shape, words.dtype
    return -(-math.prod(shape) * jax.dtypes.itemsize_bits(dtype) // 8)


def wider(dtype: Any) -> Any:
    """Returns float32 for a half dtype, and any other as it is."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def rms(x: jax.Array, axes: Sequence[int] | None = None, dtype: Any = jnp.float32) -> jax.Array:
    """Returns ``sqrt(mean(|x| ** 2))`` wherever it has a normal number; 0 for an empty array.

    Values are divided by the largest of them before they are squared: the square of a float32
    is 0 below 1e-23 and infinite above 2e19.

    Args:
        x: Real or complex numbers, which are computed with in float32 or wider.
        axes: The axes that are averaged over; None for all.
        dtype: The result's.
    """
    chosen = tuple(range(jnp.ndim(x)) if axes is None else axes)
    if not x.size:
        return jnp.zeros([n for i, n in enumerate(x.shape) if i not in chosen], dtype)
    parts = [jnp.real(x), jnp.imag(x)] if jnp.iscomplexobj(x) else [x]
    wide = [part.astype(wider(part.dtype)) for part in parts]
    peaks = [jnp.max(jnp.abs(part), chosen, keepdims=True) for part in wide]
    peak = lax.stop_gradient(functools.reduce(jnp.maximum, peaks))
    # compiled, a division is by the inverse, which a larger number has not
    unit = jnp.where(peak > 0, jnp.minimum(peak, 2.0**125), jnp.ones_like(peak))
    mean = sum(jnp.mean(jnp.square(part / unit), chosen) for part in wide)
    some = mean != 0  # the slope of a root is infinite at 0
    root = jnp.where(some, jnp.sqrt(jnp.where(some, mean, jnp.ones_like(mean))), mean)
    return (root * unit.reshape(root.shape)).astype(dtype)


def inverse_rms(size: jax.Array) -> jax.Array:
    """Returns the inverse of an RMS, and 1 where there is nothing to scale."""
    usable = (size > 0) & jnp.isfinite(size)
    return jnp.where(usable, 1.0 / jnp.where(usable, size, 1.0), 1.0)


def multiply(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiplies by a scalar in float32 or wider, and keeps the dtype."""
    wide = wider(x.dtype)
    return (x.astype(wide) * factor.astype(wide)).astype(x.dtype)


def apply_scale(leaf: jax.Array, scale: jax.Array) -> jax.Array:
    """Multiplies a leaf, layer by layer along its leading axes; leaves that are no floats stay."""
    leaf = jnp.asarray(leaf)
    if not is_float(leaf):
        return leaf
    return multiply(leaf, scale.reshape(scale.shape + (1,) * (leaf.ndim - scale.ndim)))


def on_cpu(leaves: Iterable[Any]) -> bool:
    """Returns whether all arrays are values in the memory of this process."""
    arrays = [leaf for leaf in leaves if not isinstance(leaf, np.ndarray | np.generic)]
    return all(
        isinstance(array, jax.Array)
        and not isinstance(array, Tracer)
        and array.is_fully_addressable
        and all(device.platform == "cpu" for device in array.devices())
        for array in arrays
    )


def merge(leaves: Sequence[Any], values: Iterable[Any], flags: Sequence[bool]) -> list[Any]:
    """Puts values in the places of the leaves that are flagged, in order."""
    rest = iter(values)
    return [next(rest) if flag else leaf for leaf, flag in zip(leaves, flags, strict=True)]


def namespace(*arrays: Any) -> Any:
    """Returns NumPy for values, on the host, and jax.numpy where one of them is traced."""
    return jnp if any(isinstance(array, jax.Array) for array in arrays) else np


def segment_sum(values: Any, index: np.ndarray, size: int) -> Any:
    """Sums values by their index."""
    if isinstance(values, jax.Array):
        return jnp.zeros(size, values.dtype).at[index].add(values)
    return np.bincount(index, weights=values, minlength=size)
