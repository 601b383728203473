"""State that follows activations, as a cache does: it has their dtype inside a function.

What is written into it are activations, and what is read of it meets others. So it enters as the
function computes, and comes back in the dtype it had::

    cache, float32  --cast-->  bfloat16  --function-->  bfloat16  --restore-->  float32

``jinit.modules.roles`` says which collections and variables are such state.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jinit._trees import collection_of, path_text
from jinit.amp.casting.dtypes import cast_floating
from jinit.modules.kinds import is_nnx_variable
from jinit.modules.nnx_calls import is_object
from jinit.modules.roles import Roles, role_of

__all__ = [
    "Activations",
    "cast_activations",
    "find_activations",
    "owner_is_kept",
    "restore_activations",
]

Names = tuple[str, ...]

Activations = Mapping[Names, np.dtype]
"""The dtypes of state that follows activations, by path."""


def find_activations(tree: Any, roles: Roles = (), *, collections: bool = False) -> Activations:
    """Returns the dtypes of the state in a tree that follows activations.

    Args:
        tree: Any tree: linen's variables, or NNX's variables wherever they stand.
        roles: What the user says of collections and variables.
        collections: Whether the top level are collections for certain; they are also where
            ``params`` is among them.

    Example:
        >>> import jax.numpy as jnp
        >>> find_activations({"params": {"w": jnp.ones(2)}, "cache": {"key": jnp.ones(2)}})
        {('cache', 'key'): dtype('float32')}
    """
    follows = _follower(roles, collections=collections or collection_of(tree) is not None)
    nodes = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_nnx_variable)
    dtypes = {_names(path): _dtype_of(node) for path, node in nodes if follows(path, node)}
    return {path: dtype for path, dtype in dtypes.items() if dtype is not None}


def cast_activations(tree: Any, dtypes: Activations) -> Any:
    """Casts the state at some paths.

    Args:
        tree: The tree in which ``find_activations`` found it.
        dtypes: What it is to be.

    Returns:
        The tree, with new variables where they are NNX's.
    """
    return _cast_nodes(tree, lambda path, _: dtypes.get(_names(path))) if dtypes else tree


def restore_activations(tree: Any, given: Activations, roles: Roles = ()) -> Any:
    """Gives variables of NNX that a function returned the dtypes in which they came.

    Args:
        tree: What was returned. New variables, which came under no such name, keep their dtype.
        given: The dtypes in which they came, by their paths among the arguments.
        roles: As for ``find_activations``.

    Returns:
        The tree; a variable of another dtype is replaced, and objects of NNX are left alone.
    """
    follows = _follower(roles, collections=False)

    def dtype_of(path: Sequence[Any], node: Any) -> np.dtype | None:
        return _nearest(_names(path), given) if follows(path, node) else None

    return _cast_nodes(tree, dtype_of) if given else tree


def owner_is_kept(path: Names, kept: Collection[Names], others: Collection[Names]) -> bool:
    """Returns whether the module that owns a state computes in float32, with all that is in it.

    Args:
        path: Where the state stands, below its collection.
        kept: The paths of the modules whose parameters stay float32.
        others: Those of the modules with other parameters.

    Example:
        >>> owner_is_kept(("first", "cached_key"), {("first", "key")}, {("second", "key")})
        True
    """
    owner = path[:-1]
    among_kept, among_others = (
        any(each[: len(owner)] == owner for each in paths) for paths in (kept, others)
    )
    return among_kept and not among_others


def _follower(roles: Roles, *, collections: bool) -> Callable[[Sequence[Any], Any], bool]:
    def follows(path: Sequence[Any], node: Any) -> bool:
        if is_nnx_variable(node):
            return role_of(type(node), roles) == "activation"
        return collections and role_of(path_text(path[:1]), roles) == "activation"

    return follows


def _names(path: Sequence[Any]) -> Names:
    return tuple(path_text((entry,)) for entry in path)


def _dtype_of(node: Any) -> np.dtype | None:
    dtypes = (getattr(leaf, "dtype", None) for leaf in jax.tree.leaves(node))
    return next((d for d in dtypes if d is not None and jnp.issubdtype(d, jnp.floating)), None)


def _cast_nodes(tree: Any, dtype_of: Callable[[Sequence[Any], Any], np.dtype | None]) -> Any:
    def cast(path: Sequence[Any], node: Any) -> Any:
        dtype = dtype_of(path, node)
        if dtype is None or dtype == _dtype_of(node):
            return node
        leaves, structure = jax.tree.flatten(node)
        return jax.tree.unflatten(structure, cast_floating(leaves, dtype))

    return jax.tree_util.tree_map_with_path(cast, tree, is_leaf=is_object)


def _nearest(path: Names, given: Activations) -> np.dtype | None:
    """Returns the dtype of what ends as a path does: it may have come at another place."""
    ends = {each: _common_end(path, each) for each in given}
    nearest = max(ends, key=lambda each: ends[each])
    return given[nearest] if ends[nearest] else None


def _common_end(first: Names, second: Names) -> int:
    pairs = list(zip(reversed(first), reversed(second), strict=False))
    return next((n for n, (one, other) in enumerate(pairs) if one != other), len(pairs))
