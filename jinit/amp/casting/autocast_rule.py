"""The rule of autocast: which dtype an equation runs in, and why.

An equation has the dtypes of the traced program, its values those that earlier decisions gave them.
Only values declared float32 or half are cast. With float32 data x and parameters w and b, at
bfloat16::

    p = x @ w       bfloat16    half list
    y = p + b       bfloat16    promote: b is a parameter, and has no vote
    h = y * 0.5     bfloat16    promote: neither has a constant
    e = exp(h)      float32     float32 list
    z = e / p       float32     promote: the widest of two that vote
"""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from jinit.amp.casting.dtypes import FLOAT16, FLOAT32, cast_to
from jinit.amp.casting.op_lists import OpLists
from jinit.amp.casting.products import asks_for_precision, contracts, inner
from jinit.amp.casting.ranges import within_range
from jinit.amp.casting.regions import casts_disabled, region_of
from jinit.amp.casting.weak_operands import INDICATOR, PARAMETER, Tag, promote, votes_of
from jinit.tracing import (
    EquationView,
    Path,
    Rule,
    Run,
    aval_of,
    declares_dtypes,
    is_hidden,
    source_line,
    structure_of,
)

__all__ = ["CastRule", "Decision", "Decisions", "Record", "is_managed", "squares"]

Record = Callable[[EquationView, Sequence[Any], "Decision"], None]


@dataclass(frozen=True)
class Decision:
    """How an equation runs.

    Attributes:
        target: The dtype its float operands are cast to; ``declared`` is that of the traced
            program, ``as given`` whatever they come in, ``dropped`` a cast that changes nothing.
        why: The reason, in words.
        weak: The operands that are parameters, cast without a vote of their own.
        lost: Those that are constants which the half dtype does not hold.
    """

    target: np.dtype | Literal["declared", "as given", "dropped"]
    why: str
    weak: frozenset[int] = frozenset()
    lost: frozenset[int] = frozenset()


_STEEP = frozenset("div integer_pow pow rsqrt".split())
_DISABLED = Decision("declared", "disable_casts")


class CastRule:
    """A rule for ``evaluate`` that casts operands as it decides, and may record that.

    Args:
        decide: Returns the decision on an equation.
        half: The half dtype.
        record: Called with every decision.
    """

    def __init__(
        self,
        decide: Callable[[EquationView, Sequence[Any]], Decision],
        half: np.dtype,
        record: Record | None = None,
    ) -> None:
        self.decide, self.half, self.record = decide, half, record

    def __call__(self, view: EquationView, values: Sequence[Any]) -> list[Any] | None:
        """Runs an equation as decided."""
        decision = self.decide(view, values)
        if self.record is not None:
            self.record(view, values, decision)
        if decision is not _DISABLED and _is_steep(view.equation, self.half, decision.target):
            return _with_whole_slope(view, values)
        match decision.target:
            case "declared":
                return None
            case "dropped":
                return list(values)
            case "as given":
                return view.bind(values)
            case dtype:
                guarded = decision.lost | (decision.weak if dtype == FLOAT16 else frozenset())
                operands = _cast_managed(
                    view.equation, values, self.half, dtype, view.memo, guarded
                )
                return view.bind(operands, **_accumulation(view.equation, self.half, dtype))


class Decisions:
    """The rules of one traced function: that of the lists, and those of the user's regions.

    Args:
        ops: The lists.
        half: The half dtype.
        tags: The tags of operands by path.
        record: Called with every decision.
    """

    def __init__(
        self,
        ops: OpLists,
        half: np.dtype,
        tags: Mapping[Path, tuple[Tag, ...]],
        record: Record | None = None,
    ) -> None:
        self.ops, self.half, self.tags, self.record = ops, half, tags, record
        self.rule = CastRule(self._by_list, half, record)
        self.disabled = CastRule(lambda view, values: _DISABLED, half, record)
        self._uniform: dict[Decision, CastRule] = {}

    def region(
        self, equation: jex.JaxprEqn, values: list[Any], rule: Rule
    ) -> tuple[Rule, list[Any]]:
        """Returns the rule inside an equation, and what it is called with."""
        if rule is self.disabled or casts_disabled(equation):
            return self.disabled, values
        found = region_of(equation, self.ops.float32_calls)
        if found is None:
            return rule, values
        dtype = self._dtype_of(found[0], equation, values)
        decision = Decision(dtype, " ".join(found))
        return self._uniform_rule(decision), _cast_managed(equation, values, self.half, dtype)

    def derivative(self, run: Run, jaxpr: jex.Jaxpr, path: Path) -> Run:
        """Returns the evaluation inside a user's derivative rule: the same, without tags."""
        return run

    def _dtype_of(self, kind: str, equation: jex.JaxprEqn, values: Sequence[Any]) -> np.dtype:
        if kind == "half_function":
            return self.half
        pairs = zip(values, equation.invars, strict=True)
        wide = any(jnp.result_type(v) == FLOAT32 for v, a in pairs if is_managed(a, self.half))
        # promote_function: the widest that comes in, whatever is declared
        return FLOAT32 if wide or kind == "float_function" else self.half

    def _uniform_rule(self, decision: Decision) -> CastRule:
        def decide(view: EquationView, values: Sequence[Any]) -> Decision:
            return self._before_lists(view.equation) or decision

        if decision not in self._uniform:
            self._uniform[decision] = CastRule(decide, self.half, self.record)
        return self._uniform[decision]

    def _before_lists(self, equation: jex.JaxprEqn) -> Decision | None:
        """Decides on what no list, no region and no norm may cast; None leaves it to them."""
        name = equation.primitive.name
        if casts_disabled(equation):
            return _DISABLED
        if name in self.ops.declared:
            return Decision("declared", "declared list")
        if structure_of(equation).kind != "plain":
            _warn_if_hidden(equation)
            return Decision("declared", "not entered")
        if declares_dtypes(equation) and name not in self.ops.listed:
            return Decision("declared", "declared by what it calls")
        if equation.params.get("out_dtype") is not None:
            return Decision("declared", "declared by out_dtype")
        if not any(is_managed(atom, self.half) for atom in equation.invars):
            return Decision("declared", f"neither float32 nor {self.half}")
        if name == "convert_element_type" and _changes_nothing(equation):
            return Decision("dropped", "changes nothing")
        return None

    def _by_list(self, view: EquationView, values: Sequence[Any]) -> Decision:
        """Decides by the lists; what is in none, and meets two floats or more, promotes."""
        equation, name, ops = view.equation, view.equation.primitive.name, self.ops
        first = self._before_lists(equation)
        if first is not None:
            return first
        tags = self.tags.get(view.path, (None,) * len(values))
        if name in ops.half:
            return self._product(equation, values, tags)
        if name in ops.float32:
            return Decision(FLOAT32, "float32 list")
        if "square" in ops.float32 and squares(equation):
            return Decision(FLOAT32, "float32 list (a square)")
        managed = [is_managed(atom, self.half) for atom in equation.invars]
        if name in ops.separate or sum(managed) < 2:
            return Decision("as given", "match")
        return self._promoted(equation, values, votes_of(equation, tags))

    def _product(
        self, equation: jex.JaxprEqn, values: Sequence[Any], tags: Sequence[Tag]
    ) -> Decision:
        """Decides on an operation of the half list; what is no sum of products gains nothing."""
        if asks_for_precision(equation):
            return Decision("declared", "precision asked for")
        if not contracts(equation):
            return self._promoted(equation, values, votes_of(equation, tags), "contracts nothing")
        if inner(equation) and "reduce_sum" in self.ops.float32:
            return Decision(FLOAT32, "float32 list (an inner product sums)")
        if INDICATOR in tags:
            votes = votes_of(equation, tags, indicators=False)
            return self._promoted(equation, values, votes, "selects or counts")
        return Decision(self.half, "half list")

    def _promoted(
        self, equation: jex.JaxprEqn, values: Sequence[Any], votes: Sequence[Tag], note: str = ""
    ) -> Decision:
        # A value votes with the dtype it comes in, not its declared one: half stays half.
        triples = zip(equation.invars, values, votes, strict=True)
        mine = [(v, t) for a, v, t in triples if is_managed(a, self.half)]
        dtype, reason = promote(mine, self.half)
        weak = frozenset(n for n, tag in enumerate(votes) if tag == PARAMETER)
        return Decision(dtype, f"promote ({'; '.join(filter(None, (reason, note)))})", weak)


def is_managed(atom: Any, half: np.dtype) -> bool:
    """Returns whether an operand's declared dtype is one that is cast: float32 or half."""
    return getattr(aval_of(atom), "dtype", None) in (FLOAT32, half)


def _cast_managed(
    equation: jex.JaxprEqn,
    values: Sequence[Any],
    half: np.dtype,
    dtype: Any,
    memo: dict[Any, Any] | None = None,
    guarded: Collection[int] = (),
) -> list[Any]:
    """Casts the operands that are cast; one that goes up again takes the last such cast.

    A cast down is made anew at every use: the gradients of the uses then meet in float32.
    """

    def cast(value: Any, is_guarded: bool) -> Any:
        if is_guarded:
            return cast_to(within_range(value, dtype), dtype)
        if memo is None or dtype != FLOAT32 or jnp.result_type(value) == FLOAT32:
            return cast_to(value, dtype)
        if id(value) not in memo:
            memo[id(value)] = value, cast_to(value, dtype)  # kept, so that its id is its own
        return memo[id(value)][1]

    pairs = enumerate(zip(values, equation.invars, strict=True))
    return [cast(v, n in guarded) if is_managed(a, half) else v for n, (v, a) in pairs]


def _is_steep(equation: jex.JaxprEqn, half: np.dtype, target: Any) -> bool:
    """Returns whether float16 holds an operation's result, and not its derivative.

    That of ``x / y`` holds ``y ** -2``, which is 0 for a y of 6000, as a sum of weights is.
    """
    name, atoms = equation.primitive.name, equation.invars
    if half != FLOAT16 or name not in _STEEP or isinstance(atoms[-1], jex.Literal):
        return False
    declared = target == "declared" and aval_of(equation.outvars[0]).dtype == FLOAT16
    return (declared or target == FLOAT16) and equation.params.get("y", -1) < 0


def _with_whole_slope(view: EquationView, values: Sequence[Any]) -> list[Any]:
    """Runs an operation on float16 values in float32: the same result, with a whole derivative."""
    pairs = zip(values, view.equation.invars, strict=True)
    halves = [cast_to(v, FLOAT16) if is_managed(atom, FLOAT16) else v for v, atom in pairs]
    wide = [cast_to(v, FLOAT32) if jnp.result_type(v) == FLOAT16 else v for v in halves]
    return [cast_to(result, FLOAT16) for result in view.bind(wide)]


def _accumulation(product: jex.JaxprEqn, half: np.dtype, dtype: np.dtype) -> dict[str, Any]:
    """Asks a float32 product for a half result; one that the user made of halves stays.

    One of halves that runs in float32 is asked for a float32 result.
    """
    wanted = product.params.get("preferred_element_type")
    if dtype == FLOAT32 and wanted == half:
        return {"preferred_element_type": FLOAT32}
    if dtype != half or wanted != FLOAT32:
        return {}
    whole = any(aval_of(atom).dtype == FLOAT32 for atom in product.invars)
    return {"preferred_element_type": half} if whole else {}


def _warn_if_hidden(equation: jex.JaxprEqn) -> None:
    """Warns of a call whose body JAX keeps to itself, so that nothing in it is cast.

    One that returns no floats, such as that of ``jnp.searchsorted`` since JAX 0.12, has nothing
    that a cast would change for the better.
    """
    real = any(jnp.issubdtype(aval_of(result).dtype, jnp.inexact) for result in equation.outvars)
    if real and is_hidden(equation):
        warnings.warn(
            f"autocast cannot see into {equation.primitive.name} at {source_line(equation)}, "
            "which runs in its declared dtypes; it sees into a custom_vjp where "
            "jax_custom_vjp3 is False",
            stacklevel=2,
        )


def squares(equation: jex.JaxprEqn) -> bool:
    """Returns whether an equation squares a value, which in a norm overflows first.

    A higher power does what a square does, and sooner.
    """
    name, atoms = equation.primitive.name, equation.invars
    return (
        name == "square"
        or (name == "mul" and atoms[0] is atoms[1])
        or (name == "integer_pow" and equation.params["y"] >= 2)
    )


def _changes_nothing(conversion: jex.JaxprEqn) -> bool:
    return conversion.params["new_dtype"] == aval_of(conversion.invars[0]).dtype
