"""Numbers for equations, equal where two equations do the same to their operands."""

import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex

from jinit.tracing._jax import aval_of, close, comparable_params
from jinit.tracing.rolling.remat import is_liftable, is_remat
from jinit.tracing.structure import inlined_body
from jinit.tracing.walk import walk

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
        self._known: dict[tuple[int, bool], tuple[Any, int]] = {}  # keeps what it has seen alive

    def number(self, key: Hashable) -> int:
        """Returns the number of a key, a new one at its first appearance."""
        return self._numbers.setdefault(key, len(self._numbers))

    def equation(self, equation: jex.JaxprEqn, lifted: bool = False) -> int:
        """Returns the number of an equation's primitive, parameters and context.

        Args:
            equation: The equation.
            lifted: Whether the whole numbers in a call do not matter; in a ``jax.checkpoint``
                they never do.
        """
        lifted = is_remat(equation) or (lifted and inlined_body(equation) is not None)
        return self._once(equation, lifted, self._equation)

    def _once(self, part: Any, lifted: bool, key: Callable[[Any, bool], Hashable]) -> int:
        place = id(part), lifted
        if place not in self._known:
            self._known[place] = part, self.number(key(part, lifted))
        return self._known[place][1]

    def _equation(self, equation: jex.JaxprEqn, lifted: bool) -> Hashable:
        params = comparable_params(equation)
        keys = tuple((name, self._key(params[name], lifted)) for name in sorted(params))
        return equation.primitive, equation.ctx, keys

    def _key(self, value: Any, lifted: bool = False) -> Hashable:
        kind = type(value)
        if kind in _PLAIN:
            return kind, value
        if kind is tuple and all(type(part) is int for part in value):
            return value
        if isinstance(value, (tuple, list)):
            return kind, *map(self._key, value)
        if isinstance(value, (jex.Jaxpr, jex.ClosedJaxpr)):
            return "jaxpr", self._once(value, lifted, self._jaxpr)
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

    def _jaxpr(self, jaxpr: Any, lifted: bool) -> Hashable:
        opened, consts = close(jaxpr)
        count = itertools.count()
        rows: list[Hashable] = [tuple(map(array_key, consts))]

        def define(variables: Sequence[Any]) -> list[Hashable]:
            rows.append(tuple(map(aval_of, variables)))
            return list(itertools.islice(count, len(variables)))

        def step(index: int, equation: jex.JaxprEqn, operands: list[Hashable]) -> list[Hashable]:
            rows.append((self.equation(equation, lifted), tuple(operands)))
            return define(equation.outvars)

        def literal(atom: Any) -> Hashable:
            if lifted and is_liftable(atom):
                return "lifted", aval_of(atom)
            return aval_of(atom), array_key(atom.val)

        outputs = walk(opened, define(opened.constvars), define(opened.invars), step, literal)
        return *rows, tuple(outputs)
