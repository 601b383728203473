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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax.extend import core as jex

from jinit.amp.casting.autocast_rule import squares
from jinit.amp.casting.dtypes import FLOAT32
from jinit.amp.casting.products import inner
from jinit.amp.casting.weak_operands import (
    KEEPS_TAG,
    Tag,
    Weakness,
    parameter_tags,
)
from jinit.modules.roles import Roles
from jinit.tracing import Frame, Path, aval_of, propagate

__all__ = [
    "KEPT",
    "NORMALIZED",
    "STATISTIC",
    "WIDENED",
    "NormFact",
    "find_norms",
    "goes_on",
    "input_tags",
]

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


def input_tags(
    jaxpr: jex.Jaxpr,
    args: Sequence[Any],
    params_argnums: Sequence[int],
    roles: Roles = (),
    *,
    kept: bool,
) -> list[Tag]:
    """Returns the tags of a traced function's inputs, from which ``find_norms`` starts.

    Args:
        jaxpr: The function's, traced on the arrays among its arguments.
        args: Its positional arguments.
        params_argnums: Which of them hold parameters.
        roles: What the user said of collections and of types of variables.
        kept: Whether float32 parameters and statistics are kept ones, which no module border
            tells apart.
    """
    tags = parameter_tags(jaxpr, args, params_argnums, roles, beside=KEPT if kept else None)
    wide = [aval_of(var).dtype == FLOAT32 for var in jaxpr.invars]
    if not kept:
        return tags
    return [
        KEPT if flag and tag is not None else None if tag == KEPT else tag
        for flag, tag in zip(wide, tags, strict=True)
    ]


def find_norms(jaxpr: jex.Jaxpr, tags: Sequence[Tag]) -> dict[Path, NormFact]:
    """Finds the norms of a program.

    Args:
        jaxpr: The program.
        tags: Those of its inputs; None is data.

    Returns:
        A fact for every equation by its path, in the order of the paths.

    Example:
        >>> import jax
        >>> normed = lambda x: jnp.tanh(x * jax.lax.rsqrt(jnp.vdot(x, x)))
        >>> jaxpr = jax.make_jaxpr(normed)(jnp.ones(3, "bfloat16")).jaxpr
        >>> for (place,), fact in find_norms(jaxpr, [None]).items():
        ...     print(jaxpr.eqns[place].primitive.name, *fact.tags, fact.sums)
        dot_general None None True
        rsqrt statistic False
        mul None statistic False
        tanh normalized False
    """
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
    """Dataflow rules that follow sums and squares to the roots that are taken of them.

    Whether a sum is a statistic shows only at a root further down, so the pass is optimistic:
    every sum and square begins an ``_Origin``, and ``norms`` says afterwards which led to a root.
    With the equations of a norm numbered from 0, where {..} are the paths of an origin::

        0 mean = sum(x)         statistic {0}
        1 c = x - mean          normalized {0}
        2 s = c * c             normalized {0 2}         2 is a square
        3 var = sum(s)          statistic {0 2 3}        a sum of squares: {0 2} is rooted
        4 r = rsqrt(var)        statistic {0 2 3}        a root: {0 2 3} is rooted
        5 y = c * r             normalized {0 2 3}
    """

    def __init__(self) -> None:
        self._rooted: frozenset[Path] = frozenset()  # what a root was taken of
        self._squares: set[Path] = set()
        self._together: list[frozenset[Path]] = []  # what one linear equation read

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
        """Returns the tag of a result where a norm or a kept parameter is read, or begins.

        Args:
            equation: The equation.
            tags: Those of its operands.
            paths: Those of their origins.
            path: Where the equation stands.
        """
        name = equation.primitive.name
        kinds = [_kind(tag) for atom, tag in zip(equation.invars, tags, strict=True) if _real(atom)]
        if name in KEEPS_TAG:
            return None if _ends(equation, _kind(tags[0])) else tags[0]
        # None is data from here on, widened or not; constants and parameters have tags.
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


def goes_on(name: str, tags: set[Tag]) -> bool:
    """Returns whether a norm goes on in an operation; data that meets its result ends it."""
    if KEPT in tags or (STATISTIC in tags and name in _OF_STATISTICS):
        return True
    if NORMALIZED in tags and name in _ROOTS:
        return True
    return NORMALIZED in tags and name in _LINEAR and not {None, WIDENED} & tags
