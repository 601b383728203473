"""Constants that a half dtype does not hold, as the user wrote them.

In ``x + 1e-12`` with a float16 ``x`` JAX rounds the constant to 0 before the program exists, and
in ``mask * -1e9`` to minus infinity. The same function of float32 arrays still has it: where the
two programs do the same, the constants of the half one are read from the other.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from jax.extend import core as jex

from jinit.amp.casting.dtypes import FLOAT32
from jinit.amp.casting.ranges import is_lost
from jinit.tracing import aval_of, sub_jaxprs

__all__ = ["has_lost_constants", "restore_constants"]

_CONVERSION = "convert_element_type"


def has_lost_constants(jaxpr: jex.Jaxpr, half: np.dtype) -> bool:
    """Returns whether a program has a constant that another may have been rounded to."""
    return any(
        any(_may_be_lost(atom, half) for atom in equation.invars)
        or any(has_lost_constants(inner, half) for inner in sub_jaxprs(equation))
        for equation in jaxpr.eqns
    )


def _may_be_lost(atom: Any, half: np.dtype) -> bool:
    if not isinstance(atom, jex.Literal) or aval_of(atom).dtype != half:
        return False
    value = float(atom.val)
    return np.isinf(value) or (value == 0 and is_lost(1e-12, half))


def restore_constants(jaxpr: jex.Jaxpr, wide: jex.Jaxpr, half: np.dtype) -> jex.Jaxpr:
    """Returns a program with its lost constants, in float32, from the same one of wider arrays.

    Args:
        jaxpr: The half program.
        wide: The one of float32 arrays. Where it does something else nothing is read from it.
        half: The half dtype.
    """
    return _Restoration(half).jaxpr(jaxpr, wide)


class _Restoration:
    """Pairs programs; one that is called twice stays one."""

    def __init__(self, half: np.dtype) -> None:
        self.half = half
        self._done: dict[tuple[int, int], jex.Jaxpr] = {}

    def jaxpr(self, jaxpr: jex.Jaxpr, wide: jex.Jaxpr) -> jex.Jaxpr:
        key = id(jaxpr), id(wide)
        if key not in self._done:
            self._done[key] = self._restored(jaxpr, wide)
        return self._done[key]

    def _restored(self, jaxpr: jex.Jaxpr, wide: jex.Jaxpr) -> jex.Jaxpr:
        if _names(jaxpr) != _names(wide):
            return jaxpr
        others: Iterator[jex.JaxprEqn] = filter(_computes, wide.eqns)
        new = [self._equation(e, next(others)) if _computes(e) else e for e in jaxpr.eqns]
        return jaxpr if _same(new, jaxpr.eqns) else jaxpr.replace(eqns=new)

    def _equation(self, equation: jex.JaxprEqn, wide: jex.JaxprEqn) -> jex.JaxprEqn:
        atoms = equation.invars
        if len(atoms) == len(wide.invars):
            atoms = [self._atom(*pair) for pair in zip(atoms, wide.invars, strict=True)]
        old = equation.params
        params = {name: self._param(value, wide.params.get(name)) for name, value in old.items()}
        if _same(atoms, equation.invars) and _same(params.values(), old.values()):
            return equation
        return equation.replace(invars=[*atoms], params=params)

    def _atom(self, atom: Any, wide: Any) -> Any:
        if not _may_be_lost(atom, self.half) or not isinstance(wide, jex.Literal):
            return atom
        if aval_of(wide).dtype != FLOAT32 or not is_lost(float(wide.val), self.half):
            return atom
        return jex.Literal(np.float32(float(wide.val)), aval_of(atom))

    def _param(self, value: Any, wide: Any) -> Any:
        if isinstance(value, jex.ClosedJaxpr) and isinstance(wide, jex.ClosedJaxpr):
            inner = self.jaxpr(value.jaxpr, wide.jaxpr)
            return value if inner is value.jaxpr else value.replace(jaxpr=inner)
        if isinstance(value, jex.Jaxpr) and isinstance(wide, jex.Jaxpr):
            return self.jaxpr(value, wide)
        if isinstance(value, tuple) and isinstance(wide, tuple) and len(value) == len(wide):
            new = tuple(self._param(*pair) for pair in zip(value, wide, strict=True))
            return value if _same(new, value) else new
        return value


def _same(new: Iterable[Any], old: Iterable[Any]) -> bool:
    return all(one is other for one, other in zip(new, old, strict=True))


def _computes(equation: jex.JaxprEqn) -> bool:
    return equation.primitive.name != _CONVERSION


def _names(jaxpr: jex.Jaxpr) -> list[str]:
    return [equation.primitive.name for equation in jaxpr.eqns if _computes(equation)]
