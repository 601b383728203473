"""A function under autocast: traced, and run with the dtype of every equation chosen anew."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

import jax
import numpy as np
from jax.extend import core as jex

from jinit.amp.casting.autocast_rule import Decisions, Record
from jinit.amp.casting.dtypes import FLOAT32, cast_to
from jinit.amp.casting.op_lists import OpLists
from jinit.amp.casting.weak_operands import facts_below, find_tags
from jinit.modules.lost_state import check_states, holds_states
from jinit.modules.nnx_calls import Apart, call, on_objects
from jinit.modules.roles import Roles
from jinit.tracing import Path, Static, TracedFunction, evaluate, partition, trace

__all__ = ["Autocast"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")


class Autocast(Generic[P, R]):
    """A function under autocast; see ``autocast``.

    Args:
        fn: The function.
        half_dtype: The half dtype.
        params_argnums: Which positional arguments hold parameters.
        ops: The lists.
        roles: What the user said of collections and of types of variables.
    """

    def __init__(
        self,
        fn: Callable[P, R],
        half_dtype: np.dtype,
        params_argnums: Sequence[int],
        ops: OpLists,
        roles: Roles = (),
    ) -> None:
        self.fn: Callable[..., R] = fn
        self.half_dtype, self.ops, self.roles = half_dtype, ops, roles
        self.params_argnums = tuple(params_argnums)
        functools.update_wrapper(self, fn, updated=())
        self._jitted = _jit_named_as(fn, self.evaluate)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls the function."""
        return on_objects(self.run, args, kwargs)

    def run(self, apart: Apart) -> Any:
        """Calls the function with arguments that were taken apart from NNX's objects."""
        static, values = partition(apart)
        return (self._jitted if static.hashable else self.evaluate)(static, values)

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...

    @overload
    def __get__(
        self: "Autocast[Concatenate[Any, Q], R]", instance: object, owner: type | None = None
    ) -> Callable[Q, R]: ...

    def __get__(self, instance: Any, owner: type | None = None) -> Callable[..., Any]:
        """Binds a decorated method."""
        return self if instance is None else functools.partial(self, instance)

    def evaluate(self, static: Static, values: list[Any], record: Record | None = None) -> Any:
        """Runs the function under its rules.

        Args:
            static: The arguments, an ``Apart``, without their arrays.
            values: The arrays.
            record: Called with every decision, call by call.
        """
        filled = static.fill(values)
        if holds_states(filled):
            check_states(self.fn, filled)
        traced = self.traced(lambda values: call(self.fn, static.fill(values)), values)
        half, args = self.half_dtype, filled.args
        _check_argnums(self.params_argnums, args)
        rules, facts = self.decisions(traced.jaxpr, args, record)
        alike = functools.partial(facts_below, facts, list(facts)) if record is None else None
        outputs, _ = evaluate(
            traced.jaxpr,
            traced.consts,
            values,
            rules.rule,
            alike=alike,
            region=rules.region,
            derivative=rules.derivative,
        )
        pairs = zip(outputs, traced.out_avals, strict=True)
        return traced.unflatten(
            [cast_to(x, a.dtype) if a.dtype in (FLOAT32, half) else x for x, a in pairs]
        )

    def traced(self, fn: Callable[[list[Any]], Any], values: list[Any]) -> TracedFunction:
        """Traces the function at its values."""
        return trace(fn, values)

    def decisions(
        self, jaxpr: jex.Jaxpr, args: Sequence[Any], record: Record | None
    ) -> tuple[Decisions, Mapping[Path, Any]]:
        """Returns the rules of a traced function, and what they know of its equations by path."""
        tags = find_tags(jaxpr, args, self.params_argnums, self.roles)
        return Decisions(self.ops, self.half_dtype, tags, record), tags


def _check_argnums(params_argnums: Sequence[int], args: Sequence[Any]) -> None:
    """Raises ValueError where arguments are given by position, and none of those named."""
    if args and params_argnums and min(params_argnums) >= len(args):
        raise ValueError(
            f"params_argnums={tuple(params_argnums)} names none of the {len(args)} positional "
            "arguments, which are counted from 0"
        )


def _jit_named_as(fn: Callable[..., Any], run: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn, updated=())
    def evaluated(static: Static, values: list[Any]) -> Any:
        return run(static, values)

    del evaluated.__wrapped__  # it has the name, and not the arguments: they may all be keywords
    return jax.jit(evaluated, static_argnums=0)
