"""Op-level casts: a function run with products in half and sensitive operations in float32."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core as jex

from jinit.amp.op_lists import OPS, OpLists
from jinit.amp.policy import param_mask
from jinit.tracing import EquationView, Frame, Path, aval_of, evaluate, propagate, sub_jaxprs, trace

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
    count, so that adding a bias leaves a half product half. Loops, branches and calls whose
    insides are not entered keep the dtypes the function declares, as do its outputs. It goes
    into jit, remat, scan, while, cond and custom_jvp, and differentiates and batches as ``fn``.

    Args:
        fn: A function of pytrees of arrays. Arguments that are not arrays, and keyword
            arguments, are passed on as they are.
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
        >>> args = jnp.ones((2, 2)), jnp.ones((2, 2))
        >>> [str(e.outvars[0].aval.dtype) for e in jax.make_jaxpr(fn)(*args).eqns
        ...  if e.primitive.name in ("dot_general", "exp")]
        ['bfloat16', 'float32']

    Reference:
        The lists follow NVIDIA apex's O1. There a function is patched, here it is traced; a cast
        that ``fn`` makes to a dtype it already has is therefore not seen.
    """
    half = jnp.dtype(half_dtype)
    lists = OpLists(OPS.half, frozenset(), OPS.declared, OPS.separate) if products_only else OPS

    @functools.wraps(fn)
    def cast(*args: Any, **kwargs: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        arrays = [i for i, leaf in enumerate(leaves) if isinstance(leaf, _ARRAYS)]

        def of_arrays(values: list[Any]) -> Any:
            full = list(leaves)
            for i, value in zip(arrays, values, strict=True):
                full[i] = value
            return fn(*jax.tree.unflatten(tree, full), **kwargs)

        values = [leaves[i] for i in arrays]
        traced = trace(of_arrays, values)
        parameters = [
            n in params_argnums and flag for n, arg in enumerate(args) for flag in param_mask(arg)
        ]
        tags = [_PARAMETER if parameters[i] else None for i in arrays]
        _, facts = propagate(traced.jaxpr, tags, _Weakness())
        rule = functools.partial(_rule, lists, half, facts)
        outputs, _ = evaluate(traced.jaxpr, traced.consts, values, rule)
        pairs = zip(outputs, traced.out_avals, strict=True)
        return traced.unflatten([_to(x, a.dtype) if _managed(a, half) else x for x, a in pairs])

    return cast


_ARRAYS = (jax.Array, np.ndarray, np.generic)
_PARAMETER = "parameter"
_Tag = str | float | None
"""What a value is to promotion: a parameter, a constant of known value, or None: it votes."""


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

    def stacked(self, tag: _Tag) -> _Tag:
        return None


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
