"""Where the elements of a shard stand in the whole array.

A shard is read in its own order, p = 0, 1, 2, ..., and place p of it is place
``base + sum(digit * stride)`` of the whole array, with the digits of p in a mixed radix: axes that
lie one after another in both are one digit. A shard of rows has none but the last digit, one of
columns has two::

    [4, 6] of [8, 6]   base + p
    [8, 3] of [8, 6]   base + (p // 3) * 6 + p % 3
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Block", "block_of"]


@dataclass(frozen=True)
class Block:
    """A shard's places.

    Attributes:
        base: The place of its first element in the whole array.
        levels: The size and the stride of every digit, the fastest first; its stride is 1.
    """

    base: int
    levels: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(size for size, _ in self.levels)

    def start(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Divides places into where the slowest digit's turn begins in the array, and the rest.

        Without other digits there is no rest.
        """
        stride = np.uint64(self.levels[-1][1])
        inner = np.uint64(math.prod(size for size, _ in self.levels[:-1]))
        turns, rests = np.divmod(places, inner)
        return np.uint64(self.base) + turns * stride, rests


def block_of(shape: Sequence[int], starts: Sequence[int], sizes: Sequence[int]) -> Block:
    """Returns the places of a block of an array.

    Args:
        shape: The shape of the whole array.
        starts: Where the block begins along every axis.
        sizes: The block's shape.
    """
    levels = [(1, 1)]
    base, stride = 0, 1
    for whole, start, size in reversed([*zip(shape, starts, sizes, strict=True)]):
        base += start * stride
        inner, step = levels[-1]
        if inner * step == stride:
            levels[-1] = inner * size, step
        elif size > 1:
            levels.append((size, stride))
        stride *= whole
    return Block(base, tuple(levels))
