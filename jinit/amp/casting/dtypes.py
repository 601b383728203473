"""The dtypes that precision is about, and casts of values and trees to them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jinit.modules.kinds import is_nnx_variable
from jinit.modules.roles import role_of
from jinit.typing import PyTree

__all__ = ["BFLOAT16", "FLOAT16", "FLOAT32", "cast_floating", "cast_to", "holds_float32"]

FLOAT32 = jnp.dtype(jnp.float32)
FLOAT16 = jnp.dtype(jnp.float16)
BFLOAT16 = jnp.dtype(jnp.bfloat16)


def cast_to(value: Any, dtype: Any) -> Any:
    """Casts a value that has another dtype."""
    return value if jnp.result_type(value) == dtype else lax.convert_element_type(value, dtype)


def cast_floating(tree: PyTree, dtype: np.dtype) -> PyTree:
    """Casts the floating arrays of a tree.

    Args:
        tree: Any tree. Integers, booleans, keys, Python scalars (which follow the arrays they
            meet), NNX variables other than ``nnx.Param`` (statistics) and whatever is not an
            array are passed on as they are.
        dtype: The dtype of floating leaves.

    Returns:
        The tree.
    """

    def cast(leaf: Any) -> Any:
        if _is_statistic(leaf):
            return jax.tree.map(lambda value: value, leaf)  # a copy: NNX writes into it
        array = isinstance(leaf, (jax.Array, np.ndarray, np.generic))
        if array and jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.asarray(leaf).astype(dtype)
        return leaf

    return jax.tree.map(cast, tree, is_leaf=_is_statistic)


def holds_float32(tree: PyTree) -> bool:
    """Returns whether a leaf is a float32 array."""
    return any(getattr(leaf, "dtype", None) == FLOAT32 for leaf in jax.tree.leaves(tree))


def _is_statistic(node: Any) -> bool:
    return is_nnx_variable(node) and role_of(type(node)) != "parameter"
