"""The equations of a program: all of them, and one by one beside those of another."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jax.extend import core as jex

from jinit.tracing._jax import sub_jaxprs

__all__ = ["equations_of", "replace_beside"]


def equations_of(jaxpr: jex.Jaxpr) -> Iterator[jex.JaxprEqn]:
    """Yields the equations of a program, each before those of its sub-jaxprs.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> program = jax.make_jaxpr(lambda x: -jax.jit(jnp.tanh)(x))(1.0).jaxpr
        >>> [equation.primitive.name for equation in equations_of(program)]
        ['jit', 'tanh', 'neg']
    """
    for equation in jaxpr.eqns:
        yield equation
        for inner in sub_jaxprs(equation):
            yield from equations_of(inner)


def replace_beside(
    jaxpr: jex.Jaxpr,
    other: jex.Jaxpr,
    replace: Callable[[Any, Any], Any],
    *,
    counts: Callable[[jex.JaxprEqn], bool],
) -> jex.Jaxpr:
    """Returns a program with operands replaced by what another has in their place.

    Args:
        jaxpr: The program. What is not replaced in it stays the same object, so that a function
            that is called twice stays one.
        other: One with the same primitives in the same order. Where that does not hold of a
            sub-jaxpr, nothing in it is replaced.
        replace: Given an operand and the other's, returns either the operand or a new one.
        counts: Returns whether an equation has one beside it; those that have none may be
            anywhere in both, and stay.
    """
    return _Pairs(replace, counts).replaced(jaxpr, other)


class _Pairs:
    """Goes through two programs at once; a pair of jaxprs that is met again is not gone into."""

    def __init__(
        self, replace: Callable[[Any, Any], Any], counts: Callable[[jex.JaxprEqn], bool]
    ) -> None:
        self.replace, self.counts = replace, counts
        self._done: dict[tuple[str, int, int], Any] = {}

    def _once(self, make: Callable[[Any, Any], Any], value: Any, other: Any) -> Any:
        key = make.__name__, id(value), id(other)
        if key not in self._done:
            self._done[key] = make(value, other)
        return self._done[key]

    def replaced(self, jaxpr: jex.Jaxpr, other: jex.Jaxpr) -> jex.Jaxpr:
        if self._names(jaxpr) != self._names(other):
            return jaxpr
        beside = filter(self.counts, other.eqns)
        new = [self._equation(e, next(beside)) if self.counts(e) else e for e in jaxpr.eqns]
        return jaxpr if _same(new, jaxpr.eqns) else jaxpr.replace(eqns=new)

    def closed(self, closed: jex.ClosedJaxpr, other: jex.ClosedJaxpr) -> jex.ClosedJaxpr:
        inner = self._once(self.replaced, closed.jaxpr, other.jaxpr)
        return closed if inner is closed.jaxpr else closed.replace(jaxpr=inner)

    def _names(self, jaxpr: jex.Jaxpr) -> list[str]:
        return [equation.primitive.name for equation in filter(self.counts, jaxpr.eqns)]

    def _equation(self, equation: jex.JaxprEqn, other: jex.JaxprEqn) -> jex.JaxprEqn:
        atoms, old = equation.invars, equation.params
        if len(atoms) == len(other.invars):
            atoms = [self.replace(*pair) for pair in zip(atoms, other.invars, strict=True)]
        params = {name: self._param(value, other.params.get(name)) for name, value in old.items()}
        if _same(atoms, equation.invars) and _same(params.values(), old.values()):
            return equation
        return equation.replace(invars=[*atoms], params=params)

    def _param(self, value: Any, other: Any) -> Any:
        if isinstance(value, jex.ClosedJaxpr) and isinstance(other, jex.ClosedJaxpr):
            return self._once(self.closed, value, other)
        if isinstance(value, jex.Jaxpr) and isinstance(other, jex.Jaxpr):
            return self._once(self.replaced, value, other)
        if isinstance(value, tuple) and isinstance(other, tuple) and len(value) == len(other):
            new = tuple(self._param(*pair) for pair in zip(value, other, strict=True))
            return value if _same(new, value) else new
        return value


def _same(new: Iterable[Any], old: Iterable[Any]) -> bool:
    return all(one is other for one, other in zip(new, old, strict=True))
