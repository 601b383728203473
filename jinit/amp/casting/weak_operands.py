"""What votes in promotion: neither parameters nor constants, at most reshaped, do.

An argument that is one array may be the data as well, as in ``f(x, w)``: it is a parameter only
where it is smaller than what it meets, as a bias is. With data x and a tree of parameters p::

    equation                   tags of its operands    votes
    b = broadcast(p["b"])      parameter               it keeps its tag, and meets nothing
    z = x + b                  None, parameter         x
    s = z * (1 / sqrt(64.0))   None, 0.125             z; constants are folded to one number
    m = where(x > 0, s, z)     None, None, None        s and z
    o = one_hot(i) @ x         indicator, None         x; what selects its rows does not
"""

import functools
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from jinit.amp.casting.dtypes import FLOAT32
from jinit.amp.casting.ranges import fits
from jinit.modules.roles import Roles, param_mask
from jinit.tracing import ARRAYS, Frame, Path, aval_of, propagate

__all__ = [
    "ARRAY",
    "INDICATOR",
    "KEEPS_TAG",
    "PARAMETER",
    "Tag",
    "Weakness",
    "facts_below",
    "find_tags",
    "parameter_tags",
    "promote",
    "votes_of",
]

PARAMETER = "parameter"
ARRAY = "array"
INDICATOR = "indicator"
Tag = str | float | None
"""What a value is to promotion: a parameter, an argument that is one array, numbers made of
booleans, integers or constants alone (a mask, positions, a one-hot code, a table of cosines), one
known constant, or None: it votes."""

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
KEEPS_TAG = frozenset(
    """
    broadcast_in_dim convert_element_type copy expand_dims pcast pvary reshape rev
    sharding_constraint slice squeeze stop_gradient transpose
    """.split()
)


def find_tags(
    jaxpr: jex.Jaxpr, args: Sequence[Any], params_argnums: Sequence[int], roles: Roles = ()
) -> dict[Path, tuple[Tag, ...]]:
    """Tags the operands of every equation of a traced function.

    Args:
        jaxpr: The function's, traced on the arrays among its arguments.
        args: Its positional arguments.
        params_argnums: Which of them hold parameters.
        roles: What the user said of collections and of types of variables.

    Returns:
        The tags by path, in the order of the paths.
    """
    tags = parameter_tags(jaxpr, args, params_argnums, roles)
    _, facts = propagate(jaxpr, tags, Weakness())
    return {path: facts[path] for path in sorted(facts)}


def parameter_tags(
    jaxpr: jex.Jaxpr,
    args: Sequence[Any],
    params_argnums: Sequence[int],
    roles: Roles = (),
    beside: Tag = None,
) -> list[Tag]:
    """Returns the tags of a traced function's inputs.

    Args:
        jaxpr: As for ``find_tags``.
        args: Likewise.
        params_argnums: Likewise.
        roles: Likewise.
        beside: The tag of what is not a parameter among them, such as statistics.
    """
    tags: list[Tag] = [
        (ARRAY if leaf is arg else PARAMETER if flag else beside) if n in params_argnums else None
        for n, arg in enumerate(args)
        for leaf, flag in zip(jax.tree.leaves(arg), param_mask(arg, roles), strict=True)
        if isinstance(leaf, ARRAYS)
    ]
    return tags + [None] * (len(jaxpr.invars) - len(tags))


def facts_below(
    facts: Mapping[Path, Any], paths: Sequence[Path], path: Path
) -> tuple[tuple[Path, Any], ...]:
    """Returns what was found below a path, with the paths from there on."""
    first, last = (bisect_left(paths, (*path[:-1], path[-1] + after)) for after in (0, 1))
    return tuple((inner[len(path) :], facts[inner]) for inner in paths[first:last])


def promote(operands: Sequence[tuple[Any, Tag]], half: np.dtype) -> tuple[np.dtype, str]:
    """Chooses the dtype that operands are promoted to; parameters and constants do not vote.

    Where nothing votes, parameters do. A constant that the half dtype does not hold makes float32
    of what it meets.

    Args:
        operands: Values with their tags, those of ``votes_of``.
        half: The half dtype.

    Returns:
        The dtype, and the reason for it.
    """
    voters = [value for value, tag in operands if tag is None]
    voters = voters or [value for value, tag in operands if isinstance(tag, str)]
    if not voters:
        return FLOAT32, "only constants"
    if any(jnp.result_type(value) == FLOAT32 for value in voters):
        return FLOAT32, "the widest operand"
    for _, tag in operands:
        if isinstance(tag, float) and not fits(tag, half):
            return FLOAT32, f"{tag:g} is out of {half}'s range"
    return half, "the widest operand"


def votes_of(equation: jex.JaxprEqn, tags: Sequence[Tag], *, indicators: bool = True) -> list[Tag]:
    """Returns the tags of an equation's operands as they count in it.

    Args:
        equation: The equation.
        tags: The tags of its operands.
        indicators: Whether indicators vote: they do where numbers are added or multiplied one by
            one, and do not where a product of matrices selects or counts by them.
    """
    size = max(getattr(aval_of(out), "size", 0) for out in equation.outvars)

    def vote(atom: Any, tag: Tag) -> Tag:
        if tag == ARRAY:
            return PARAMETER if aval_of(atom).size < size else None
        return None if tag == INDICATOR and indicators else tag

    return [vote(*pair) for pair in zip(equation.invars, tags, strict=True)]


class Weakness:
    """Dataflow rules that find parameters and constants, at most reshaped."""

    def literal(self, value: Any) -> Tag:
        """Returns the number that a literal is."""
        return float(value) if value is not None and _is_number(value) else None

    def equation(
        self, equation: jex.JaxprEqn, tags: Sequence[Tag], frames: tuple[Frame, ...], path: Path
    ) -> tuple[list[Tag], tuple[Tag, ...]]:
        """Returns the tags of an equation's results, and those of its operands to remember."""
        return [_result(equation, tags)] * len(equation.outvars), tuple(tags)

    def join(self, first: Tag, second: Tag) -> Tag:
        """Returns the tag that both have, if they do."""
        return first if first == second else None

    def choose(self, predicate: Tag, tags: Sequence[Tag]) -> Tag:
        """Returns the tag that all branches have, if they do."""
        return functools.reduce(self.join, tags)

    def shared(self, tag: Tag) -> Tag:
        """Returns the tag: it does not count uses."""
        return tag

    def sliced(self, tag: Tag, level: int) -> Tag:
        """Returns the tag: a slice is what the whole is."""
        return tag

    def carried(self, tag: Tag, level: int) -> Tag:
        """Returns the tag."""
        return tag

    def stacked(self, tag: Tag, level: int) -> Tag:
        """Returns None: what a loop stacks is data."""
        return None


def _result(equation: jex.JaxprEqn, tags: Sequence[Tag]) -> Tag:
    """Returns the tag of a result: what is computed from data or parameters is data, and votes.

    A choice among constants is an indicator, also where data makes it: it is a mask.
    """
    name = equation.primitive.name
    if name == "iota" or (name == "convert_element_type" and _counts(equation.invars[0])):
        return INDICATOR
    if name == "broadcast_in_dim" and tags[0] == ARRAY:
        grown = aval_of(equation.outvars[0]).size > aval_of(equation.invars[0]).size
        return PARAMETER if grown else ARRAY
    if name in KEEPS_TAG:
        return tags[0]
    constants = [tag for tag in tags if isinstance(tag, float)]
    if name in _FOLDS and len(constants) == len(tags):
        return _fold(equation, tags)
    chosen = name == "select_n" and len(constants) == len(tags) - 1  # by data: a mask
    fixed = len(constants) + tags.count(INDICATOR) == len(tags)
    return INDICATOR if chosen or (fixed and INDICATOR in tags) else None


def _counts(atom: Any) -> bool:
    """Returns whether a value is made of booleans or integers; a literal has its number as tag."""
    dtype = aval_of(atom).dtype
    whole = jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_)
    return whole and not isinstance(atom, jex.Literal)


def _is_number(value: Any) -> bool:
    dtype = jnp.result_type(value)
    real = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    return np.ndim(value) == 0 and real


def _fold(equation: jex.JaxprEqn, constants: Sequence[Any]) -> Tag:
    """Computes one number made of constants: the 1 / sqrt(d) of attention, or ones over n."""
    avals = [aval_of(atom) for atom in (*equation.invars, *equation.outvars)]
    if not all(jnp.issubdtype(aval.dtype, jnp.floating) for aval in avals):
        return None
    exponent = [equation.params["y"]] if equation.primitive.name == "integer_pow" else []
    with np.errstate(all="ignore"):
        return float(_FOLDS[equation.primitive.name](*constants, *exponent))
