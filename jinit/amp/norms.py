"""Which equations of a function compute a norm, so that a half function has it in float32.

A norm is found by what it computes, whoever wrote it and whatever it is called: sums over data
(its statistics) of which a root is taken. With ``x`` half, of

    mean = x.mean(0); var = (x * x).mean(0) - mean * mean
    y = (x - mean) / sqrt(var + eps) * scale + bias
    z = relu(y)

the sums, the squares that they sum and what is made of them are ``statistic``; ``y`` is
``normalized``: data meets statistics. Both are float32; what anything else reads of them is half
again, as the input of ``relu``. The sum of a softmax is no statistic: nothing takes its root.
A sum of squares is one even so, and an inner product or one with ones is a sum.

Parameters that stay float32 by themselves are ``kept``, and where one meets data the result is
``normalized`` as well. What the program widens to float32, since it is declared to meet such a
result, is ``widened``: half again without loss.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from jinit.amp.autocast import Autocast
from jinit.amp.autocast_rule import (
    CastRule,
    Decision,
    Decisions,
    Record,
    cast_to,
    is_managed,
    squares,
)
from jinit.amp.constants import has_lost_constants, is_lost, restore_constants
from jinit.amp.op_lists import OpLists
from jinit.amp.policy import FLOAT32, Policy
from jinit.amp.products import inner
from jinit.amp.weak_operands import (
    ARRAY,
    KEEPS_TAG,
    PARAMETER,
    Tag,
    Weakness,
    facts_below,
    parameter_tags,
)
from jinit.tracing import (
    EquationView,
    Frame,
    Path,
    Rule,
    Run,
    TracedFunction,
    aval_of,
    propagate,
    trace,
)

__all__ = ["NormsInFloat32"]

KEPT = "kept"
STATISTIC = "statistic"
NORMALIZED = "normalized"
WIDENED = "widened"

_SUMS = frozenset("psum psum_invariant reduce_scatter reduce_sum reduce_window_sum".split())
_ROOTS = frozenset("pow rsqrt sqrt".split())
_LINEAR = frozenset("add div mul neg sub".split())
_OF_STATISTICS = (
    _LINEAR | _ROOTS | frozenset("abs clamp integer_pow max min select_n square".split())
)
_KEPT_ONES: frozenset[Path] = frozenset({()})  # no equation stands at the empty path


@dataclass(frozen=True)
class _Origin:
    """A value made of sums or squares, and the equations that these are.

    Attributes:
        kind: ``statistic`` or ``normalized``.
        paths: Where the sums and squares stand; the empty path is a kept parameter's.
    """

    kind: str
    paths: frozenset[Path]


@dataclass(frozen=True)
class NormFact:
    """What is known of an equation.

    Attributes:
        tags: Those of its operands.
        sums: Whether it is a sum or a square of a norm.
    """

    tags: tuple[Tag, ...]
    sums: bool = False


def find_norms(
    jaxpr: jex.Jaxpr, args: Sequence[Any], params_argnums: Sequence[int], *, kept: bool
) -> dict[Path, NormFact]:
    """Finds the norms of a traced function.

    Args:
        jaxpr: The function's, traced on the arrays among its arguments.
        args: Its positional arguments.
        params_argnums: Which of them hold parameters.
        kept: Whether float32 parameters are kept ones, which no module border tells apart.

    Returns:
        A fact for every equation by its path, in the order of the paths.
    """
    tags: list[Any] = [
        KEPT if kept and tag in (ARRAY, PARAMETER) and aval_of(var).dtype == FLOAT32 else tag
        for var, tag in zip(jaxpr.invars, parameter_tags(jaxpr, args, params_argnums), strict=True)
    ]
    return _facts(jaxpr, tags)


def _facts(jaxpr: jex.Jaxpr, tags: Sequence[Any]) -> dict[Path, NormFact]:
    rules = _Norms()
    _, facts = propagate(jaxpr, tags, rules)
    found = rules.norms()
    return {path: _settled(path, facts[path], found) for path in sorted(facts)}


def _settled(path: Path, tags: tuple[Any, ...], norms: frozenset[Path]) -> NormFact:
    """Forgets origins: which of them led to a root is known now."""
    simple = (
        tag if not isinstance(tag, _Origin) else tag.kind if tag.paths & norms else None
        for tag in tags
    )
    return NormFact(tuple(simple), path in norms)


class _Norms(Weakness):
    """Dataflow rules that follow sums and squares to the roots that are taken of them."""

    def __init__(self) -> None:
        self._rooted: frozenset[Path] = frozenset()
        self._squares: set[Path] = set()
        self._together: list[frozenset[Path]] = []

    def norms(self) -> frozenset[Path]:
        """Returns where the sums and squares of norms stand: those rooted, and what meets them.

        The mean that ``(x - mean) / sqrt(var)`` subtracts may be another sum than that in ``var``.
        """
        found, before = self._rooted | _KEPT_ONES, None
        while found != before:
            before = found
            found = found.union(*(paths for paths in self._together if paths & found))
        return found

    def equation(
        self, equation: jex.JaxprEqn, tags: Sequence[Any], frames: tuple[Frame, ...], path: Path
    ) -> tuple[list[Any], tuple[Any, ...]]:
        origins = [tag for tag in tags if isinstance(tag, _Origin)]
        name = equation.primitive.name
        sums, power = _sums(equation, tags), _is_power(equation, tags)
        if not origins and not sums and not power and KEPT not in tags:
            results, fact = super().equation(equation, tags, frames, path)
            return ([WIDENED] if _widens(equation, tags) else results), fact
        paths = frozenset[Path]().union(*(origin.paths for origin in origins))
        if power:
            self._squares.add(path)
        if (name in _ROOTS and not power) or (sums and not paths.isdisjoint(self._squares)):
            self._rooted |= paths
        if name in _LINEAR and len(origins) > 1:
            self._together.append(paths - _KEPT_ONES)
        tag = self._result(equation, tags, paths, path)
        return [tag] * len(equation.outvars), tuple(tags)

    def _result(
        self, equation: jex.JaxprEqn, tags: Sequence[Any], paths: frozenset[Path], path: Path
    ) -> Any:
        name = equation.primitive.name
        kinds = [_kind(tag) for atom, tag in zip(equation.invars, tags, strict=True) if _real(atom)]
        if name in KEEPS_TAG:
            return None if _ends(equation, _kind(tags[0])) else tags[0]
        kinds = [None if kind == WIDENED else kind for kind in kinds]
        if KEPT in kinds and not paths and None not in kinds:
            return KEPT
        if _sums(equation, tags):
            return _Origin(STATISTIC, paths | {path})
        if name in _ROOTS and paths and not _is_power(equation, tags):
            return _Origin(STATISTIC, paths)
        if STATISTIC in kinds and name in _OF_STATISTICS and not {None, NORMALIZED} & {*kinds}:
            return _Origin(STATISTIC, paths)
        if _is_power(equation, tags):
            return _Origin(NORMALIZED, paths | {path})
        if name in _LINEAR and (STATISTIC in kinds or kinds.count(None) == 0):
            return _Origin(NORMALIZED, paths | (_KEPT_ONES if KEPT in kinds else frozenset()))
        if KEPT in kinds:
            return _Origin(NORMALIZED, _KEPT_ONES)
        return None

    def join(self, first: Any, second: Any) -> Any:
        kind = _kind(first)
        if kind in (STATISTIC, NORMALIZED) and kind == _kind(second):
            return _Origin(kind, first.paths | second.paths)
        return super().join(first, second)


def _sums(equation: jex.JaxprEqn, tags: Sequence[Any]) -> bool:
    """Returns whether an equation sums data: an inner product does, and one with ones."""
    if equation.primitive.name == "dot_general":
        return inner(equation) or any(isinstance(tag, float) for tag in tags)
    return equation.primitive.name in _SUMS


def _is_power(equation: jex.JaxprEqn, tags: Sequence[Any]) -> bool:
    """Returns whether an equation squares a value, or takes a higher power that is known."""
    if equation.primitive.name == "pow":
        return isinstance(tags[1], float) and tags[1] > 1
    return squares(equation)


def _kind(tag: Any) -> Any:
    return tag.kind if isinstance(tag, _Origin) else tag


def _real(atom: Any) -> bool:
    return jnp.issubdtype(getattr(aval_of(atom), "dtype", bool), jnp.floating)


def _widens(equation: jex.JaxprEqn, tags: Sequence[Any]) -> bool:
    """Returns whether data of a half dtype is converted to float32."""
    if equation.params.get("new_dtype") != FLOAT32 or tags[0] is not None:
        return False
    return _real(equation.invars[0]) and aval_of(equation.invars[0]).dtype.itemsize == 2


def _ends(equation: jex.JaxprEqn, kind: Any) -> bool:
    """Returns whether a conversion to half, which the user wrote, ends a norm."""
    narrowed = equation.params.get("new_dtype")
    return kind == NORMALIZED and narrowed is not None and narrowed.itemsize == 2


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
        found = _facts(jaxpr, [None] * len(jaxpr.invars))
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
        if _stays(name, tags):
            return Decision(FLOAT32, "kept parameter" if KEPT in tags else "inside a norm")
        return None


def _stays(name: str, tags: set[Tag]) -> bool:
    """Returns whether a norm goes on in an operation; data that meets its result ends it."""
    if KEPT in tags or (STATISTIC in tags and name in _OF_STATISTICS):
        return True
    if NORMALIZED in tags and name in _ROOTS:
        return True
    return NORMALIZED in tags and name in _LINEAR and not {None, WIDENED} & tags


def _weak(tag: Tag) -> Tag:
    """Returns what a tag is to promotion."""
    return PARAMETER if tag in (KEPT, PARAMETER) else tag if isinstance(tag, float) else None


class NormsInFloat32(Autocast):
    """A function of half parameters and inputs, with its norms in float32.

    Args:
        fn: The function.
        policy: Gives the half dtype, the level and the lists.
        kept: Whether float32 parameters are kept ones, which no module border tells apart.
    """

    def __init__(self, fn: Callable[..., Any], policy: Policy, *, kept: bool) -> None:
        ops = dataclasses.replace(policy.ops, float32=frozenset())  # the lists are of O1
        super().__init__(fn, policy.half_dtype, (0,), ops)
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
        facts = find_norms(jaxpr, args, self.params_argnums, kept=self.kept)
        return NormDecisions(self.ops, self.half_dtype, facts, self.kept, self.why, record), facts
