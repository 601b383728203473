"""Reads, from the program of an initialization, what each of its leaves is."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from jinit.fastinit.on_host import SMALL, compute, exactly
from jinit.fastinit.recipe import are_alike
from jinit.fastinit.values import (
    Bits,
    Computed,
    Drawn,
    Equation,
    Given,
    Keys,
    Known,
    Node,
    Number,
    Op,
    Value,
    is_fill,
)
from jinit.tracing import aval_of, structure_of
from jinit.tracing.structure import Body, Structure
from jinit.tracing.walk import walk

__all__ = ["outside", "read_program"]

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
_SAME = frozenset({"copy", "copy_p", "sharding_constraint", "stop_gradient"})
_LONGEST = 1024  # iterations of a scan that are looked into


def read_program(jaxpr: jex.Jaxpr, consts: Sequence[Value], args: Sequence[Value]) -> list[Value]:
    """Returns what the outputs of a program are, whose unused equations have been taken out."""

    def step(index: int, equation: jex.JaxprEqn, values: list[Value]) -> Sequence[Value]:
        return _read(equation, values)

    return walk(jaxpr, consts, args, step, _literal)


def outside(array: Any) -> Known | Keys | Given:
    """Returns an argument or a constant: known where it is small and there, else as it is."""
    if isinstance(array, jax.ShapeDtypeStruct) or math.prod(array.shape) > SMALL:
        return Given(array)
    if not jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return Known(np.asarray(array))
    if str(jax.random.key_impl(array)) == "threefry2x32":
        return Keys(np.asarray(jax.random.key_data(array)))
    return Given(array)


def _literal(atom: Any) -> Known:
    return Known(np.asarray(atom.val, aval_of(atom).dtype))


def _read(equation: jex.JaxprEqn, values: list[Value]) -> Sequence[Value]:
    structure = structure_of(equation)
    if structure.kind in _INLINED and not _is_pinned(equation):
        return _body(structure.bodies[0], values)
    if structure.kind == "cond" and isinstance(values[0], Known):
        branches = structure.bodies
        place = min(max(int(values[0].array), 0), len(branches) - 1)
        return _body(branches[place], values[1:])
    if structure.kind == "scan":
        found = _unrolled(equation, structure, values)
        if found is not None:
            return found
    result = _plain(equation, values) if structure.kind == "plain" else None
    if result is not None:
        return [result]
    source = Equation(equation, tuple(values))
    return [Computed(source, index) for index in range(len(equation.outvars))]


_INLINED = frozenset({"jit", "remat", "custom_jvp", "custom_vjp"})


def _is_pinned(equation: jex.JaxprEqn) -> bool:
    from jinit.tracing._jax import is_pinned

    return "in_shardings" in equation.params and is_pinned(equation.params)


def _body(body: Body, values: Sequence[Value]) -> list[Value]:
    return read_program(body.jaxpr, [outside(const) for const in body.consts], values)


def _plain(equation: jex.JaxprEqn, values: Sequence[Value]) -> Value | None:
    if len(equation.outvars) != 1:
        return None
    if all(isinstance(value, Known | Keys) for value in values):
        result = compute(equation, values)
        if result is not None and not _is_fill(equation, values):
            return result
    name, aval = equation.primitive.name, aval_of(equation.outvars[0])
    if name == "random_bits":
        return _random_bits(values[0], equation.params["bit_width"], aval)
    if name in _SHAPED:
        return _SHAPED[name](equation, values, aval)
    if name in _SAME:
        # A constraint of an output is read from the program; see ``program``.
        return None if isinstance(values[0], Computed) else values[0]
    if name in ELEMENTWISE:
        return _elementwise(equation, values, aval)
    return None


def _is_fill(equation: jex.JaxprEqn, values: Sequence[Value]) -> bool:
    spreads = equation.primitive.name == "broadcast_in_dim"
    return spreads and isinstance(values[0], Known) and values[0].array.size == 1


def _random_bits(keys: Value, width: int, aval: Any) -> Drawn | None:
    if not isinstance(keys, Keys):
        return None
    words = keys.words.reshape(-1, 2).tolist()
    segments = tuple(Bits((first, second), width) for first, second in words)
    return Drawn(segments, aval.shape, aval.dtype)


def _drawn(value: Value) -> Drawn | None:
    """Returns a value as one whose elements are computed alike, if it is."""
    if isinstance(value, Drawn):
        return value
    if isinstance(value, Known) and value.array.size == 1:
        return Drawn((Number(value.array.reshape(())[()]),), value.shape, value.array.dtype)
    return None


def _elementwise(equation: jex.JaxprEqn, values: Sequence[Value], aval: Any) -> Drawn | None:
    name = equation.primitive.name
    operands = [_drawn(value) for value in values]
    params = _hashable(equation.params)
    if None in operands or params is None:
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
    if not all(isinstance(node, Number) for node in operands):
        return None
    result = exactly(primitive.name, dict(params), [np.asarray(node.value) for node in operands])
    return None if result is None else Number(np.asarray(result)[()])


def _merged(primitive: jex.Primitive, operands: tuple[Node, ...]) -> Node | None:
    """Merges the factors of two products, as XLA does: ``(x * a) * b = x * (a * b)``."""
    if primitive.name != "mul":
        return None
    inner, factor = _by_number(operands)
    if factor is None or not isinstance(inner, Op) or inner.primitive.name != "mul":
        return None
    rest, first = _by_number(inner.operands)
    if first is None:
        return None
    product = Number(np.multiply(first.value, factor.value))
    return Op(inner.primitive, inner.params, (rest, product), inner.random)


def _by_number(operands: tuple[Node, ...]) -> tuple[Node, Number | None]:
    one, other = operands
    if isinstance(other, Number):
        return one, other
    return (other, one) if isinstance(one, Number) else (one, None)


def _hashable(params: Mapping[str, Any]) -> tuple[tuple[str, Any], ...] | None:
    pairs = tuple(sorted(params.items()))
    try:
        hash(pairs)
    except TypeError:
        return None
    return pairs


def _reshaped(equation: jex.JaxprEqn, values: Sequence[Value], aval: Any) -> Drawn | None:
    value = _drawn(values[0])
    transposes = equation.primitive.name == "reshape" and equation.params["dimensions"]
    if value is None or transposes:
        return None
    return Drawn(value.segments, aval.shape, value.dtype)


def _spread(equation: jex.JaxprEqn, values: Sequence[Value], aval: Any) -> Drawn | None:
    """Broadcasts one number, or what only gets axes of length 1."""
    value = _drawn(values[0])
    if value is None:
        return None
    if value.size == math.prod(aval.shape):
        return Drawn(value.segments, aval.shape, value.dtype)
    alike = len(value.segments) == 1 and not value.random
    return Drawn(value.segments, aval.shape, value.dtype) if alike else None


def _joined(equation: jex.JaxprEqn, values: Sequence[Value], aval: Any) -> Value | None:
    """Puts equal parts one after another along the first axis."""
    operands = [_drawn(value) for value in values]
    if None in operands:
        return None
    if math.prod(aval.shape) <= SMALL and all(map(is_fill, operands)):
        arrays = [np.full(x.shape, x.segments[0].value, aval.dtype) for x in operands]
        return Known(np.concatenate(arrays, equation.params["dimension"]))
    part = {operand.size / len(operand.segments) for operand in operands}
    segments = tuple(node for operand in operands for node in operand.segments)
    if equation.params["dimension"] != 0 or len(part) > 1 or not are_alike(segments):
        return None
    return Drawn(segments, aval.shape, aval.dtype)


_SHAPED: Mapping[str, Callable[..., Value | None]] = MappingProxyType(
    {
        "reshape": _reshaped,
        "squeeze": _reshaped,
        "expand_dims": _reshaped,
        "broadcast_in_dim": _spread,
        "concatenate": _joined,
    }
)


def _unrolled(
    equation: jex.JaxprEqn, structure: Structure, values: Sequence[Value]
) -> list[Value] | None:
    """Reads a scan iteration by iteration; None where one of its results is not known so."""
    if structure.length > _LONGEST or equation.params["reverse"]:
        return None
    num_consts, num_carry = structure.num_consts, structure.num_carry
    consts, carry = values[:num_consts], list(values[num_consts : num_consts + num_carry])
    rows = [_rows(value, structure.length) for value in values[num_consts + num_carry :]]
    if None in rows:
        return None
    collected = []
    for index in range(structure.length):
        results = _body(structure.bodies[0], [*consts, *carry, *(row[index] for row in rows)])
        carry, outputs = results[:num_carry], results[num_carry:]
        if any(isinstance(value, Computed) for value in results):
            return None
        collected.append(outputs)
    stacked = [_stacked(parts) for parts in zip(*collected, strict=True)]
    return None if None in stacked else [*carry, *stacked]


def _rows(value: Value, length: int) -> list[Value] | None:
    if isinstance(value, Known):
        return [Known(row) for row in value.array]
    if isinstance(value, Keys):
        return [Keys(row) for row in value.words]
    if isinstance(value, Drawn) and len(value.segments) % length == 0:
        each = len(value.segments) // length
        cut = [value.segments[n * each : (n + 1) * each] for n in range(length)]
        return [Drawn(nodes, value.shape[1:], value.dtype) for nodes in cut]
    return None


def _stacked(parts: Sequence[Value]) -> Value | None:
    if all(isinstance(part, Known) and part.array.size * len(parts) <= SMALL for part in parts):
        return Known(np.stack([part.array for part in parts]))
    if all(isinstance(part, Keys) for part in parts):
        return Keys(np.stack([part.words for part in parts]))
    drawn = [_drawn(part) for part in parts]
    if None in drawn:
        return None
    segments = tuple(node for part in drawn for node in part.segments)
    if not are_alike(segments):
        return None
    return Drawn(segments, (len(parts), *drawn[0].shape), drawn[0].dtype)
