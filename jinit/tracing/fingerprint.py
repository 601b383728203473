"""Numbers for equations, equal where two equations do the same to their operands."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex

from jinit.tracing._jax import aval_of, close, comparable_params

_PLAIN = frozenset({bool, int, str, type(None)})

__all__ = ["Fingerprints", "array_key"]


def array_key(array: Any) -> Hashable:
    """Returns what tells a constant from others: its value on the host, else its identity."""
    if isinstance(array, jax.Array):
        return id(array)
    array = np.asarray(array)
    return array.dtype, array.shape, array.tobytes()


class Fingerprints:
    """Numbers keys and equations.

    Sub-jaxprs are compared by structure, arrays on the host by value, and what cannot be
    compared by identity: equal numbers mean equal meaning, while different ones may not differ.
    """

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._known: dict[int, tuple[Any, int]] = {}  # by identity; keeps what it has seen alive

    def number(self, key: Hashable) -> int:
        """Returns the number of a key, a new one at its first appearance."""
        return self._numbers.setdefault(key, len(self._numbers))

    def equation(self, equation: jex.JaxprEqn) -> int:
        """Returns the number of an equation's primitive, parameters and context."""
        return self._once(equation, self._equation)

    def _once(self, part: Any, key: Callable[[Any], Hashable]) -> int:
        if id(part) not in self._known:
            self._known[id(part)] = part, self.number(key(part))
        return self._known[id(part)][1]

    def _equation(self, equation: jex.JaxprEqn) -> Hashable:
        params = comparable_params(equation)
        keys = tuple((name, self._key(params[name])) for name in sorted(params))
        return equation.primitive, equation.ctx, keys

    def _key(self, value: Any) -> Hashable:
        kind = type(value)
        if kind in _PLAIN:
            return kind, value
        if kind is tuple and all(type(part) is int for part in value):
            return value
        if isinstance(value, (tuple, list)):
            return kind, *map(self._key, value)
        if isinstance(value, (jex.Jaxpr, jex.ClosedJaxpr)):
            return "jaxpr", self._once(value, self._jaxpr)
        if isinstance(value, dict):
            return "dict", tuple((name, self._key(value[name])) for name in sorted(value, key=str))
        if isinstance(value, (np.ndarray, np.generic)):
            return array_key(value)
        if isinstance(value, (float, complex)):
            return kind, repr(value)  # tells -0.0 from 0.0, and equals itself if nan
        try:
            hash(value)
        except TypeError:
            return "identity", id(value)
        return kind, value

    def _jaxpr(self, jaxpr: Any) -> Hashable:
        opened, consts = close(jaxpr)
        inputs = [*opened.constvars, *opened.invars]
        index: dict[Any, int] = {}

        def define(variables: Sequence[Any]) -> tuple[Any, ...]:
            index.update(
                zip(variables, range(len(index), len(index) + len(variables)), strict=True)
            )
            return tuple(map(aval_of, variables))

        def read(atom: Any) -> Hashable:
            if isinstance(atom, jex.Literal):
                return aval_of(atom), array_key(atom.val)
            return index[atom]

        rows: list[Hashable] = [tuple(map(array_key, consts)), define(inputs)]
        for equation in opened.eqns:
            operands = tuple(map(read, equation.invars))
            rows.append((self.equation(equation), operands, define(equation.outvars)))
        return *rows, tuple(map(read, opened.outvars))
