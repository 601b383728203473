"""What votes in promotion: neither parameters nor constants, at most reshaped, do."""

import functools
import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from jinit.amp.policy import FLOAT32, param_mask
from jinit.tracing import ARRAYS, Frame, Path, aval_of, propagate

__all__ = ["Tag", "facts_below", "find_tags", "promote"]

PARAMETER = "parameter"
Tag = str | float | None
"""What a value is to promotion: a parameter, a constant of known value, or None: it votes."""

_FOLDS: Mapping[str, Callable[..., Any]] = {
    "add": np.add,
    "div": np.divide,
    "integer_pow": np.power,
    "mul": np.multiply,
    "neg": np.negative,
    "pow": np.power,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sqrt": np.sqrt,
    "square": np.square,
    "sub": np.subtract,
}
_KEEPS_TAG = frozenset(
    """
    broadcast_in_dim convert_element_type copy expand_dims pcast pvary reshape rev
    sharding_constraint slice squeeze transpose
    """.split()
)


def find_tags(
    jaxpr: jex.Jaxpr, args: Sequence[Any], params_argnums: Sequence[int]
) -> dict[Path, tuple[Tag, ...]]:
    """Tags the operands of every equation of a traced function.

    Args:
        jaxpr: The function's, traced on the arrays among its arguments.
        args: Its positional arguments.
        params_argnums: Which of them hold parameters.

    Returns:
        The tags by path, in the order of the paths.
    """
    tags: list[Tag] = [
        PARAMETER if n in params_argnums and flag else None
        for n, arg in enumerate(args)
        for leaf, flag in zip(jax.tree.leaves(arg), param_mask(arg), strict=True)
        if isinstance(leaf, ARRAYS)
    ]
    tags += [None] * (len(jaxpr.invars) - len(tags))
    _, facts = propagate(jaxpr, tags, _Weakness())
    return {path: facts[path] for path in sorted(facts)}


def facts_below(
    facts: Mapping[Path, tuple[Tag, ...]], paths: Sequence[Path], path: Path
) -> tuple[tuple[Path, tuple[Tag, ...]], ...]:
    """Returns what was found below a path, with the paths from there on."""
    first, last = (bisect_left(paths, (*path[:-1], path[-1] + after)) for after in (0, 1))
    return tuple((inner[len(path) :], facts[inner]) for inner in paths[first:last])


def promote(operands: Sequence[tuple[Any, Tag]], half: np.dtype) -> tuple[np.dtype, str]:
    """Chooses the dtype that operands are promoted to; parameters and constants do not vote.

    Where nothing votes, parameters do.

    Returns:
        The dtype, and the reason for it.
    """
    voters = [value for value, tag in operands if tag is None]
    voters = voters or [value for value, tag in operands if tag == PARAMETER]
    if not voters:
        return FLOAT32, "only constants"
    if any(jnp.result_type(value) == FLOAT32 for value in voters):
        return FLOAT32, "the widest operand"
    for _, tag in operands:
        if isinstance(tag, float) and not _fits(tag, half):
            return FLOAT32, f"{tag:g} is out of {half}'s range"
    return half, "the widest operand"


def _fits(constant: float, half: np.dtype) -> bool:
    """Tells whether a constant is rounded neither to zero nor to infinity in the half dtype."""
    limits = jnp.finfo(half)
    normal = float(limits.tiny) <= abs(constant) <= float(limits.max)
    return constant == 0 or not math.isfinite(constant) or normal


class _Weakness:
    """Dataflow rules that find parameters and constants, at most reshaped."""

    def literal(self, value: Any) -> Tag:
        return float(value) if value is not None and _is_number(value) else None

    def equation(
        self, equation: jex.JaxprEqn, tags: Sequence[Tag], frames: tuple[Frame, ...], path: Path
    ) -> tuple[list[Tag], tuple[Tag, ...]]:
        tag = None
        if equation.primitive.name in _KEEPS_TAG:
            tag = tags[0]
        elif equation.primitive.name in _FOLDS and all(isinstance(tag, float) for tag in tags):
            tag = _fold(equation, tags)
        return [tag] * len(equation.outvars), tuple(tags)

    def join(self, first: Tag, second: Tag) -> Tag:
        return first if first == second else None

    def choose(self, predicate: Tag, tags: Sequence[Tag]) -> Tag:
        return functools.reduce(self.join, tags)

    def shared(self, tag: Tag) -> Tag:
        return tag

    def sliced(self, tag: Tag, level: int) -> Tag:
        return tag

    def carried(self, tag: Tag, level: int) -> Tag:
        return tag

    def stacked(self, tag: Tag, level: int) -> Tag:
        return None


def _is_number(value: Any) -> bool:
    dtype = jnp.result_type(value)
    real = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    return np.ndim(value) == 0 and real


def _fold(equation: jex.JaxprEqn, constants: Sequence[Any]) -> Tag:
    """Computes a scalar made of constants, such as the 1 / sqrt(d) of attention."""
    avals = [aval_of(atom) for atom in (*equation.invars, *equation.outvars)]
    if not all(aval.shape == () and aval.dtype == FLOAT32 for aval in avals):
        return None
    exponent = [equation.params["y"]] if equation.primitive.name == "integer_pow" else []
    with np.errstate(all="ignore"):
        return float(_FOLDS[equation.primitive.name](*constants, *exponent))
