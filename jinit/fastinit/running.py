"""Compiled programs, run or only lowered, for devices that need not be there."""

from collections.abc import Hashable
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Sharding

__all__ = ["Lowering", "Run", "run_now"]


class Run(Protocol):
    """Does something with a program and its arguments, and returns what stands for its results."""

    def __call__(self, program: Any, *args: Any, sharding: Sharding | None) -> Any:
        """Takes a jitted function, its arguments, and the sharding of its results."""
        ...


def run_now(program: Any, *args: Any, sharding: Sharding | None) -> Any:
    """Runs a program."""
    return program(*args)


class Lowering:
    """Lowers every program once, and returns shapes for its results.

    Attributes:
        programs: What was lowered.
    """

    def __init__(self) -> None:
        self._seen: dict[Hashable, Any] = {}
        self.programs: list[Any] = []

    def __call__(self, program: Any, *args: Any, sharding: Sharding | None) -> Any:
        """Lowers a program for these arguments, if it was not yet."""
        leaves, tree = jax.tree.flatten(args)
        key = program, tree, tuple(map(_static, leaves))
        if key not in self._seen:
            lowered = program.lower(*args)
            self.programs.append(lowered)
            self._seen[key] = jax.tree.map(
                lambda out: jax.ShapeDtypeStruct(out.shape, out.dtype, sharding=sharding),
                lowered.out_info,
            )
        return self._seen[key]


def _static(leaf: Any) -> Hashable:
    """Returns what a program depends on of an argument."""
    if isinstance(leaf, (np.ndarray, np.generic, jax.Array, jax.ShapeDtypeStruct)):
        return np.shape(leaf), leaf.dtype
    return leaf
