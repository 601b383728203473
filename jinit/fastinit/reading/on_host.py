"""Small values, computed on the host: keys, counters, and what scales are made of.

Only what is the same to the last bit wherever it is computed: whole numbers, and the operations
on floats that IEEE 754 rounds exactly. A logarithm is left to XLA.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from jinit.fastinit import threefry
from jinit.fastinit.reading.values import Keys, Known
from jinit.tracing import aval_of

__all__ = ["SMALL", "compute", "exactly"]

SMALL = 1024
"""The most elements that are computed on the host."""


def compute(equation: jex.JaxprEqn, values: Sequence[Any]) -> Known | Keys | None:
    """Computes an equation of values on the host, or returns None where it cannot."""
    name = equation.primitive.name
    if name in _OF_KEYS:
        return _OF_KEYS[name](equation.params, *values)
    if len(equation.outvars) != 1 or math.prod(aval_of(equation.outvars[0]).shape) > SMALL:
        return None
    if name in _MOVES:
        return _moved(_MOVES[name], equation.params, values)
    if not all(isinstance(value, Known) for value in values):
        return None
    result = exactly(name, equation.params, [value.array for value in values])
    return None if result is None else Known(np.asarray(result))


def exactly(name: str, params: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> Any:
    """Applies an elementwise primitive that is exact to the last bit; None for all others."""
    if name not in _EXACT or any(array.dtype.kind == "c" for array in arrays):
        return None
    with np.errstate(all="ignore"):
        return _EXACT[name](params, *arrays)


def _moved(move: Callable[..., Any], params: Mapping[str, Any], values: Sequence[Any]) -> Any:
    """Moves elements, which may be keys."""
    if all(isinstance(value, Known) for value in values):
        return Known(np.asarray(move(params, *(value.array for value in values))))
    if not all(isinstance(value, Keys) for value in values):
        return None
    words = [move(params, *(value.words[..., n] for value in values)) for n in range(2)]
    return Keys(np.stack(words, axis=-1))


def _words(keys: Keys) -> list[tuple[int, int]]:
    return [(int(a), int(b)) for a, b in keys.words.reshape(-1, 2)]


def _keys(words: Sequence[tuple[int, int]], shape: Sequence[int]) -> Keys:
    return Keys(np.array(words, np.uint32).reshape(*shape, 2))


def _fold_in(params: Mapping[str, Any], keys: Any, data: Any) -> Keys | None:
    if not isinstance(keys, Keys) or not isinstance(data, Known):
        return None
    if keys.shape and data.shape and keys.shape != data.shape:
        return None
    shape = keys.shape or data.shape
    words = _words(Keys(np.broadcast_to(keys.words, (*shape, 2))))
    numbers = np.broadcast_to(data.array, shape).reshape(-1).tolist()
    pairs = zip(words, numbers, strict=True)
    return _keys([threefry.fold_in(key, int(number)) for key, number in pairs], shape)


def _split(params: Mapping[str, Any], keys: Any) -> Keys | None:
    shape = tuple(params["shape"])
    number = math.prod(shape)
    if not isinstance(keys, Keys) or number * max(1, len(_words(keys))) > SMALL:
        return None
    words = [new for key in _words(keys) for new in threefry.split(key, number)]
    return _keys(words, (*keys.shape, *shape))


def _seed(params: Mapping[str, Any], seeds: Any) -> Keys | None:
    if not isinstance(seeds, Known) or getattr(params["impl"], "tag", "") != "fry":
        return None
    wide = seeds.array.astype(np.int64).reshape(-1).tolist()
    high = 0xFFFFFFFF if seeds.array.dtype.itemsize == 8 else 0
    words = [((seed >> 32) & high, seed & 0xFFFFFFFF) for seed in wide]
    return _keys(words, seeds.shape)


def _wrap(params: Mapping[str, Any], words: Any) -> Keys | None:
    if not isinstance(words, Known) or getattr(params["impl"], "tag", "") != "fry":
        return None
    return Keys(words.array)


def _unwrap(params: Mapping[str, Any], keys: Any) -> Known | None:
    return Known(keys.words) if isinstance(keys, Keys) else None


def _clone(params: Mapping[str, Any], keys: Any) -> Keys | None:
    return keys if isinstance(keys, Keys) else None


_OF_KEYS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "random_fold_in": _fold_in,
        "random_split": _split,
        "random_seed": _seed,
        "random_wrap": _wrap,
        "random_unwrap": _unwrap,
        "random_clone": _clone,
    }
)


def _slice(params: Mapping[str, Any], array: np.ndarray) -> np.ndarray:
    steps = params["strides"] or (1,) * array.ndim
    bounds = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
    return array[tuple(slice(*bound) for bound in bounds)]


def _broadcast(params: Mapping[str, Any], array: np.ndarray) -> np.ndarray:
    shape, places = params["shape"], params["broadcast_dimensions"]
    spread = [1] * len(shape)
    for place, size in zip(places, array.shape, strict=True):
        spread[place] = size
    return np.broadcast_to(array.reshape(spread), shape)


def _iota(*, shape: Sequence[int], dimension: int, dtype: Any, **_: Any) -> np.ndarray:
    numbers = np.arange(shape[dimension]).astype(dtype)
    return _broadcast({"shape": shape, "broadcast_dimensions": (dimension,)}, numbers)


_MOVES: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "slice": _slice,
        "broadcast_in_dim": _broadcast,
        "reshape": lambda params, array: array.reshape(params["new_sizes"]),
        "squeeze": lambda params, array: array.squeeze(tuple(params["dimensions"])),
        "expand_dims": lambda params, array: np.expand_dims(array, tuple(params["dimensions"])),
        "concatenate": lambda params, *arrays: np.concatenate(arrays, params["dimension"]),
        "stack": lambda params, *arrays: np.stack(arrays, params["axis"]),
        "iota": lambda params: _iota(**params),
        "transpose": lambda params, array: array.transpose(params["permutation"]),
        "copy": lambda params, array: array,
        "copy_p": lambda params, array: array,
        "stop_gradient": lambda params, array: array,
    }
)


def _divided(params: Mapping[str, Any], x: np.ndarray, y: np.ndarray) -> Any:
    if not np.issubdtype(x.dtype, np.integer):
        return x / y
    # XLA rounds towards zero, and divides by zero to a number of nothing but ones.
    divisor = np.where(y == 0, 1, y).astype(y.dtype)
    towards_zero = (x - np.fmod(x, divisor)) // divisor
    return np.where(y == 0, ~np.zeros_like(x), towards_zero)


def _remainder(params: Mapping[str, Any], x: np.ndarray, y: np.ndarray) -> Any:
    if not np.issubdtype(x.dtype, np.integer):
        return np.fmod(x, y)
    return np.where(y == 0, x, np.fmod(x, np.where(y == 0, 1, y).astype(y.dtype)))


def _converted(params: Mapping[str, Any], x: np.ndarray) -> Any:
    """Converts; of floats that are too large for whole numbers XLA makes the largest."""
    dtype = params["new_dtype"]
    if not (np.issubdtype(dtype, np.integer) and jnp.issubdtype(x.dtype, np.floating)):
        return x.astype(dtype)
    wide, limits = x.astype(np.float64), np.iinfo(dtype)
    whole = np.where(wide <= float(limits.min), limits.min, wide.astype(dtype))
    whole = np.where(wide >= float(limits.max), limits.max, whole)
    return np.where(np.isnan(wide), 0, whole).astype(dtype)


_EXACT: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "add": lambda params, x, y: x + y,
        "sub": lambda params, x, y: x - y,
        "mul": lambda params, x, y: x * y,
        "div": _divided,
        "rem": _remainder,
        "sign": lambda params, x: np.sign(x),
        "max": lambda params, x, y: np.maximum(x, y),
        "min": lambda params, x, y: np.minimum(x, y),
        "neg": lambda params, x: -x,
        "abs": lambda params, x: np.abs(x),
        "sqrt": lambda params, x: np.sqrt(x),
        "nextafter": lambda params, x, y: np.nextafter(x, y),
        "and": lambda params, x, y: x & y,
        "or": lambda params, x, y: x | y,
        "xor": lambda params, x, y: x ^ y,
        "not": lambda params, x: ~x,
        "eq": lambda params, x, y: x == y,
        "ne": lambda params, x, y: x != y,
        "lt": lambda params, x, y: x < y,
        "le": lambda params, x, y: x <= y,
        "gt": lambda params, x, y: x > y,
        "ge": lambda params, x, y: x >= y,
        "convert_element_type": _converted,
        "select_n": lambda params, which, *cases: np.choose(which.astype(np.int32), cases),
    }
)
