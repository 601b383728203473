"""Evaluation of a jaxpr under a rule that sees, and may replace, its equations."""

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from jax.extend import core as jex

from jinit.tracing._jax import equation_context
from jinit.tracing.calls import Call, evaluate_jit, evaluate_remat, evaluate_shard_map
from jinit.tracing.custom_rules import evaluate_custom_jvp, evaluate_custom_vjp
from jinit.tracing.declared import cast_to_declared, in_context_mesh
from jinit.tracing.interpreter import Entry, EquationView, Reaped, Region, Rule
from jinit.tracing.loops import evaluate_cond, evaluate_scan, evaluate_while
from jinit.tracing.structure import Body, Kind, Path, structure_of
from jinit.tracing.walk import walk

__all__ = ["Derivative", "Run", "evaluate"]


class Derivative(Protocol):
    """How a derivative rule of the user's is evaluated, whose program is known only there."""

    def __call__(self, run: "Run", jaxpr: jex.Jaxpr, path: Path) -> "Run":
        """Returns the evaluation inside, given the one outside, the rule's jaxpr and its path."""
        ...


def evaluate(
    jaxpr: jex.Jaxpr,
    consts: Sequence[Any],
    args: Sequence[Any],
    rule: Rule,
    *,
    planted: Mapping[Path, Any] | None = None,
    enter: Collection[Path] | None = None,
    alike: Callable[[Path], Hashable] | None = None,
    region: Region | None = None,
    derivative: Derivative | None = None,
) -> tuple[list[Any], Reaped]:
    """Runs a jaxpr, handing every equation to a rule.

    A rule may change dtypes: loops, branches, custom derivatives and every equation that the
    rule leaves alone get back those that the program declared. A custom derivative is kept: its
    rules are the user's, and their equations are handed to the rule as well.

    Args:
        jaxpr: The open jaxpr.
        consts: Its constants.
        args: Its inputs.
        rule: Called for each equation; see ``Rule``.
        planted: Pytrees of arrays to hand in, by the path of an equation, with a leading axis
            for every enclosing scan; none below a while loop, a custom derivative or shard_map.
        enter: The paths of equations whose sub-jaxprs the rule is to see; None for all that
            can be entered. The others run as one equation.
        alike: For a rule that neither reaps nor is planted anything: what else it knows of the
            equations below the path of a jit or remat. Calls of one function on equal shapes
            for which that is equal are evaluated once, and stay calls. Without it a jit is
            inlined, under its name, unless it pins shardings or layouts, or donates.
        region: Chooses the rule inside each equation that is gone into; None for one rule.
        derivative: Chooses the evaluation inside the user's derivative rules; None for the same.

    Returns:
        The outputs, and what the rule reaped, by path; inside scans it is stacked, and in the
        branches of a cond that were not taken it is zero.

    Raises:
        ValueError: If something is planted or reaped in a call although ``alike`` is given.
    """
    chosen = None if enter is None else frozenset(enter)
    run = Run(rule, chosen, alike, region, derivative)
    return run.body(Body(jaxpr, tuple(consts)), list(args), planted or {}, ())


@dataclass(frozen=True)
class Run:
    """One evaluation: the rule, where it goes, and the calls that it has seen."""

    rule: Rule
    chosen: frozenset[Path] | None
    alike: Callable[[Path], Hashable] | None
    region: Region | None = None
    derivative: Derivative | None = None
    calls: dict[Any, Call] = field(default_factory=dict)

    def within_derivative(self, jaxpr: jex.Jaxpr, path: Path) -> "Run":
        """Returns the evaluation of a derivative rule, which goes into everything."""
        run = replace(self, chosen=None)
        return run if self.derivative is None else self.derivative(run, jaxpr, path)

    def inside(self, equation: jex.JaxprEqn, values: list[Any]) -> tuple["Run", list[Any]]:
        """Returns the evaluation inside an equation, and the equation's operands there."""
        if self.region is None:
            return self, values
        rule, values = self.region(equation, values, self.rule)
        return self if rule is self.rule else replace(self, rule=rule), values

    def body(
        self, body: Body, args: Sequence[Any], planted: Mapping[Path, Any], path: Path
    ) -> tuple[list[Any], Reaped]:
        """Evaluates a jaxpr whose equations stand below ``path``."""
        reaped: Reaped = {}
        memo: dict[Any, Any] = {}

        def step(index: int, equation: jex.JaxprEqn, values: list[Any]) -> list[Any]:
            place, found = (*path, index), {}
            with equation_context(equation):
                # what crosses into the equation's mesh, or out of it, is brought to the other one
                here = in_context_mesh(planted.get(place))
                view = EquationView(equation, place, here, memo, found)
                results = self.equation(view, values, planted)
            reaped.update(in_context_mesh(found))
            return results

        return walk(body.jaxpr, body.consts, args, step), reaped

    def equation(
        self, view: EquationView, values: list[Any], planted: Mapping[Path, Any]
    ) -> list[Any]:
        """Goes into an equation, or hands it to the rule."""
        equation, path = view.equation, view.path
        structure = structure_of(equation)
        handler = _HANDLERS.get(structure.kind)
        if handler is not None and (self.chosen is None or path in self.chosen):
            run, values = self.inside(equation, values)
            results, inner = handler(run, Entry(equation, structure, values, planted, path))
            view.collect(inner)
            return results
        results = self.rule(view, values)
        if results is None:
            return view.bind(cast_to_declared(values, equation.invars))
        return results


_HANDLERS: Mapping[Kind, Callable[..., tuple[list[Any], Reaped]]] = {
    "jit": evaluate_jit,
    "remat": evaluate_remat,
    "shard_map": evaluate_shard_map,
    "scan": evaluate_scan,
    "while": evaluate_while,
    "cond": evaluate_cond,
    "custom_jvp": evaluate_custom_jvp,
    "custom_vjp": evaluate_custom_vjp,
}
