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
        whole: Whether a scan over the value is a scan over the leaf's leading axis: it is the
            leaf itself, at most cast, or what an earlier scan made of its slices.
    """

    degree: float | None = 1.0
    loops: tuple[int, ...] = ()
    whole: bool = False

    def outside(self, level: int, *, stacked: bool) -> "Degree":
        """Returns the degree of a value beyond the scan in which it was computed.

        Args:
            level: How deep the scan is.
            stacked: Whether it is what all iterations put out, and not what the last one did.
        """
        loops = tuple(loop for loop in self.loops if loop != level)
        return Degree(self.degree, loops, whole=stacked and self.loops[-1:] == (level,))


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
    merged = {}
    for leaf in sorted({leaf for operand in operands for leaf in operand}):
        present = [operand[leaf] for operand in operands if leaf in operand]
        degrees = [operand[leaf].degree if leaf in operand else 0.0 for operand in operands]
        known = [degree for degree in degrees if degree is not None]
        degree = rule(known) if len(known) == len(degrees) else None
        merged[leaf] = Degree(degree, _common([p.loops for p in present]))
    return merged


def _common(several: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Returns the longest beginning that all have."""
    pairs = takewhile(lambda level: len({*level}) == 1, zip(*several, strict=False))
    return tuple(level[0] for level in pairs)


def _unknown(operands: Sequence[Degrees]) -> dict[int, Degree]:
    return combine(operands, lambda degrees: None)


def _signature(operand: Degrees) -> dict[int, float | None]:
    return {leaf: d.degree for leaf, d in operand.items()}


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
    signatures = [_signature(term) for term in terms]
    if any(signature != signatures[0] for signature in signatures[1:]):
        return _unknown(operands)
    return combine(terms, lambda degrees: degrees[0])


def degrees_of(equation: jex.JaxprEqn, operands: Sequence[Degrees]) -> dict[int, Degree]:
    """Returns the degrees of an equation's results, all its operands being free of data.

    Products add degrees, a division subtracts them, roots and powers multiply them, layout
    operations keep them, and a sum needs equal ones; a small literal in a sum is ignored.
    """
    name = equation.primitive.name
    if not any(operands):
        return {}
    if name in _SAME:
        return dict(operands[0])
    if name in _JOINS and any(not o and not _is_zero(a) for a, o in _pairs(equation, operands)):
        return _unknown(operands)
    if name in _LAYOUT:
        parts = [operand for operand in operands if operand]
        if any(_signature(part) != _signature(parts[0]) for part in parts[1:]):
            return _unknown(operands)
        return combine(parts, lambda degrees: degrees[0])
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
