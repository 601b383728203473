"""Which gradients are rounding: those that a change of rounding changes altogether.

A gradient that vanishes in exact arithmetic, because what it sums cancels (the bias of attention
keys, a shift of all logits), is computed as some small number. How small says nothing: another
layer's true gradient may be smaller. But it does not repeat: where every parameter, and the
output, is changed by a rounding error, a true gradient changes by little more, and rounding is
drawn anew.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jex

from jinit._arithmetic import is_float, is_float_dtype, multiply, namespace, wider
from jinit.tracing import aval_of, equations_of

__all__ = ["is_rounding", "nudged", "rounding_unit", "sketch"]

_SKETCHES = 8
_HALF = 2.0**-12  # a coarser unit is that of a half dtype


def rounding_unit(jaxpr: jex.Jaxpr) -> float:
    """Returns twice the relative rounding error of the coarsest numbers of a program.

    Off the CPU, products of float32 are by default computed from bfloat16 or TF32.
    """
    unit = _coarsest(jaxpr)
    coarse = float(jnp.finfo(jnp.bfloat16).eps)
    return 2 * (max(unit, coarse) if jax.default_backend() != "cpu" else min(unit, coarse))


def _coarsest(jaxpr: jex.Jaxpr) -> float:
    avals = [aval_of(v) for equation in equations_of(jaxpr) for v in equation.outvars]
    dtypes = {aval.dtype for aval in avals if hasattr(aval, "dtype")}
    return max((float(jnp.finfo(d).eps) for d in dtypes if is_float_dtype(d)), default=0.0)


def _bits(shape: Sequence[int]) -> jax.Array:
    """Returns numbers whose bits look random, one an entry, that depend on its place alone."""
    mixed = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        place = lax.broadcasted_iota(jnp.uint32, shape, axis)
        mixed = (mixed ^ place) * jnp.uint32(0x9E3779B1)
        mixed = mixed ^ (mixed >> jnp.uint32(15))
    return mixed * jnp.uint32(0x85EBCA77)


def _signs(bits: jax.Array, number: int, dtype: Any) -> jax.Array:
    """Returns one of several independent patterns of signs."""
    negative = (bits >> jnp.uint32(number + 8)) & jnp.uint32(1)
    return 1 - 2 * negative.astype(dtype)


def nudged(leaf: Any, unit: Any) -> Any:
    """Changes every entry of a leaf by the part ``unit`` of it, up or down."""
    leaf = jnp.asarray(leaf)
    if not is_float(leaf):
        return leaf
    wide = jnp.real(leaf).dtype
    return multiply(leaf, 1 + unit * _signs(_bits(leaf.shape), 0, wider(wide)))


def sketch(gradient: Any, slots: Sequence[int]) -> jax.Array:
    """Returns a few random sums of the gradient of every slot, of shape (slots, sketches).

    Args:
        gradient: The gradient of a leaf.
        slots: The leaf's leading axes, each entry of which is a slot.
    """
    count = len(slots)
    if not is_float(gradient) or not gradient.size:
        return jnp.zeros((*slots, _SKETCHES)).reshape(-1, _SKETCHES)
    wide = jnp.real(gradient) + jnp.imag(gradient) if jnp.iscomplexobj(gradient) else gradient
    wide = wide.astype(wider(wide.dtype))
    rest = range(count, wide.ndim)
    kept = max(rest, key=lambda axis: wide.shape[axis], default=None)
    others = tuple(axis for axis in rest if axis != kept)
    # all but the longest axis first, so that the patterns are computed of few numbers
    line = jnp.mean(wide * _signs(_bits(wide.shape), 0, wide.dtype), others)
    line = line if kept is not None else line[..., None]
    bits = _bits(line.shape)
    sums = [
        jnp.mean(line * _signs(bits, 1 + number, line.dtype), -1) for number in range(_SKETCHES)
    ]
    return jnp.stack(sums, -1).reshape(-1, _SKETCHES).astype(jnp.float32)


def is_rounding(sketches: Any, again: Any, unit: float) -> Any:
    """Returns whether the gradient of each slot is rounding; what is 0 both times is not.

    Args:
        sketches: Those of the gradients, of shape (slots, sketches).
        again: Those of the same, each parameter ``nudged`` by ``unit``.
        unit: What ``rounding_unit`` returned.
    """
    xp = namespace(sketches)
    largest = xp.maximum(abs(sketches), abs(again)).max(-1, keepdims=True)
    usable = (largest > 0) & xp.isfinite(largest)
    scale = xp.where(usable, largest, 1.0)
    first, second = (xp.where(usable, s, 0.0) / scale for s in (sketches, again))
    change = ((first - second) ** 2).sum(-1)
    limit = 0.5 if unit > _HALF else 2.0**-5
    return change > limit**2 * (first**2 + second**2).sum(-1) / 2
