"""How a value scales with each parameter it is computed from: its homogeneity degree."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
from jax.extend import core as jex

__all__ = ["Degree", "Degrees", "combine", "degrees_of"]


@dataclass(frozen=True)
class Degree:
    """How a value depends on one leaf.

    Attributes:
        degree: d where scaling the leaf by s scales the value by s**d; None where it does not
            scale so (the value is not homogeneous in the leaf).
        loops: The depths of the scans that hand the leaf in slice by slice, outermost first;
            they are the leaf's leading axes.
        group: The leaves that must be scaled alike for the degree to hold, this one among them;
            empty where the leaf can be scaled alone. Joined kernels are such a group.
        whole: Whether a scan over the value is a scan over the leaf's leading axis: it is the
            leaf itself, at most cast, or what an earlier scan made of its slices.
    """

    degree: float | None = 1.0
    loops: tuple[int, ...] = ()
    group: frozenset[int] = frozenset()
    whole: bool = False

    def outside(self, level: int, *, stacked: bool) -> "Degree":
        """Returns the degree of a value beyond the scan in which it was computed.

        Args:
            level: How deep the scan is.
            stacked: Whether it is what all iterations put out, and not what the last one did.
        """
        loops = tuple(loop for loop in self.loops if loop != level)
        return Degree(self.degree, loops, self.group, whole=stacked and self.loops[-1:] == (level,))


Degrees = Mapping[int, Degree]
"""The degree in every leaf, by the leaf's index; a constant has none."""

_SAME = frozenset({
    "convert_element_type", "copy", "copy_p", "device_put", "name", "neg", "pvary",
    "reduce_precision", "sharding_constraint",
})  # fmt: skip
_LAYOUT = frozenset({
    "abs", "broadcast_in_dim", "concatenate", "cumsum", "dynamic_slice", "expand_dims", "gather",
    "imag", "pad", "real", "reduce_max", "reduce_min", "reduce_sum", "reshape", "rev", "slice",
    "split", "squeeze", "stack", "tile", "transpose",
})  # fmt: skip
_COMPARISONS = frozenset({"eq", "ge", "gt", "le", "lt", "ne"})  # with 0, they are signs
_JOINS = frozenset({"concatenate", "pad", "stack"})  # a constant beside the leaf does not scale
_PRODUCTS = frozenset({"conv_general_dilated", "dot_general", "mul", "ragged_dot"})
_SUMS = frozenset({"add", "add_any", "max", "min", "select_n", "sub"})
_POWERS: Mapping[str, Callable[[Mapping[str, Any]], float]] = {
    "integer_pow": lambda params: params["y"],
    "rsqrt": lambda params: -0.5,
    "sign": lambda params: 0.0,
    "sqrt": lambda params: 0.5,
    "square": lambda params: 2.0,
}
_SMALL = 1e-3  # a literal up to here is an epsilon that guards a division


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
        loops = _common([p.loops for p in present])
        merged[leaf] = Degree(None if unknown else rule(known), loops, present[0].group)
    return merged


def _common(several: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Returns the longest beginning that all have."""
    pairs = takewhile(lambda level: len({*level}) == 1, zip(*several, strict=False))
    return tuple(level[0] for level in pairs)


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


def _joined(terms: Sequence[Degrees]) -> dict[int, Degree]:
    """Returns the degrees of a sum or a concatenation of unlike terms.

    If all terms have one degree in all their leaves together, the result has it in them as a
    group.
    """
    leaves = {leaf: d for term in terms for leaf, d in term.items()}
    totals = {_total(term) for term in terms}
    alike = len(totals) == 1 and len({d.loops for d in leaves.values()}) == 1
    if not alike or totals & {None, 0.0} or _split_groups(terms):
        return _unknown(terms)
    (total,) = totals
    loops = next(iter(leaves.values())).loops
    return {leaf: Degree(total, loops, frozenset(leaves)) for leaf in sorted(leaves)}


def _total(term: Degrees) -> float | None:
    """Returns a term's degree in all its leaves together."""
    parts = {d.group or leaf: d.degree for leaf, d in term.items()}
    known = [degree for degree in parts.values() if degree is not None]
    return sum(known) if len(known) == len(parts) else None


def _is_epsilon(atom: Any) -> bool:
    if not isinstance(atom, jex.Literal) or np.ndim(atom.val) != 0:
        return False
    kind = np.asarray(atom.val).dtype.kind
    return kind in "fiu" and abs(float(atom.val)) <= _SMALL


def _is_zero(atom: Any) -> bool:
    return isinstance(atom, jex.Literal) and np.ndim(atom.val) == 0 and not atom.val


def _pairs(equation: jex.JaxprEqn, operands: Sequence[Degrees]) -> list[tuple[Any, Degrees]]:
    return list(zip(equation.invars, operands, strict=True))


def _sum(equation: jex.JaxprEqn, operands: Sequence[Degrees]) -> dict[int, Degree]:
    pairs = _pairs(equation, operands)
    if equation.primitive.name == "select_n":
        if any(d.degree != 0 for d in operands[0].values()):
            return _unknown(operands)
        pairs = pairs[1:]
    terms = [operand for atom, operand in pairs if operand or not _is_epsilon(atom)]
    return _like_terms(terms)


def _like_terms(terms: Sequence[Degrees]) -> dict[int, Degree]:
    signatures = [_signature(term) for term in terms]
    if any(signature != signatures[0] for signature in signatures[1:]):
        return _joined(terms)
    return combine(terms, lambda degrees: degrees[0])


def degrees_of(equation: jex.JaxprEqn, operands: Sequence[Degrees]) -> dict[int, Degree]:
    """Returns the degrees of an equation's results, all its operands being free of data.

    Products add degrees, a division subtracts them, roots and powers multiply them, layout
    operations keep them, and a sum needs equal ones, if only in all leaves together; a small
    literal in a sum is ignored.
    """
    name = equation.primitive.name
    if not any(operands):
        return {}
    if name in _SAME:
        return dict(operands[0])
    if name in _JOINS and any(not o and not _is_zero(a) for a, o in _pairs(equation, operands)):
        return _unknown(operands)
    if name in _LAYOUT:
        return _like_terms([operand for operand in operands if operand])
    if name in _COMPARISONS and any(_is_zero(atom) for atom in equation.invars):
        return combine(operands, lambda degrees: 0.0)
    if name in _PRODUCTS:
        return combine(operands, sum)
    if name == "div":
        return combine(operands, lambda degrees: degrees[0] - degrees[1])
    if name in _POWERS:
        power = _POWERS[name](equation.params)
        return combine(operands, lambda degrees: degrees[0] * power)
    if name in _SUMS:
        return _sum(equation, operands)
    return _unknown(operands)
