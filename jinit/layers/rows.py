"""Which equations compute each row of their result from the same row of their operands."""

from collections.abc import Callable, Mapping
from typing import Any

from jax.extend import core as jex

from jinit.tracing import aval_of

__all__ = ["ELEMENTWISE", "keeps_rows"]

ELEMENTWISE = frozenset({
    "abs", "add", "add_any", "complex", "div", "eq", "ge", "gt", "imag", "integer_pow", "le",
    "lt", "max", "min", "mul", "ne", "real", "rsqrt", "select_n", "sign", "sqrt", "square", "sub",
})  # fmt: skip
_KEPT: Mapping[str, Callable[[Any], bool]] = {
    "broadcast_in_dim": lambda params: params["broadcast_dimensions"][:1] == (0,),
    "concatenate": lambda params: params["dimension"] != 0,
    "cumsum": lambda params: params["axis"] != 0,
    "dot_general": lambda params: all(b[:1] == (0,) for b in params["dimension_numbers"][1]),
    "expand_dims": lambda params: 0 not in params["dimensions"],
    "pad": lambda params: params["padding_config"][0] == (0, 0, 0),
    "reduce_max": lambda params: 0 not in params["axes"],
    "reduce_min": lambda params: 0 not in params["axes"],
    "reduce_sum": lambda params: 0 not in params["axes"],
    "reshape": lambda params: params["dimensions"] is None,
    "rev": lambda params: 0 not in params["dimensions"],
    "slice": lambda params: params["start_indices"][0] == 0,
    "split": lambda params: params["axis"] != 0,
    "squeeze": lambda params: 0 not in params["dimensions"],
}
"""Whether an operation keeps the rows apart, given that it keeps their number."""


def keeps_rows(equation: jex.JaxprEqn) -> bool:
    """Returns whether row i of every result is computed from row i of the operands alone."""
    name = equation.primitive.name
    first, result = (aval_of(a).shape for a in (equation.invars[0], equation.outvars[0]))
    same = bool(first) and first[:1] == result[:1]
    return same and name in _KEPT and bool(_KEPT[name](equation.params))
