"""Which rows of numbers are drawn in which call of a program, and which arrays they become.

A program draws ``rows`` rows of ``width`` numbers at a time, whatever arrays they are for: many
small ones, or a part of a large one. Every row begins at some place of some array, has a key and
the numbers of its recipe.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from jinit.fastinit.drawing.blocks import Block
from jinit.fastinit.reading.recipe import Ingredients

__all__ = ["Call", "Piece", "Shape", "Strip", "schedule"]


@dataclass(frozen=True)
class Shape:
    """How many numbers a call draws: rows of a width."""

    rows: int
    width: int


@dataclass(frozen=True)
class Strip:
    """A part of a leaf on every device that is drawn with one key on each.

    Attributes:
        ingredients: The keys and the numbers, by device.
        blocks: The places of the elements, by device; all of one size and of the same strides.
    """

    ingredients: tuple[Ingredients, ...]
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Piece:
    """What of a call's rows goes into a leaf.

    Attributes:
        leaf: The number of the leaf.
        strips: The strips, all of one size.
        begin: Where in each of them the first row begins.
        length: How many numbers of each.
        offset: Where they go in the leaf's shard.
        last: Whether it is the last piece of its leaf.
    """

    leaf: int
    strips: tuple[Strip, ...]
    begin: int
    length: int
    offset: int
    last: bool

    def rows_each(self, width: int) -> int:
        """How many rows a strip takes."""
        return math.ceil(self.length / width)

    def rows(self, width: int) -> int:
        """How many rows it takes."""
        return len(self.strips) * self.rows_each(width)


@dataclass
class Call:
    """One call: pieces, each with its first row."""

    pieces: list[tuple[int, Piece]] = field(default_factory=list)
    rows: int = 0

    def add(self, piece: Piece, width: int) -> None:
        """Appends a piece."""
        self.pieces.append((self.rows, piece))
        self.rows += piece.rows(width)


def schedule(leaves: Sequence[tuple[int, Sequence[Strip]]], shape: Shape) -> Iterator[Call]:
    """Divides leaves of one recipe into calls, each leaf's one after another.

    Args:
        leaves: The number of each leaf and its strips in order.
        shape: What a call draws.
    """
    call = Call()
    for leaf, strips in leaves:
        for piece in _pieces(leaf, strips, shape):
            if call.rows + piece.rows(shape.width) > shape.rows:
                yield call
                call = Call()
            call.add(piece, shape.width)
    if call.pieces:
        yield call


def _pieces(leaf: int, strips: Sequence[Strip], shape: Shape) -> Iterator[Piece]:
    size, most = strips[0].blocks[0].size, shape.rows * shape.width
    if size > most:  # the last part begins early enough to be a whole one
        for number, strip in enumerate(strips):
            for begin in itertools.chain(range(0, size - most, most), [size - most]):
                last = number == len(strips) - 1 and begin == size - most
                yield Piece(leaf, (strip,), begin, most, number * size + begin, last)
        return
    together = shape.rows // math.ceil(size / shape.width)
    for first in range(0, len(strips), together):
        some = tuple(strips[first : first + together])
        yield Piece(leaf, some, 0, size, first * size, first + together >= len(strips))
