"""Initializers of recurrent cells whose gates have parameters of their own."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import get_opaque_trace_state
from jax.typing import DTypeLike

from jinit.defaults.tables.layer_table import Derived
from jinit.initializers import constant
from jinit.initializers.base import Initializer

__all__ = ["Blocks", "Joint", "PerGate", "blocks", "joint", "per_gate"]


@dataclass
class _Drawn:
    """The matrix of the cell at hand, where it was drawn, and how many blocks are taken."""

    matrix: Any = None
    trace: Any = None
    taken: int = 0


@dataclass(frozen=True)
class Joint:
    """Draws a matrix for all gates of a cell at the first of its calls, and returns its blocks.

    Attributes:
        init: What draws the matrix.
        gates: How many calls, one for each gate, make a cell.
    """

    init: Initializer
    gates: int
    # Not compared: Flax keys caches by a module's fields, and hashes them.
    drawn: _Drawn = field(default_factory=_Drawn, compare=False, repr=False)

    def __call__(self, key: Any, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
        """Returns the next block, of ``shape``."""
        drawn, trace = self.drawn, get_opaque_trace_state(convention="flax")
        # Where a parameter exists already, Flax asks for its shape alone, in a trace that ends
        # before the next gate's begins: nothing of it may be kept.
        if drawn.taken == 0 or drawn.trace != trace:
            drawn.matrix = self.init(key, self.matrix_shape(shape), dtype)
            drawn.trace = trace
        start = drawn.taken * shape[-1]
        block = drawn.matrix[:, start : start + shape[-1]]
        drawn.taken = (drawn.taken + 1) % self.gates
        return block

    def matrix_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Returns the shape of the matrix whose block has ``shape``."""
        return shape[0], self.gates * shape[1]


@dataclass(frozen=True)
class PerGate:
    """Draws what belongs to the gates of a cell, one after the other.

    Attributes:
        inits: The initializer of each gate, in the order in which the cell makes them.
    """

    inits: tuple[Initializer, ...]
    drawn: _Drawn = field(default_factory=_Drawn, compare=False, repr=False)

    def __call__(self, key: Any, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
        """Draws for the next gate."""
        init = self.inits[self.drawn.taken]
        self.drawn.taken = (self.drawn.taken + 1) % len(self.inits)
        return init(key, shape, dtype)


def joint(init: Initializer, gates: int) -> Derived:
    """Returns the default that draws the kernels of all gates as one matrix."""
    return Derived(lambda *_, **__: Joint(init, gates), f"joint({init!r}, gates={gates})")


def per_gate(*inits: Initializer) -> Derived:
    """Returns the default that draws each gate's parameter with an initializer of its own."""
    return Derived(lambda *_, **__: PerGate(inits), f"per_gate({_texts(inits)})")


def blocks(*inits: Initializer | float) -> "Blocks":
    """Returns the initializer of an array of all gates, from one initializer or number a gate."""
    return Blocks(tuple(i if isinstance(i, Initializer) else constant(i) for i in inits))


@dataclass(frozen=True)
class Blocks:
    """Draws one array for all gates, block by block along its last axis.

    Attributes:
        inits: The initializer of each block.
    """

    inits: tuple[Initializer, ...]

    def __call__(self, key: Any, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
        """Draws all blocks."""
        block = (*shape[:-1], shape[-1] // len(self.inits))
        keys = jax.random.split(key, len(self.inits))
        blocks = [init(k, block, dtype) for init, k in zip(self.inits, keys, strict=True)]
        return jnp.concatenate(blocks, axis=-1)

    def __repr__(self) -> str:
        return f"blocks({_texts(self.inits)})"


def _texts(inits: Sequence[Initializer]) -> str:
    return ", ".join(str(i.value) if isinstance(i, constant) else repr(i) for i in inits)
