"""Equal blocks as one loop: its equations, and where each operand comes from."""

from dataclasses import dataclass

import numpy as np

from jinit.tracing.rolling.flat import FlatEquation

__all__ = ["Carried", "Internal", "Loop", "Made", "Outside", "Scanned", "Source", "Step"]


@dataclass(frozen=True)
class Internal:
    """The ``index``-th result of the block."""

    index: int


@dataclass(frozen=True)
class Carried:
    """The ``slot``-th of the values carried from block to block."""

    slot: int


@dataclass(frozen=True)
class Outside:
    """A value that is the same for all blocks."""

    value: int


@dataclass(frozen=True)
class Scanned:
    """The ``slot``-th of the values of which every block has its own."""

    slot: int


@dataclass(frozen=True, eq=False)
class Made:
    """A result of a deferred equation."""

    equation: FlatEquation
    operands: "tuple[Source, ...]"
    result: int


Source = Internal | Carried | Outside | Scanned | Made
"""Where an equation in a block gets an operand from."""


@dataclass(frozen=True)
class Step:
    """An equation of a block, where its operands come from, and its first result's index."""

    equation: FlatEquation
    sources: tuple[Source, ...]
    first: int


@dataclass(frozen=True)
class Loop:
    """A run of blocks that one loop can compute.

    Attributes:
        start: The position of its first equation in the sequence.
        stop: The position after its last.
        steps: The equations of the first block that are needed.
        carries: For every carried value the result of the block, by index, and the value that
            the first block gets instead.
        constants: The values that are the same for all blocks.
        scanned: The values of each of which every block has its own, block by block.
        groups: Those among them that are variables, to be stacked outside.
        results: The values that each block computes: an array of shape (blocks, results).
        exits: The indices of the results that are used after the loop.
    """

    start: int
    stop: int
    steps: tuple[Step, ...]
    carries: tuple[tuple[int, int], ...]
    constants: tuple[int, ...]
    scanned: tuple[tuple[int, ...], ...]
    groups: frozenset[tuple[int, ...]]
    results: np.ndarray
    exits: tuple[int, ...]
