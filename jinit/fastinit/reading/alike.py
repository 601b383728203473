"""Arrays every element of which is computed alike: what equations make of them.

Place i of a result depends on place i of the operands, and on numbers that are the same everywhere.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from jinit.fastinit.reading.on_host import SMALL, exactly
from jinit.fastinit.reading.recipe import are_alike
from jinit.fastinit.reading.values import (
    Bits,
    Drawn,
    Keys,
    Known,
    Node,
    Number,
    Op,
    Value,
    fill_of,
)
from jinit.tracing import aval_of

__all__ = ["as_drawn", "drawn_by", "joined_parts"]

ELEMENTWISE = frozenset(
    """
    abs acos acosh add and asin asinh atan atan2 atanh bessel_i0e bessel_i1e
    bitcast_convert_type cbrt ceil clamp complex conj convert_element_type copy cos cosh
    digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt imag integer_pow is_finite le
    lgamma log log1p logistic lt max min mul ne neg nextafter not or population_count pow real
    reduce_precision rem round rsqrt select_n shift_left shift_right_arithmetic
    shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh xor
    """.split()
)


def drawn_by(equation: jex.JaxprEqn, values: Sequence[Value]) -> Value | None:
    """Returns what an equation makes of such arrays; None where its result is not one."""
    name, aval = equation.primitive.name, aval_of(equation.outvars[0])
    if name == "random_bits":
        return _random_bits(values[0], equation.params["bit_width"], aval)
    if name in _SHAPED:
        return _SHAPED[name](equation, values, aval)
    return _elementwise(equation, values, aval) if name in ELEMENTWISE else None


def _random_bits(keys: Value, width: int, aval: Any) -> Drawn | None:
    if not isinstance(keys, Keys):
        return None
    if not math.prod(aval.shape):  # nothing is drawn
        return Drawn((Number(np.zeros((), aval.dtype)),), aval.shape, aval.dtype)
    words = keys.words.reshape(-1, 2).tolist()
    segments = tuple(Bits((first, second), width) for first, second in words)
    return Drawn(segments, aval.shape, aval.dtype)


def as_drawn(value: Value) -> Drawn | None:
    """Returns a value as one whose elements are computed alike, if it is."""
    if isinstance(value, Drawn):
        return value
    if isinstance(value, Known) and value.array.size == 1:
        return Drawn((Number(value.array.reshape(())),), value.shape, value.array.dtype)
    return None


def _all_drawn(values: Sequence[Value]) -> list[Drawn] | None:
    drawn = [operand for value in values if (operand := as_drawn(value)) is not None]
    return drawn if len(drawn) == len(values) else None


def _elementwise(equation: jex.JaxprEqn, values: Sequence[Value], aval: Any) -> Drawn | None:
    name = equation.primitive.name
    operands, params = _all_drawn(values), _hashable(equation.params)
    if operands is None or params is None:
        return None
    if name == "bitcast_convert_type" and operands[0].dtype.itemsize != aval.dtype.itemsize:
        return None
    parts = max(len(operand.segments) for operand in operands)
    if not all(_fits(operand, parts, aval.shape) for operand in operands):
        return None
    rows = [operand.segments * (parts // len(operand.segments)) for operand in operands]
    segments = tuple(_apply(equation.primitive, params, nodes) for nodes in zip(*rows, strict=True))
    return Drawn(segments, aval.shape, aval.dtype)


def _fits(operand: Drawn, parts: int, shape: tuple[int, ...]) -> bool:
    """Returns whether an operand's elements stand at the same places as the result's.

    One that is the same number everywhere does, whatever its shape.
    """
    if len(operand.segments) == 1 and not operand.random:
        return True
    return len(operand.segments) == parts and operand.size == math.prod(shape)


def _apply(primitive: jex.Primitive, params: tuple, operands: tuple[Node, ...]) -> Node:
    number = _number(primitive, params, operands)
    if number is not None:
        return number
    merged = _merged(primitive, operands)
    if merged is not None:
        return merged
    return Op(primitive, params, operands, any(node.random for node in operands))


def _number(primitive: jex.Primitive, params: tuple, operands: tuple[Node, ...]) -> Number | None:
    """Computes what is made of numbers alone, where that is exact."""
    numbers = [node for node in operands if isinstance(node, Number)]
    if len(numbers) < len(operands):
        return None
    result = exactly(primitive.name, dict(params), [node.value for node in numbers])
    return None if result is None else Number(np.asarray(result))


def _merged(primitive: jex.Primitive, operands: tuple[Node, ...]) -> Node | None:
    """Merges numbers as XLA does, which is to see them as it would in the whole program.

    ``x * 1 = x``, ``(x * a) * b = x * (a * b)``, ``(x + a) + b = x + (a + b)``; ``x / a`` is
    ``x * (1 / a)``. Not in bfloat16, which XLA computes in float32, step by step.
    """
    for read, joins, neutral in ((_factor, jax.lax.mul_p, 1), (_addend, jax.lax.add_p, None)):
        found = read(primitive, operands)
        if found is None:
            continue
        rest, number = found
        if number.dtype == jnp.bfloat16:
            return None
        inner = read(rest.primitive, rest.operands) if isinstance(rest, Op) else None
        if inner is not None:
            rest, first = inner
            with np.errstate(all="ignore"):
                number = np.asarray(_JOINED[joins](first, number))
        elif primitive is not jax.lax.div_p and (neutral is None or number != neutral):
            return None
        if number == neutral:
            return rest
        return Op(joins, (), (rest, Number(number)), rest.random)
    return None


_JOINED = MappingProxyType({jax.lax.mul_p: np.multiply, jax.lax.add_p: np.add})

Split: TypeAlias = tuple[Node, np.ndarray] | None


def _factor(primitive: jex.Primitive, operands: tuple[Node, ...]) -> Split:
    """Divides a product, or what is divided by a number, into the rest and the number."""
    if primitive is jax.lax.mul_p:
        return _by_number(operands)
    divisor = operands[-1]
    if primitive is not jax.lax.div_p or not isinstance(divisor, Number):
        return None
    if not jnp.issubdtype(divisor.value.dtype, np.inexact) or not divisor.value:
        return None
    return operands[0], np.asarray(divisor.value.dtype.type(1) / divisor.value)


def _addend(primitive: jex.Primitive, operands: tuple[Node, ...]) -> Split:
    """Divides a sum into the rest and a number."""
    if primitive is jax.lax.add_p:
        return _by_number(operands)
    if primitive is jax.lax.sub_p and isinstance(operands[1], Number):
        return operands[0], np.asarray(-operands[1].value)
    return None


def _by_number(operands: tuple[Node, ...]) -> Split:
    one, other = operands
    if isinstance(other, Number):
        return one, other.value
    return (other, one.value) if isinstance(one, Number) else None


def _hashable(params: Mapping[str, Any]) -> tuple[tuple[str, Any], ...] | None:
    pairs = tuple(sorted(params.items()))
    try:
        hash(pairs)
    except TypeError:
        return None
    return pairs


def _reshaped(equation: jex.JaxprEqn, values: Sequence[Value], aval: Any) -> Drawn | None:
    value = as_drawn(values[0])
    transposes = equation.primitive.name == "reshape" and equation.params["dimensions"]
    if value is None or transposes:
        return None
    return Drawn(value.segments, aval.shape, value.dtype)


def _spread(equation: jex.JaxprEqn, values: Sequence[Value], aval: Any) -> Drawn | None:
    """Broadcasts one number, or what only gets axes of length 1."""
    value = as_drawn(values[0])
    if value is None:
        return None
    if value.size == math.prod(aval.shape):
        return Drawn(value.segments, aval.shape, value.dtype)
    alike = len(value.segments) == 1 and not value.random
    return Drawn(value.segments, aval.shape, value.dtype) if alike else None


def _joined(equation: jex.JaxprEqn, values: Sequence[Value], aval: Any) -> Value | None:
    """Puts equal parts one after another along the first axis."""
    operands, axis = _all_drawn(values), equation.params["dimension"]
    if operands is None:
        return None
    numbers = [fill_of(operand) for operand in operands]
    if math.prod(aval.shape) <= SMALL and None not in numbers:
        pairs = zip(operands, numbers, strict=True)
        return Known(np.concatenate([np.full(x.shape, n, aval.dtype) for x, n in pairs], axis))
    return joined_parts(operands, aval.shape) if axis == 0 else None


def _stacked(equation: jex.JaxprEqn, values: Sequence[Value], aval: Any) -> Drawn | None:
    """Puts arrays one after another along a new first axis."""
    operands = _all_drawn(values)
    if operands is None or equation.params["axis"] != 0:
        return None
    return joined_parts(operands, aval.shape)


def joined_parts(parts: Sequence[Drawn], shape: tuple[int, ...]) -> Drawn | None:
    """Puts arrays one after another; None where their segments differ in size or in recipe."""
    segments = tuple(node for part in parts for node in part.segments)
    numbers = {node.value.tobytes() if isinstance(node, Number) else None for node in segments}
    if len(numbers) == 1 and None not in numbers:
        return Drawn(segments[:1], shape, parts[0].dtype)
    sizes = {part.size / len(part.segments) for part in parts}
    if len(sizes) > 1 or not are_alike(segments):
        return None
    return Drawn(segments, shape, parts[0].dtype)


_SHAPED: Mapping[str, Callable[..., Value | None]] = MappingProxyType(
    {
        "reshape": _reshaped,
        "squeeze": _reshaped,
        "expand_dims": _reshaped,
        "broadcast_in_dim": _spread,
        "concatenate": _joined,
        "stack": _stacked,
    }
)
