"""Reads, from the program of an initialization, what each of its leaves is."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from jinit.fastinit.reading.alike import as_drawn, drawn_by, joined_parts
from jinit.fastinit.reading.on_host import SMALL, compute
from jinit.fastinit.reading.values import (
    Computed,
    Drawn,
    Equation,
    Given,
    Keys,
    Known,
    Value,
    fill_of,
)
from jinit.tracing import aval_of, structure_of
from jinit.tracing._jax import is_pinned
from jinit.tracing.structure import Body, Structure
from jinit.tracing.walk import walk

__all__ = ["outside", "read_program"]

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
    if equation.primitive.name == "unstack":  # jax >= 0.12
        rows = _rows(values[0], len(equation.outvars), equation.params["axis"])
        if rows is not None:
            return rows
    result = _plain(equation, values) if structure.kind == "plain" else None
    if result is not None:
        return [result]
    source = Equation(equation, tuple(values))
    return [Computed(source, index) for index in range(len(equation.outvars))]


_INLINED = frozenset({"jit", "remat", "custom_jvp", "custom_vjp"})


def _is_pinned(equation: jex.JaxprEqn) -> bool:
    return "in_shardings" in equation.params and is_pinned(equation.params)


def _body(body: Body, values: Sequence[Value]) -> list[Value]:
    return read_program(body.jaxpr, [outside(const) for const in body.consts], values)


def _plain(equation: jex.JaxprEqn, values: Sequence[Value]) -> Value | None:
    if len(equation.outvars) != 1:
        return None
    if all(isinstance(value, Known | Keys) for value in values) and not _is_fill(equation, values):
        result = compute(equation, values)
        if result is not None:
            return result
    if equation.primitive.name in _SAME:
        # A constraint of an output is read from the program; see ``program``.
        return None if isinstance(values[0], Computed) else values[0]
    return drawn_by(equation, values)


def _is_fill(equation: jex.JaxprEqn, values: Sequence[Value]) -> bool:
    spreads = equation.primitive.name == "broadcast_in_dim"
    return spreads and isinstance(values[0], Known) and values[0].array.size == 1


def _unrolled(
    equation: jex.JaxprEqn, structure: Structure, values: Sequence[Value]
) -> list[Value] | None:
    """Reads a scan iteration by iteration; None where one of its results is not known so."""
    if not 0 < structure.length <= _LONGEST or equation.params["reverse"]:
        return None
    num_consts, num_carry = structure.num_consts, structure.num_carry
    consts, carry = values[:num_consts], list(values[num_consts : num_consts + num_carry])
    scanned = values[num_consts + num_carry :]
    rows = [row for value in scanned if (row := _rows(value, structure.length)) is not None]
    if len(rows) < len(scanned):
        return None
    collected = []
    for index in range(structure.length):
        results = _body(structure.bodies[0], [*consts, *carry, *(row[index] for row in rows)])
        carry, outputs = results[:num_carry], results[num_carry:]
        if any(isinstance(value, Computed) for value in results):
            return None
        collected.append(outputs)
    parts = list(zip(*collected, strict=True))
    stacked = [whole for part in parts if (whole := _stacked(part)) is not None]
    return [*carry, *stacked] if len(stacked) == len(parts) else None


def _rows(value: Value, length: int, axis: int = 0) -> Sequence[Value] | None:
    """Divides a value along an axis; None where that cannot be known."""
    if isinstance(value, Known):
        return [Known(row) for row in np.moveaxis(value.array, axis, 0)]
    if isinstance(value, Keys):
        return [Keys(row) for row in np.moveaxis(value.words, axis, 0)]
    if not isinstance(value, Drawn) or axis:
        return None
    if fill_of(value) is not None:
        return [Drawn(value.segments, value.shape[1:], value.dtype) for _ in range(length)]
    if len(value.segments) % length == 0:
        each = len(value.segments) // length
        cut = [value.segments[n * each : (n + 1) * each] for n in range(length)]
        return [Drawn(nodes, value.shape[1:], value.dtype) for nodes in cut]
    return None


def _stacked(parts: Sequence[Value]) -> Value | None:
    known = [part.array for part in parts if isinstance(part, Known)]
    if len(known) == len(parts) and sum(array.size for array in known) <= SMALL:
        return Known(np.stack(known))
    keys = [part.words for part in parts if isinstance(part, Keys)]
    if len(keys) == len(parts):
        return Keys(np.stack(keys))
    drawn = [one for part in parts if (one := as_drawn(part)) is not None]
    if len(drawn) < len(parts):
        return None
    return joined_parts(drawn, (len(parts), *drawn[0].shape))
