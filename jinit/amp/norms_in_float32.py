"""A half function with its norms in float32, as O2 and O3 run it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend import core as jex

from jinit.amp.autocast_function import Autocast
from jinit.amp.casting.autocast_rule import Decisions, Record
from jinit.amp.casting.constants import has_lost_constants, restore_constants
from jinit.amp.casting.dtypes import FLOAT32, cast_to
from jinit.amp.casting.norm_rule import NormDecisions
from jinit.amp.casting.norms import find_norms, input_tags
from jinit.amp.policy import Policy
from jinit.tracing import Path, TracedFunction, trace

__all__ = ["NormsInFloat32"]


class NormsInFloat32(Autocast):
    """A function of half parameters and inputs, with its norms in float32.

    Args:
        fn: The function.
        policy: Gives the half dtype, the level and the lists.
        kept: Whether float32 parameters are kept ones, which no module border tells apart.
    """

    def __init__(self, fn: Callable[..., Any], policy: Policy, *, kept: bool) -> None:
        ops = dataclasses.replace(policy.ops, float32=frozenset())  # the lists are of O1
        super().__init__(fn, policy.half_dtype, (0,), ops, policy.roles)
        self.kept = kept
        self.why = f"{policy.opt_level} casts the function's inputs"

    def traced(self, fn: Callable[[list[Any]], Any], values: list[Any]) -> TracedFunction:
        """Traces the function, with the constants that the half dtype does not hold."""
        traced = trace(fn, values)
        if not has_lost_constants(traced.jaxpr, self.half_dtype):
            return traced

        def of_wide(values: list[Any]) -> Any:
            halves = [jnp.result_type(value) == self.half_dtype for value in values]
            pairs = zip(values, halves, strict=True)
            return fn([cast_to(value, FLOAT32) if half else value for value, half in pairs])

        try:
            wide = trace(of_wide, values)
        except Exception:  # a function of half arrays only; its own error, if any, was raised above
            return traced
        jaxpr = restore_constants(traced.jaxpr, wide.jaxpr, self.half_dtype)
        return dataclasses.replace(traced, jaxpr=jaxpr)

    def decisions(
        self, jaxpr: jex.Jaxpr, args: Sequence[Any], record: Record | None
    ) -> tuple[Decisions, Mapping[Path, Any]]:
        """Returns the rules of a traced function, and what they know of its equations by path."""
        tags = input_tags(jaxpr, args, self.params_argnums, self.roles, kept=self.kept)
        facts = find_norms(jaxpr, tags)
        return NormDecisions(self.ops, self.half_dtype, facts, self.kept, self.why, record), facts
