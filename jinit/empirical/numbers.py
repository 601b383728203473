"""The arithmetic of statistics and scales, in float32 or wider."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

__all__ = [
    "apply_scale",
    "inverse_rms",
    "is_float",
    "mean_square",
    "merge",
    "multiply",
    "namespace",
    "on_cpu",
    "segment_sum",
    "wider",
]


def is_float(x: Any) -> bool:
    """Tells whether a value is a real or complex floating-point number."""
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def wider(dtype: Any) -> Any:
    """Returns float32 for a half dtype, and any other as it is."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def mean_square(x: jax.Array) -> jax.Array:
    """Returns the mean of ``|x| ** 2`` in float32; 0 for an empty array."""
    x = jnp.abs(x).astype(jnp.float32)
    return jnp.mean(x * x) if x.size else jnp.float32(0)


def inverse_rms(power: jax.Array) -> jax.Array:
    """Returns 1 / sqrt(mean square), and 1 where there is nothing to scale."""
    usable = (power > 0) & jnp.isfinite(power)
    return jnp.where(usable, lax.rsqrt(jnp.where(usable, power, 1.0)), 1.0)


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
    """Tells whether all arrays are values in the memory of this process."""
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
