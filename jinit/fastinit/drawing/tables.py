"""What a program that draws rows is given: by device and row, the row's key and its place."""

import functools
from dataclasses import dataclass

import jax
import numpy as np

from jinit.fastinit.drawing.schedule import Call, Shape
from jinit.fastinit.reading.recipe import Recipe

__all__ = ["Tables", "tables_of"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["keys", "begins", "rests", "sizes", "strides", "numbers"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Tables:
    """Rows; a number of 64 bits is its high and its low word, ``uint32``.

    Attributes:
        keys: ``uint32[devices, rows, keys of the recipe, 2]``.
        begins: ``uint32[devices, rows, 2]``, where the turn of the slowest digit begins in which
            the row does; see ``blocks``.
        rests: ``uint32[devices, rows]``, how far into that turn the row begins.
        sizes: ``uint32[rows, levels]``, the sizes of all digits but the slowest.
        strides: ``uint32[rows, levels + 1, 2]``, the strides of all.
        numbers: ``[devices, rows]`` of each of the numbers that differ in the recipe.
    """

    keys: np.ndarray
    begins: np.ndarray
    rests: np.ndarray
    sizes: np.ndarray
    strides: np.ndarray
    numbers: tuple[np.ndarray, ...]


def tables_of(recipe: Recipe, call: Call, levels: int, shape: Shape, devices: int) -> Tables:
    """Writes down the rows of a call; those that are left over repeat the first."""
    keys = np.zeros((devices, shape.rows, recipe.count("bits"), 2), np.uint32)
    begins, rests = np.zeros((2, devices, shape.rows), np.uint64)
    digits = np.zeros((shape.rows, levels + 1, 2), np.uint64)
    numbers = tuple(np.zeros((devices, shape.rows), dtype) for dtype in recipe.dtypes)
    row = 0
    for _, piece in call.pieces:
        each = piece.rows_each(shape.width)
        places = piece.begin + np.arange(each, dtype=np.uint64) * np.uint64(shape.width)
        for strip in piece.strips:
            rows = slice(row, row + each)
            digits[rows] = strip.blocks[0].levels
            for device, (block, own) in enumerate(
                zip(strip.blocks, strip.ingredients, strict=True)
            ):
                begins[device, rows], rests[device, rows] = block.start(places)
                keys[device, rows] = own.keys
                for table, number in zip(numbers, own.numbers, strict=True):
                    table[device, rows] = number
            row += each
    if max(rests.max(), digits[:, :levels, 0].max(initial=0)) >= 2**32 - shape.width:
        raise ValueError(
            "a shard with 2**32 elements or more between the axes that it is divided along cannot "
            "be drawn: divide it along other axes"
        )
    for table in (keys, begins, rests, *numbers):
        table[:, row:] = table[:, :1]
    digits[row:] = digits[:1]
    sizes, strides = digits[:, :levels, 0].astype(np.uint32), _words(digits[..., 1])
    return Tables(keys, _words(begins), rests.astype(np.uint32), sizes, strides, numbers)


def _words(numbers: np.ndarray) -> np.ndarray:
    """Divides whole numbers into their high and low words, on a new last axis."""
    words = [numbers >> np.uint64(32), numbers & np.uint64(0xFFFFFFFF)]
    return np.stack(words, -1).astype(np.uint32)
