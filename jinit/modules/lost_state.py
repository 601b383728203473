"""States of NNX that a function writes to and does not return: what it wrote would be lost."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core as jex

from jinit._trees import path_text
from jinit.modules.kinds import is_nnx_state, is_nnx_variable
from jinit.modules.nnx_calls import Apart, Part, call, is_object
from jinit.tracing import Frame, Path, partition, propagate, trace

__all__ = ["check_states", "holds_states"]

_UNKNOWN = -1


def holds_states(apart: Apart) -> bool:
    """Returns whether a state is among the arguments, as in functions that merge it themselves."""
    return any(map(is_nnx_state, _nodes(apart)))


def check_states(fn: Callable[..., Any], apart: Apart) -> None:
    """Traces a function, and checks that it returns what it writes to states.

    Raises:
        ValueError: Something would be lost; its paths are named.
    """
    static, values = partition(apart)

    def before_and_after(values: list[Any]) -> Any:
        filled = static.fill(values)
        before = jax.tree.leaves(_states(filled))
        outputs = jax.tree.leaves(call(fn, filled))
        return before, jax.tree.leaves(_states(filled)), outputs

    traced = trace(before_and_after, values)
    numbers = list(range(len(values)))
    tags, _ = propagate(traced.jaxpr, numbers, _Same())
    before, after, outputs = traced.unflatten([*zip(traced.jaxpr.outvars, tags, strict=True)])
    returned = {id(var) for var, _ in outputs}
    lost = [
        path
        for path, (_, old), (var, new) in zip(_paths(apart), before, after, strict=True)
        if new != old and id(var) not in returned
    ]
    if lost:
        raise ValueError(
            "the function wrote to a state that it was given, and what it wrote would be lost: "
            f"{', '.join(lost[:5])}{' and others' if len(lost) > 5 else ''}. Pass the NNX module "
            "itself in place of its state, or return the new state, as nnx.state(model), as well"
        )


class _Same:
    """Dataflow rules that follow inputs through calls and loops to where they still are the same.

    A tag is the number of an input, or ``_UNKNOWN``.
    """

    def literal(self, value: Any) -> int:
        return _UNKNOWN

    def equation(
        self, equation: jex.JaxprEqn, tags: Sequence[int], frames: tuple[Frame, ...], path: Path
    ) -> tuple[list[int], None]:
        return [_UNKNOWN] * len(equation.outvars), None

    def join(self, first: int, second: int) -> int:
        return first if first == second else _UNKNOWN

    def choose(self, predicate: int, tags: Sequence[int]) -> int:
        return tags[0] if len({*tags}) == 1 else _UNKNOWN

    def shared(self, tag: int) -> int:
        return tag

    def sliced(self, tag: int, level: int) -> int:
        return tag

    def carried(self, tag: int, level: int) -> int:
        return tag

    def stacked(self, tag: int, level: int) -> int:
        return tag


def _nodes(apart: Apart) -> list[Any]:
    """Lists the arguments; the state of an object, which is written back, is left in its part."""
    return jax.tree.leaves(
        (apart.args, apart.kwargs),
        is_leaf=lambda node: isinstance(node, Part) or is_object(node) or is_nnx_state(node),
    )


def _states(apart: Apart) -> list[Any]:
    return [node for node in _nodes(apart) if is_nnx_state(node)]


def _paths(apart: Apart) -> list[str]:
    """Returns the path of every leaf of the states, with the type of its variable."""
    found = jax.tree_util.tree_leaves_with_path(_states(apart), is_leaf=is_nnx_variable)
    return [
        f"{path_text(path[1:])} ({type(node).__name__})"
        for path, node in found
        for _ in jax.tree.leaves(node)
    ]
