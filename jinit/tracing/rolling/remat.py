"""Rematerialized blocks, which differ by the whole numbers in them alone.

A ``jax.checkpoint`` keeps its body, so that the number of a layer, folded into a key there, is part
of the program. Such numbers are lifted: they become operands, of which every block has its own.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.extend import core as jex

from jinit.tracing._jax import aval_of, bind, equation_context, holds_float
from jinit.tracing.structure import Body, inlined_body, structure_of
from jinit.tracing.walk import walk

__all__ = ["is_liftable", "is_remat", "lifted_literals", "run_lifted"]


def is_remat(equation: jex.JaxprEqn) -> bool:
    """Returns whether an equation is a ``jax.checkpoint``."""
    return "policy" in equation.params and structure_of(equation).kind == "remat"


def is_liftable(atom: Any) -> bool:
    """Returns whether an operand is a whole number in the program, which may vary over blocks."""
    if not isinstance(atom, jex.Literal):
        return False
    return aval_of(atom).shape == () and not holds_float(atom)


def lifted_literals(jaxpr: jex.Jaxpr) -> Iterator[Any]:
    """Lists the whole numbers in a jaxpr, those of the calls in it included."""
    for equation in jaxpr.eqns:
        yield from filter(is_liftable, equation.invars)
        body = inlined_body(equation)
        if body is not None:
            yield from lifted_literals(body.jaxpr)


def run_lifted(equation: jex.JaxprEqn, values: Sequence[Any], numbers: Sequence[Any]) -> list[Any]:
    """Runs a ``jax.checkpoint`` with other values in place of the whole numbers in it."""
    (body,), params = structure_of(equation).bodies, equation.params

    def run(values: Sequence[Any], numbers: Sequence[Any]) -> list[Any]:
        return _substituted(body, values, iter(numbers))

    run = jax.checkpoint(run, policy=params["policy"], prevent_cse=params["prevent_cse"])
    return run(list(values), list(numbers))


def _substituted(body: Body, values: Sequence[Any], numbers: Iterator[Any]) -> list[Any]:
    def step(index: int, equation: jex.JaxprEqn, operands: list[Any]) -> list[Any]:
        pairs = zip(equation.invars, operands, strict=True)
        operands = [next(numbers) if is_liftable(atom) else value for atom, value in pairs]
        inner = inlined_body(equation)
        with equation_context(equation):
            if inner is not None:
                return _substituted(inner, operands, numbers)
            return bind(equation, operands, equation.params)

    return walk(body.jaxpr, body.consts, values, step)
