"""Op-level casts: a function run with products in half and sensitive operations in float32."""

import functools
import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core as jex

from jinit.amp.op_lists import OPS, OpLists
from jinit.amp.policy import param_mask
from jinit.tracing import (
    ARRAYS,
    EquationView,
    Frame,
    Path,
    Static,
    aval_of,
    evaluate,
    partition,
    propagate,
    sub_jaxprs,
    trace,
)

__all__ = ["autocast"]

_FLOAT32 = np.dtype(np.float32)
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


def autocast(
    fn: Callable[..., Any],
    *,
    half_dtype: Any = jnp.bfloat16,
    params_argnums: Sequence[int] = (0,),
    products_only: bool = False,
) -> Callable[..., Any]:
    """Returns ``fn`` with the dtype of every operation chosen anew.

    The function is traced, and its equations run so: products and convolutions in
    ``half_dtype``; exponentials, logarithms, powers, sums and the like in float32; any other
    operation in the widest dtype among its operands, where neither literals nor parameters
    count, so that adding a bias leaves a half product half. It goes into jit, remat, scan,
    while, cond, shard_map, custom_jvp and custom_vjp, and into the user's derivative rules; what
    loops carry, branches and a custom_vjp return, and what ``fn`` returns keep the dtypes that
    it declares. It differentiates and batches as ``fn``, and is jitted: a second call with equal
    shapes traces and compiles nothing.

    Args:
        fn: A function of pytrees of arrays. Leaves of its arguments that are not arrays are
            passed on as they are; a call in which one cannot be hashed is traced anew.
        half_dtype: float16 or bfloat16.
        params_argnums: Which positional arguments hold parameters; of Flax variables only the
            collection ``params`` counts.
        products_only: Leaves the float32 operations as they come; for a function whose
            parameters are half already, but for a few.

    Returns:
        A function of the same arguments, structure and output dtypes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> fn = autocast(lambda w, x: jnp.exp(x @ w))
        >>> program = str(jax.make_jaxpr(fn)(jnp.ones((2, 2)), jnp.ones((2, 2))))
        >>> "bf16[2,2] = dot_general" in program, "f32[2,2] = exp" in program
        (True, True)

    Reference:
        The lists follow NVIDIA apex's O1. There a function is patched, here it is traced; a cast
        that ``fn`` makes to a dtype it already has is therefore not seen.
    """
    half = jnp.dtype(half_dtype)
    lists = OpLists(OPS.half, frozenset(), OPS.declared, OPS.separate) if products_only else OPS

    @functools.wraps(fn, updated=())
    def evaluated(static: Static, values: list[Any]) -> Any:
        def of_values(values: list[Any]) -> Any:
            args, kwargs = static.fill(values)
            return fn(*args, **kwargs)

        traced = trace(of_values, values)
        tags = _tags(static.fill(values)[0], params_argnums)
        tags += [None] * (len(values) - len(tags))
        _, facts = propagate(traced.jaxpr, tags, _Weakness())
        rule = functools.partial(_rule, lists, half, facts)
        alike = functools.partial(_facts_below, facts, sorted(facts))
        outputs, _ = evaluate(traced.jaxpr, traced.consts, values, rule, alike=alike)
        pairs = zip(outputs, traced.out_avals, strict=True)
        return traced.unflatten([_to(x, a.dtype) if _managed(a, half) else x for x, a in pairs])

    jitted = jax.jit(evaluated, static_argnums=0)

    @functools.wraps(fn)
    def cast(*args: Any, **kwargs: Any) -> Any:
        static, values = partition((args, kwargs))
        return (jitted if static.hashable else evaluated)(static, values)

    return cast


_PARAMETER = "parameter"
_Tag = str | float | None
"""What a value is to promotion: a parameter, a constant of known value, or None: it votes."""


def _tags(args: Sequence[Any], params_argnums: Sequence[int]) -> list[_Tag]:
    """Returns a tag for every array in the arguments."""
    return [
        _PARAMETER if n in params_argnums and flag else None
        for n, arg in enumerate(args)
        for leaf, flag in zip(jax.tree.leaves(arg), param_mask(arg), strict=True)
        if isinstance(leaf, ARRAYS)
    ]


class _Weakness:
    """Dataflow rules that find parameters and constants, at most reshaped."""

    def literal(self, value: Any) -> _Tag:
        return float(value) if value is not None and _is_number(value) else None

    def equation(
        self, equation: jex.JaxprEqn, tags: Sequence[_Tag], frames: tuple[Frame, ...], path: Path
    ) -> tuple[list[_Tag], tuple[_Tag, ...]]:
        tag = None
        if equation.primitive.name in _KEEPS_TAG:
            tag = tags[0]
        elif equation.primitive.name in _FOLDS and all(isinstance(tag, float) for tag in tags):
            tag = _fold(equation, tags)
        return [tag] * len(equation.outvars), tuple(tags)

    def join(self, first: _Tag, second: _Tag) -> _Tag:
        return first if first == second else None

    def choose(self, predicate: _Tag, tags: Sequence[_Tag]) -> _Tag:
        return functools.reduce(self.join, tags)

    def shared(self, tag: _Tag) -> _Tag:
        return tag

    def sliced(self, tag: _Tag, level: int) -> _Tag:
        return tag

    def carried(self, tag: _Tag, level: int) -> _Tag:
        return tag

    def stacked(self, tag: _Tag, level: int) -> _Tag:
        return None


def _facts_below(
    facts: Mapping[Path, tuple[_Tag, ...]], paths: Sequence[Path], path: Path
) -> tuple[tuple[Path, tuple[_Tag, ...]], ...]:
    """Returns what was found below a path, with the paths from there on."""
    first, last = (bisect_left(paths, (*path[:-1], path[-1] + after)) for after in (0, 1))
    return tuple((inner[len(path) :], facts[inner]) for inner in paths[first:last])


def _is_number(value: Any) -> bool:
    dtype = jnp.result_type(value)
    real = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    return np.ndim(value) == 0 and real


def _fold(equation: jex.JaxprEqn, constants: Sequence[Any]) -> _Tag:
    """Computes a scalar made of constants, such as the 1 / sqrt(d) of attention."""
    avals = [aval_of(atom) for atom in (*equation.invars, *equation.outvars)]
    if not all(aval.shape == () and aval.dtype == _FLOAT32 for aval in avals):
        return None
    exponent = [equation.params["y"]] if equation.primitive.name == "integer_pow" else []
    with np.errstate(all="ignore"):
        return float(_FOLDS[equation.primitive.name](*constants, *exponent))


def _managed(aval: Any, half: np.dtype) -> bool:
    return getattr(aval, "dtype", None) in (_FLOAT32, half)


def _to(value: Any, dtype: Any) -> Any:
    return value if jnp.result_type(value) == dtype else lax.convert_element_type(value, dtype)


def _rule(
    lists: OpLists,
    half: np.dtype,
    facts: Mapping[Path, tuple[_Tag, ...]],
    view: EquationView,
    values: Sequence[Any],
) -> list[Any] | None:
    equation, name = view.equation, view.equation.primitive.name
    managed = [_managed(aval_of(atom), half) for atom in equation.invars]
    if name in lists.declared or _fixed(equation) or not any(managed):
        return None
    if name == "convert_element_type" and _changes_nothing(equation):
        return list(values)

    def cast_all(dtype: Any) -> list[Any]:
        return [_to(v, dtype) if m else v for v, m in zip(values, managed, strict=True)]

    if name in lists.half:
        return view.bind(cast_all(half), **_accumulation(equation, half))
    if name in lists.float32 or ("square" in lists.float32 and _squares(equation)):
        return view.bind(cast_all(_FLOAT32))
    if name in lists.separate or sum(managed) < 2:
        return view.bind(values)
    tags = facts.get(view.path, (None,) * len(values))
    mine = [(v, t) for v, t, m in zip(values, tags, managed, strict=True) if m]
    return view.bind(cast_all(_widest(mine, half)))


def _accumulation(product: jex.JaxprEqn, half: np.dtype) -> dict[str, Any]:
    """Asks a float32 product for a half result; one that the user made of halves stays."""
    wanted = product.params.get("preferred_element_type")
    whole = any(aval_of(atom).dtype == _FLOAT32 for atom in product.invars)
    return {"preferred_element_type": half} if whole and wanted == _FLOAT32 else {}


def _squares(equation: jex.JaxprEqn) -> bool:
    """Tells a product of a value with itself, as in a norm, which overflows as a square does."""
    atoms = equation.invars
    return equation.primitive.name == "mul" and atoms[0] is atoms[1]


def _changes_nothing(conversion: jex.JaxprEqn) -> bool:
    return conversion.params["new_dtype"] == aval_of(conversion.invars[0]).dtype


def _fixed(equation: jex.JaxprEqn) -> bool:
    """Tells whether an equation must keep its dtypes: it holds code, or names its result's."""
    return equation.params.get("out_dtype") is not None or bool(sub_jaxprs(equation))


def _widest(operands: Sequence[tuple[Any, _Tag]], half: np.dtype) -> np.dtype:
    """Returns the dtype that operands are promoted to; parameters and constants do not vote.

    Where nothing votes, parameters do.
    """
    for counts in (lambda tag: tag is None, lambda tag: tag == _PARAMETER):
        voters = [value for value, tag in operands if counts(tag)]
        if voters:
            break
    if not voters or any(jnp.result_type(value) == _FLOAT32 for value in voters):
        return _FLOAT32
    constants = [tag for _, tag in operands if isinstance(tag, float)]
    return half if all(_fits(constant, half) for constant in constants) else _FLOAT32


def _fits(constant: float, half: np.dtype) -> bool:
    """Tells whether a constant is rounded neither to zero nor to infinity in the half dtype."""
    limits = jnp.finfo(half)
    normal = float(limits.tiny) <= abs(constant) <= float(limits.max)
    return constant == 0 or not math.isfinite(constant) or normal
