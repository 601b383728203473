"""Calls that are taken apart, and whole numbers that are taken out of rematerialized blocks."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex

from jinit.tracing._jax import aval_of, bind, equation_context, is_pinned
from jinit.tracing.structure import Body, structure_of

__all__ = ["called", "is_liftable", "is_remat", "lifted_literals", "run_lifted"]


def called(equation: jex.JaxprEqn) -> Body | None:
    """Returns the body of a jit that pins no sharding, and None for all other equations."""
    params = equation.params
    if "jaxpr" not in params and "call_jaxpr" not in params:
        return None
    structure = structure_of(equation)
    pinned = "in_shardings" in params and is_pinned(params)
    return structure.bodies[0] if structure.kind == "jit" and not pinned else None


def is_remat(equation: jex.JaxprEqn) -> bool:
    """Returns whether an equation is a ``jax.checkpoint``."""
    return "policy" in equation.params and structure_of(equation).kind == "remat"


def is_liftable(atom: Any) -> bool:
    """Returns whether an operand is a whole number in the program, which may vary over blocks."""
    if not isinstance(atom, jex.Literal):
        return False
    aval = aval_of(atom)
    return aval.shape == () and not jnp.issubdtype(aval.dtype, jnp.inexact)


def lifted_literals(jaxpr: jex.Jaxpr) -> Iterator[Any]:
    """Lists the whole numbers in a jaxpr, those of the calls in it included."""
    for equation in jaxpr.eqns:
        yield from filter(is_liftable, equation.invars)
        body = called(equation)
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
    env: dict[Any, Any] = dict(zip(body.jaxpr.constvars, body.consts, strict=True))
    env.update(zip(body.jaxpr.invars, values, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, jex.Literal) else env[atom]

    for equation in body.jaxpr.eqns:
        operands = [next(numbers) if is_liftable(a) else read(a) for a in equation.invars]
        inner = called(equation)
        with equation_context(equation):
            if inner is not None:
                results = _substituted(inner, operands, numbers)
            else:
                results = bind(equation, operands, equation.params)
        env.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in body.jaxpr.outvars]
