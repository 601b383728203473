"""How a value scales with each parameter it is computed from: its homogeneity degree."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, TypeVar

from jax.extend import core as jex

from jinit.layers.rows import ELEMENTWISE, keeps_rows
from jinit.tracing import holds_float

__all__ = [
    "SAME", "SMALL", "Degree", "Degrees", "combine", "common_prefix", "degrees_of", "hands_on",
    "joined",
]  # fmt: skip

T = TypeVar("T")


@dataclass(frozen=True)
class Degree:
    """How a value depends on one leaf.

    Attributes:
        degree: d where scaling the leaf by s scales the value by s**d; None where it does not
            scale so (the value is not homogeneous in the leaf).
        loops: The depths of the scans that hand the leaf in slice by slice, outermost first.
        places: The leaf's axes that they go along, one a scan.
        group: The leaves that must be scaled together for the degree to hold, this one among
            them: each by ``s ** (1 / degree)``, so that the value is scaled by s. Empty where
            the leaf can be scaled alone. Joined kernels are such a group.
        axes: The leaf's axes that the value's are, as far as its first ones are known: row i is
            computed from row i of the leaf along axes[0], or from what a scan made of it.
        mixed: Whether a scan hands the leaf in by slices of which it is not known where they lie,
            so that all of them share a scale.
    """

    degree: float | None = 1.0
    loops: tuple[int, ...] = ()
    group: frozenset[int] = frozenset()
    places: tuple[int, ...] = ()
    axes: tuple[int, ...] = ()
    mixed: bool = False

    def inside(self, level: int) -> "Degree":
        """Returns the degree of one iteration's slice of the value in a scan."""
        if not self.axes:
            return replace(self, mixed=True)
        place, *axes = self.axes
        loops, places = (*self.loops, level), (*self.places, place)
        return replace(self, loops=loops, places=places, axes=tuple(axes))

    def within(self, depth: int) -> "Degree":
        """Returns the degree where only the outermost scans are known to slice the leaf."""
        if depth >= len(self.loops):
            return self
        return replace(self, loops=self.loops[:depth], places=self.places[:depth], mixed=True)

    def outside(self, level: int, *, stacked: bool) -> "Degree":
        """Returns the degree of a value beyond the scan in which it was computed.

        Args:
            level: How deep the scan is.
            stacked: Whether it is what all iterations produce, and not what the last one did.
        """
        kept = [pair for pair in zip(self.loops, self.places, strict=True) if pair[0] != level]
        rows = self.places[-1:] if stacked and self.loops[-1:] == (level,) else ()
        return replace(
            self,
            loops=tuple(loop for loop, _ in kept),
            places=tuple(place for _, place in kept),
            axes=rows and (*rows, *self.axes),
        )


Degrees = Mapping[int, Degree]
"""The degree in every leaf, by the leaf's index; a constant has none."""

SAME = frozenset({
    "conj", "convert_element_type", "copy", "copy_p", "device_put", "layout_constraint",
    "mesh_cast", "name", "neg", "optimization_barrier", "pcast", "pvary", "reduce_precision",
    "reshard", "sharding_constraint", "stop_gradient",
})  # fmt: skip
"""The primitives that hand each of their operands on, at most cast, placed or negated."""

SMALL = 1e-3
"""A number up to here is an epsilon that guards a division."""

_LAYOUT = frozenset({
    "abs", "broadcast_in_dim", "concatenate", "cummax", "cummin", "cumsum", "dynamic_slice",
    "expand_dims", "fft", "gather", "imag", "pad", "real", "reduce_max", "reduce_min",
    "reduce_sum", "reshape", "rev", "slice", "split", "squeeze", "stack", "tile", "transpose",
})  # fmt: skip
_COMPARISONS = frozenset({"eq", "ge", "gt", "le", "lt", "ne"})  # with 0, they are signs
_JOINS = frozenset({"complex", "concatenate", "pad", "stack"})  # constants in them do not scale
_WRITES: Mapping[str, int] = {"dynamic_update_slice": 1, "scatter": 2, "scatter-add": 2}
"""Which operand is written into the first."""

_CHOICES = frozenset({"argmax", "argmin"})
_PRODUCTS = frozenset({"conv_general_dilated", "dot_general", "mul", "ragged_dot"})
_SUMS = frozenset({"add", "add_any", "max", "min", "select_n", "sub"})
_POWERS: Mapping[str, Callable[[Mapping[str, Any]], float]] = {
    "integer_pow": lambda params: params["y"],
    "rsqrt": lambda params: -0.5,
    "sign": lambda params: 0.0,
    "sqrt": lambda params: 0.5,
    "square": lambda params: 2.0,
}


def combine(
    operands: Sequence[Degrees], rule: Callable[[Sequence[float]], float | None]
) -> dict[int, Degree]:
    """Merges the degrees of operands leaf by leaf; an absent leaf has degree 0.

    What is computed from a slice of a leaf and from all of it depends on all of it.
    """
    merged, split = {}, _split_groups(operands)
    for leaf in sorted({leaf for operand in operands for leaf in operand}):
        present = [operand[leaf] for operand in operands if leaf in operand]
        degrees = [operand[leaf].degree if leaf in operand else 0.0 for operand in operands]
        known = [degree for degree in degrees if degree is not None]
        unknown = len(known) < len(degrees) or leaf in split
        loops, places = _common(present)
        mixed = any(p.mixed for p in present)
        degree = None if unknown else rule(known)
        merged[leaf] = Degree(degree, loops, present[0].group, places, mixed=mixed)
    return merged


def _common(several: Sequence[Degree]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the outermost loops that slice the leaf alike in all, and the axes they go along."""
    pairs = [zip(d.loops, d.places, strict=True) for d in several]
    same = common_prefix([tuple(each) for each in pairs])
    return tuple(loop for loop, _ in same), tuple(place for _, place in same)


def common_prefix(several: Sequence[tuple[T, ...]]) -> tuple[T, ...]:
    """Returns the longest beginning that all have.

    Example:
        >>> common_prefix([(0, 1, 2), (0, 1), (0, 1, 3)])
        (0, 1)
    """
    alike = takewhile(lambda column: len({*column}) == 1, zip(*several, strict=False))
    return tuple(first for first, *_ in alike)


def _split_groups(operands: Sequence[Degrees]) -> frozenset[int]:
    """Returns the leaves of groups of which an operand holds a part, or another grouping."""
    found = [d.group for operand in operands for d in operand.values() if d.group]
    parts = [
        group & operand.keys()
        for group in found
        for operand in operands
        if any(operand[leaf].group != group for leaf in group & operand.keys())
    ]
    return frozenset().union(*(group for group in found if any(group & part for part in parts)))


def _unknown(operands: Sequence[Degrees]) -> dict[int, Degree]:
    return combine(operands, lambda degrees: None)


def _signature(operand: Degrees) -> dict[int, Any]:
    return {leaf: (d.degree, d.group) for leaf, d in operand.items()}


def joined(terms: Sequence[Degrees]) -> dict[int, Degree]:
    """Returns the degrees of a sum, a concatenation or a choice of terms.

    Unlike terms have their leaves as a group, if all of them scale by s together: the leaves of
    a term of degree d in all by ``s ** (1 / d)``. So W + A @ B scales with W, and with the roots
    of A and B.
    """
    signatures = [_signature(term) for term in terms]
    if all(signature == signatures[0] for signature in signatures):
        return combine(terms, lambda degrees: degrees[0])
    together = [_together(term) for term in terms]
    pairs = {pair for term in together for pair in term.items()}
    several = [d.loops for term in terms for d in term.values()]
    alike = len(pairs) == len(dict(pairs)) and len({*several}) == 1
    if not alike or not all(together) or _split_groups(terms):
        return _unknown(terms)
    places = {leaf: _common([t[leaf] for t in terms if leaf in t])[1] for leaf in dict(pairs)}
    mixed = any(d.mixed for term in terms for d in term.values())
    group = frozenset(places)
    return {
        leaf: Degree(degree, several[0], group, places[leaf], mixed=mixed)
        for leaf, degree in sorted(pairs)
    }


def _together(term: Degrees) -> dict[int, float]:
    """Returns the degrees of a term in all its leaves together; none where it has no such.

    ``A @ B``, of degree 1 in each, is of degree 2 in both: each takes ``s ** (1 / 2)``.
    """
    parts: dict[Any, float] = {}
    for leaf, d in term.items():
        if d.degree is None:
            return {}
        parts[d.group or leaf] = min(d.degree, parts.get(d.group or leaf, d.degree))
    total = sum(parts.values())
    if total == 0 or 0.0 in parts.values():
        return {}
    return {leaf: (d.degree or 0.0) / parts[d.group or leaf] * total for leaf, d in term.items()}


def _sum(name: str, operands: Sequence[Degrees], fills: Sequence[float | None]) -> Degrees:
    if name == "select_n":
        if any(d.degree != 0 for d in operands[0].values()):
            return _unknown(operands)
        operands, fills = operands[1:], fills[1:]
    pairs = zip(operands, fills, strict=True)
    return joined([operand for operand, fill in pairs if operand or fill is None])


def _written(name: str, operands: Sequence[Degrees], fills: Sequence[float | None]) -> Degrees:
    """Returns the degrees of an array into which another one was written."""
    places = (0, _WRITES[name])
    if any(operand for place, operand in enumerate(operands) if place not in places):
        return _unknown(operands)
    return joined([operands[place] for place in places if operands[place] or fills[place] != 0])


def degrees_of(
    equation: jex.JaxprEqn, operands: Sequence[Degrees], fills: Sequence[float | None]
) -> list[Degrees]:
    """Returns the degrees of an equation's results, all its operands being free of data.

    Products add degrees, a division subtracts them, roots and powers multiply them, layout
    operations keep them, and a sum needs equal ones, if only in all leaves together; a small
    constant in a sum is ignored.

    Args:
        equation: The equation.
        operands: The degrees of each of its operands.
        fills: The small number that fills an operand, or None.
    """
    name, count = equation.primitive.name, len(equation.outvars)
    if not any(operands):
        return [{}] * count
    if hands_on(equation):
        return list(operands)
    if name == "sort":
        return [combine([o, *operands], lambda degrees: degrees[0]) for o in operands]
    if name == "top_k":
        return [operands[0], combine(operands, lambda degrees: 0.0)]
    result = _degrees_of(equation, operands, fills)
    return [{leaf: _with_axes(equation, leaf, d, operands) for leaf, d in result.items()}] * count


def hands_on(equation: jex.JaxprEqn) -> bool:
    """Returns whether every result is the operand of its place, at most cast or negated."""
    if equation.primitive.name not in SAME or len(equation.invars) != len(equation.outvars):
        return False
    pairs = zip(equation.invars, equation.outvars, strict=True)
    return not any(holds_float(operand) and not holds_float(result) for operand, result in pairs)


def _with_axes(
    equation: jex.JaxprEqn, leaf: int, degree: Degree, operands: Sequence[Degrees]
) -> Degree:
    several = [operand[leaf].axes for operand in operands if leaf in operand]
    first = several[0]
    if equation.primitive.name == "transpose":
        order = equation.params["permutation"]
        return replace(degree, axes=tuple(first[i] for i in takewhile(len(first).__gt__, order)))
    alike = common_prefix(several)
    if equation.primitive.name in ELEMENTWISE:
        return replace(degree, axes=alike)
    return replace(degree, axes=alike[:1] if keeps_rows(equation) else ())


def _degrees_of(
    equation: jex.JaxprEqn, operands: Sequence[Degrees], fills: Sequence[float | None]
) -> Degrees:
    name = equation.primitive.name
    beside = any(not o and fill != 0 for o, fill in zip(operands, fills, strict=True))
    if name in _JOINS and beside:
        return _unknown(operands)
    if name in _LAYOUT or name in _JOINS:
        return joined([operand for operand in operands if operand])
    if name in _CHOICES or (name in _COMPARISONS and 0 in fills):
        return combine(operands, lambda degrees: 0.0)
    if name in _PRODUCTS:
        return combine(operands, sum)
    if name == "div":
        return combine(operands, lambda degrees: degrees[0] - degrees[1])
    if name in _POWERS:
        power = _POWERS[name](equation.params)
        return combine(operands, lambda degrees: degrees[0] * power)
    if name in _WRITES:
        return _written(name, operands, fills)
    return _sum(name, operands, fills) if name in _SUMS else _unknown(operands)
