"""How scans, while loops and branches are evaluated."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jex

from jinit.tracing._jax import aval_of
from jinit.tracing.declared import cast_to_declared
from jinit.tracing.interpreter import Entry, Interpreter, Reaped
from jinit.tracing.structure import Body, below

__all__ = ["evaluate_cond", "evaluate_scan", "evaluate_while"]


def evaluate_scan(run: Interpreter, entry: Entry) -> tuple[list[Any], Reaped]:
    """Goes into a scan: what is planted is sliced, and what is reaped is stacked."""
    structure, params, path = entry.structure, entry.equation.params, entry.path
    body, values = structure.bodies[0], cast_to_declared(entry.values, entry.equation.invars)
    first, second = structure.num_consts, structure.num_consts + structure.num_carry
    consts, carry, xs = values[:first], values[first:second], values[second:]

    def step(carry: list[Any], sliced: Any) -> Any:
        xs, planted = sliced
        outputs, reaped = run.body(body, [*consts, *carry, *xs], planted, path)
        outputs = cast_to_declared(outputs, body.jaxpr.outvars)
        return outputs[: len(carry)], (outputs[len(carry) :], reaped)

    carry, (ys, reaped) = lax.scan(
        step,
        carry,
        (xs, below(entry.planted, path)),
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*carry, *ys], reaped


def evaluate_while(run: Interpreter, entry: Entry) -> tuple[list[Any], Reaped]:
    """Goes into a while loop; nothing can be reaped from it, since its length is unknown."""
    structure, path = entry.structure, entry.path
    condition, body = structure.bodies
    values = cast_to_declared(entry.values, entry.equation.invars)
    num_body = len(values) - structure.num_consts - structure.num_carry
    tested, rest = values[: structure.num_consts], values[structure.num_consts :]

    def test(carry: list[Any]) -> jax.Array:
        return run.body(condition, [*tested, *carry], {}, (*path, 0))[0][0]

    def step(carry: list[Any]) -> list[Any]:
        outputs, _ = run.body(body, [*rest[:num_body], *carry], {}, (*path, 1))
        return cast_to_declared(outputs, body.jaxpr.outvars)

    if aval_of(condition.jaxpr.outvars[0]).ndim == 0:
        return lax.while_loop(test, step, rest[num_body:]), {}

    # a loop under vmap has a predicate an example, and stops where all have
    def step_where_going(carry: list[Any]) -> list[Any]:
        return _where(test(carry), step(carry), carry)

    return lax.while_loop(lambda c: jnp.any(test(c)), step_where_going, rest[num_body:]), {}


def _where(going: jax.Array, new: Sequence[Any], old: Sequence[Any]) -> list[Any]:
    """Selects example by example along the leading axis."""
    return [
        jnp.where(going.reshape(going.shape + (1,) * (n.ndim - going.ndim)), n, o)
        for n, o in zip(new, old, strict=True)
    ]


def evaluate_cond(run: Interpreter, entry: Entry) -> tuple[list[Any], Reaped]:
    """Goes into the branches of a cond; each also produces zeros for what the others reap.

    The branches of a switch return the same tree, and what a branch reaps is known only once it
    has been traced. So each is traced first, and then run with zeros for what it lacks.
    """
    predicate, *operands = entry.values
    operands = cast_to_declared(operands, entry.equation.invars[1:])

    def branch(index: int, body: Body) -> Any:
        def taken(operands: list[Any]) -> Any:
            outputs, reaped = run.body(body, operands, entry.planted, (*entry.path, index))
            return cast_to_declared(outputs, body.jaxpr.outvars), reaped

        return jax.make_jaxpr(taken, return_shape=True)(operands)

    branches = [branch(index, body) for index, body in enumerate(entry.structure.bodies)]
    shapes = {key: tree for _, (_, reaped) in branches for key, tree in reaped.items()}

    def padded(traced: jex.ClosedJaxpr, shape: Any) -> Any:
        def taken(operands: list[Any]) -> Any:
            leaves = jex.jaxpr_as_fun(traced)(*operands)
            outputs, reaped = jax.tree.unflatten(jax.tree.structure(shape), leaves)
            return outputs, {**jax.tree.map(jnp.zeros_like, shapes), **reaped}

        return taken

    functions = [padded(*traced) for traced in branches]
    platforms = entry.equation.params.get("branches_platforms")
    if platforms is not None:
        return _by_platform(platforms, functions, operands)
    return lax.switch(predicate, functions, operands)


def _by_platform(
    platforms: Sequence[Sequence[str] | None], branches: Sequence[Callable], operands: list[Any]
) -> Any:
    """Chooses by what is compiled for; a switch would compile what only another platform can."""
    pairs = list(zip(platforms, branches, strict=True))
    named = {name: branch for names, branch in pairs for name in names or ()}
    default = next((branch for names, branch in pairs if names is None), None)
    return lax.platform_dependent(operands, default=default, **named)
