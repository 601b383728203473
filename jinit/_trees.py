"""Trees of variables: what their leaves are called, and where their parameters are."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

__all__ = [
    "collection_of",
    "is_box",
    "leaf_paths",
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
    """Returns the path of every leaf; that of the array in one of Flax's boxes is the box's.

    Example:
        >>> leaf_paths({"params": {"Dense_0": {"kernel": 1.0, "bias": 0.0}}})
        ['params/Dense_0/bias', 'params/Dense_0/kernel']
    """
    paths: list[str] = []
    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_box):
        inner = jax.tree_util.tree_leaves_with_path(node) if is_box(node) else [((), node)]
        paths += [path_text((*path, *below[1:])) for below, _ in inner]
    return paths


def is_box(node: Any) -> bool:
    """Returns whether a node is one of Flax's boxes around an array; Flax need not be installed."""
    return any(
        base.__module__.startswith("flax.")
        and ("value" in vars(base) or "value" in getattr(base, "__dataclass_fields__", {}))
        for base in type(node).__mro__
    )


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


def parameter_path(path: Sequence[Any], variables: Any) -> tuple[str, ...]:
    """Returns a path below the parameters: without Flax's collection, and NNX's inner value."""
    components = tuple(path_text((entry,)) for entry in path)
    if collection_of(variables) is not None:
        components = components[1:]
    inner = path and isinstance(path[-1], jax.tree_util.GetAttrKey) and components[-1] == "value"
    return components[:-1] if inner else components
