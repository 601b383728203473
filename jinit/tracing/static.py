"""Arguments divided into arrays, which are traced, and what a program is compiled for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

__all__ = ["ARRAYS", "ARRAYS_OR_SHAPES", "Static", "partition"]

ARRAYS = (jax.Array, np.ndarray, np.generic)

ARRAYS_OR_SHAPES = (*ARRAYS, jax.ShapeDtypeStruct)


@dataclass(frozen=True)
class Static:
    """A tree of arguments without its arrays.

    Attributes:
        tree: Its structure.
        leaves: Every leaf with its type, since 1 and True are equal; None for an array.
    """

    tree: Any
    leaves: tuple[tuple[type, Any] | None, ...]

    @property
    def hashable(self) -> bool:
        """Whether a jit can tell it from another."""
        try:
            hash(self)
        except TypeError:
            return False
        return True

    def fill(self, values: Sequence[Any]) -> Any:
        """Puts arrays in."""
        rest = iter(values)
        leaves = [next(rest) if leaf is None else leaf[1] for leaf in self.leaves]
        return jax.tree.unflatten(self.tree, leaves)


def partition(tree: Any, arrays: tuple[type, ...] = ARRAYS) -> tuple[Static, list[Any]]:
    """Divides a tree into its arrays, the leaves of some types, and the rest."""
    leaves, structure = jax.tree.flatten(tree)
    kept = tuple(None if isinstance(leaf, arrays) else (type(leaf), leaf) for leaf in leaves)
    return Static(structure, kept), [leaf for leaf in leaves if isinstance(leaf, arrays)]
