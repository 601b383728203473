"""How calls are evaluated: functions under jit, remat and shard_map."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.core import Tracer
from jax.extend import core as jex

from jinit.tracing._jax import (
    bind_jit,
    bind_remat,
    hoist_consts,
    is_pinned,
    shard_map_like,
)
from jinit.tracing.interpreter import Entry, Interpreter, Reaped
from jinit.tracing.structure import Body, Path, below

__all__ = ["Call", "evaluate_jit", "evaluate_remat", "evaluate_shard_map"]


@dataclass(frozen=True)
class Call:
    """A function evaluated under a rule, to be called.

    Attributes:
        original: Its jaxpr in the program, kept so that no other gets its id.
        jaxpr: Its inputs are the constants, the function's operands and what was planted.
        consts: Arrays the rule closed over.
        tree: The structure of the results and what was reaped.
        reaped: The paths of that.
    """

    original: jex.Jaxpr
    jaxpr: jex.ClosedJaxpr
    consts: Sequence[Any]
    tree: Any
    reaped: Sequence[Path]


def evaluate_jit(run: Interpreter, entry: Entry) -> tuple[list[Any], Reaped]:
    """Goes into a jit: a call where something is pinned to it or shared, and inlined elsewhere."""
    (body,), params = entry.structure.bodies, entry.equation.params
    if "name" not in params:  # a call of another primitive
        return run.body(body, entry.values, entry.planted, entry.path)
    if run.alike is None and not is_pinned(params):
        with jax.named_scope(f"jit({params['name']})"):
            return run.body(body, entry.values, entry.planted, entry.path)
    return _bound(bind_jit, run, entry)


def evaluate_remat(run: Interpreter, entry: Entry) -> tuple[list[Any], Reaped]:
    """Goes into a remat, and keeps its policy."""
    return _bound(bind_remat, run, entry)


def evaluate_shard_map(run: Interpreter, entry: Entry) -> tuple[list[Any], Reaped]:
    """Goes into a shard_map; nothing can be reaped from it, since shards would differ."""
    (body,), path = entry.structure.bodies, entry.path  # not the entry, which holds its values

    def shard(*args: Any) -> list[Any]:
        return run.body(body, args, {}, path)[0]

    return shard_map_like(entry.equation, shard)(*entry.values), {}


def _bound(
    bind: Callable[..., list[Any]], run: Interpreter, entry: Entry
) -> tuple[list[Any], Reaped]:
    """Binds an equation again around what its jaxpr becomes."""
    planted = below(entry.planted, entry.path)
    call = _call(run, entry.structure.bodies[0], entry.values, planted, entry.path)
    operands = [*entry.values, *jax.tree.leaves(planted)]
    results = bind(entry.equation, call.jaxpr, call.consts, operands)
    return jax.tree.unflatten(call.tree, results)


def _call(
    run: Interpreter, body: Body, values: Sequence[Any], planted: Mapping[Path, Any], path: Path
) -> Call:
    if run.alike is None:
        return _evaluated(run, body, values, planted, path)
    # All that an evaluation can depend on: the program, the rule, shapes, and what the rule knows.
    # An id is good as long as its object lives, which the Call sees to.
    key = (id(body.jaxpr), run.rule, *map(jax.typeof, values), run.alike(path))
    if key in run.calls:
        return run.calls[key]
    call = _evaluated(run, body, values, planted, path)
    if planted or call.reaped:
        raise ValueError(
            f"a rule with `alike` may neither reap nor be planted anything, but it was at "
            f"{[*planted, *call.reaped]}, below the call at {path}; leave `alike` out"
        )
    if not any(isinstance(const, Tracer) for const in call.consts):  # good here only
        run.calls[key] = call
    return call


def _evaluated(
    run: Interpreter, body: Body, values: Sequence[Any], planted: Mapping[Path, Any], path: Path
) -> Call:
    def inner(values: Sequence[Any], planted: Mapping[Path, Any]) -> Any:
        return run.body(body, values, planted, path)

    traced, shape = jax.make_jaxpr(inner, return_shape=True)(list(values), planted)
    return Call(body.jaxpr, *hoist_consts(traced), jax.tree.structure(shape), list(shape[1]))
