"""The rule of a half function: its norms compute in float32, everything else as it is declared."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from jinit.amp.casting.autocast_rule import CastRule, Decision, Decisions, Record, is_managed
from jinit.amp.casting.dtypes import FLOAT32
from jinit.amp.casting.norms import (
    KEPT,
    NORMALIZED,
    STATISTIC,
    WIDENED,
    NormFact,
    find_norms,
    goes_on,
)
from jinit.amp.casting.op_lists import OpLists
from jinit.amp.casting.ranges import is_lost
from jinit.amp.casting.weak_operands import KEEPS_TAG, PARAMETER, Tag, facts_below
from jinit.tracing import EquationView, Path, Rule, Run, aval_of

__all__ = ["NormDecisions"]


class NormDecisions(Decisions):
    """The rules of a half function: its norms in float32, everything else as it is declared.

    Args:
        ops: The lists, of which a function with kept parameters takes the products.
        half: The half dtype.
        facts: What ``find_norms`` found.
        kept: Whether float32 parameters are kept ones: what is declared behind them is float32
            as well, so that dtypes are chosen anew there.
        why: The reason given for what runs as declared.
        record: Called with every decision.
    """

    def __init__(
        self,
        ops: OpLists,
        half: np.dtype,
        facts: Mapping[Path, NormFact],
        kept: bool,
        why: str,
        record: Record | None = None,
    ) -> None:
        tags = {path: tuple(map(_weak, fact.tags)) for path, fact in facts.items()}
        super().__init__(ops, half, tags, record)
        self.facts, self.kept = facts, kept
        self.plain = Decision("declared", why)
        self.rule = CastRule(self._by_norm, half, record)

    def _by_norm(self, view: EquationView, values: Sequence[Any]) -> Decision:
        equation = view.equation
        first = self._before_lists(equation)
        if first is not None:
            return first if first.target == "dropped" or self.kept else self.plain
        fact = self.facts.get(view.path, NormFact(()))
        found = self._in_norm(equation, fact) or self._of_constants(equation, fact)
        if found is not None:
            return found
        return self._behind(view, values, fact) if self.kept else self.plain

    def _behind(self, view: EquationView, values: Sequence[Any], fact: NormFact) -> Decision:
        """Decides by the lists, where what was normalized counts as the half that it becomes."""
        tags = (*fact.tags, *(None,) * (len(values) - len(fact.tags)))
        pairs = zip(values, view.equation.invars, strict=True)
        narrowed = any(jnp.result_type(v) == self.half != aval_of(atom).dtype for v, atom in pairs)
        narrow = (NORMALIZED, WIDENED) if narrowed or NORMALIZED in tags else ()
        seen = [
            jax.ShapeDtypeStruct(jnp.shape(v), self.half) if tag in narrow else v
            for v, tag in zip(values, tags, strict=True)
        ]
        decision = self._by_list(view, seen)
        matched = decision.target == "as given" and NORMALIZED in tags
        if matched and view.equation.primitive.name not in self.ops.separate:
            return Decision(self.half, "after a norm")
        return decision

    def region(
        self, equation: jex.JaxprEqn, values: list[Any], rule: Rule
    ) -> tuple[Rule, list[Any]]:
        """Returns the rule inside an equation: that of the user's marks behind kept parameters."""
        return super().region(equation, values, rule) if self.kept else (rule, values)

    def derivative(self, run: Run, jaxpr: jex.Jaxpr, path: Path) -> Run:
        """Returns the evaluation inside a user's derivative rule, whose norms are found there."""
        if run.rule is not self.rule:
            return run
        found = find_norms(jaxpr, [None] * len(jaxpr.invars))
        facts = {(*path, *inside): fact for inside, fact in found.items()}
        rules = NormDecisions(self.ops, self.half, facts, self.kept, self.plain.why, self.record)
        alike = run.alike and functools.partial(facts_below, facts, list(facts))
        return dataclasses.replace(run, rule=rules.rule, alike=alike, derivative=rules.derivative)

    def _of_constants(self, equation: jex.JaxprEqn, fact: NormFact) -> Decision | None:
        """Decides on a constant that the half dtype does not hold: it becomes the nearest."""
        lost = frozenset(n for n, tag in enumerate(fact.tags) if is_lost(tag, self.half))
        results = {getattr(aval_of(out), "dtype", None) for out in equation.outvars}
        if not lost or (results == {FLOAT32} and equation.primitive.name not in KEEPS_TAG):
            return None
        if equation.primitive.name == "convert_element_type":
            return Decision("dropped", "constant") if results <= {FLOAT32, self.half} else None
        if equation.primitive.name in KEEPS_TAG:
            return Decision("as given", "constant")
        return Decision(self.half, self.plain.why, lost=lost)

    def _in_norm(self, equation: jex.JaxprEqn, fact: NormFact) -> Decision | None:
        name = equation.primitive.name
        pairs = zip(equation.invars, fact.tags, strict=False)
        tags = {tag for atom, tag in pairs if is_managed(atom, self.half)}
        if fact.sums:
            return Decision(FLOAT32, "statistic of a norm")
        if not tags & {STATISTIC, NORMALIZED, KEPT}:
            return None
        if STATISTIC in tags and equation.params.get("new_dtype") in (FLOAT32, self.half):
            return Decision("dropped", "statistic of a norm")
        if name in KEEPS_TAG:
            return Decision("as given", "match")
        if name in self.ops.half and KEPT not in tags:
            return None
        if goes_on(name, tags):
            return Decision(FLOAT32, "kept parameter" if KEPT in tags else "inside a norm")
        return None


def _weak(tag: Tag) -> Tag:
    """Returns what a tag is to promotion."""
    return PARAMETER if tag in (KEPT, PARAMETER) else tag if isinstance(tag, float) else None
