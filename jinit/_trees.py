"""Trees of variables: what a leaf is called, and which leaves are parameters."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jinit._arithmetic import is_float

__all__ = [
    "collection_of",
    "is_framework_type",
    "is_nnx_statistic",
    "leaf_paths",
    "optimized",
    "param_mask",
    "parameter_path",
    "path_text",
]


def path_text(path: Sequence[Any]) -> str:
    """Returns a path of JAX's keys as text.

    Example:
        >>> path_text((jax.tree_util.DictKey("Dense_0"), jax.tree_util.SequenceKey(1)))
        'Dense_0/1'
    """
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def leaf_paths(tree: Any) -> list[str]:
    """Returns the path of every leaf.

    Example:
        >>> leaf_paths({"params": {"Dense_0": {"kernel": 1.0, "bias": 0.0}}})
        ['params/Dense_0/bias', 'params/Dense_0/kernel']
    """
    return [path_text(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def collection_of(variables: Any, collection: str | None = None) -> str | None:
    """Returns the top-level entry that holds the parameters; None where the whole tree does.

    Args:
        variables: Any tree.
        collection: The entry, where it is not Flax's.

    Raises:
        ValueError: There is no such entry.
    """
    entries = variables if isinstance(variables, Mapping) else ()
    if collection is None:
        return "params" if "params" in entries else None
    if collection not in entries:
        found = ", ".join(map(repr, entries)) if entries else type(variables)
        raise ValueError(
            f"collection={collection!r} is no top-level entry of params, which has {found}"
        )
    return collection


def param_mask(variables: Any, collection: str | None = None) -> tuple[bool, ...]:
    """Returns for every leaf whether it is a parameter.

    Those of Flax's other collections, and of NNX's variables of other types, are not.

    Args:
        variables: Any tree.
        collection: The top-level entry that holds the parameters, where it is not Flax's.

    Example:
        >>> param_mask({"batch_stats": {"mean": 0.0}, "params": {"scale": 1.0}})
        (False, True)
    """
    collection = collection_of(variables, collection)
    mask: list[bool] = []
    nodes = jax.tree_util.tree_leaves_with_path(variables, is_leaf=_is_nnx_variable)
    for path, node in nodes:
        param = collection is None or path_text(path[:1]) == collection
        mask += [param and not is_nnx_statistic(node)] * len(jax.tree.leaves(node))
    return tuple(mask)


def optimized(variables: Any, collection: str | None = None) -> Any:
    """Returns what an optimizer sees: the parameters that are floats, None in place of others.

    Args:
        variables: Any tree.
        collection: The top-level entry that holds the parameters, where it is not Flax's.
    """
    leaves, tree = jax.tree.flatten(variables)
    mask = param_mask(variables, collection)
    kept = [x if flag and is_float(x) else None for x, flag in zip(leaves, mask, strict=True)]
    whole, name = jax.tree.unflatten(tree, kept), collection_of(variables, collection)
    return whole if name is None else whole[name]


def parameter_path(path: Sequence[Any], variables: Any) -> tuple[str, ...]:
    """Returns a path below the parameters: without Flax's collection, and NNX's inner value."""
    components = tuple(path_text((entry,)) for entry in path)
    if collection_of(variables) is not None:
        components = components[1:]
    inner = path and isinstance(path[-1], jax.tree_util.GetAttrKey) and components[-1] == "value"
    return components[:-1] if inner else components


def is_framework_type(value: Any, framework: str, name: str) -> bool:
    """Tells a framework's objects without importing it: they exist only where it is imported."""
    module = sys.modules.get(framework)
    return module is not None and isinstance(value, getattr(module, name))


def _is_nnx_variable(node: Any) -> bool:
    return is_framework_type(node, "flax.nnx", "Variable")


def is_nnx_statistic(node: Any) -> bool:
    """Returns whether a node is a variable of NNX that is not a parameter."""
    return _is_nnx_variable(node) and not is_framework_type(node, "flax.nnx", "Param")
