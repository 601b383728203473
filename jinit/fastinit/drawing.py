"""Draws arrays, whatever their shapes and shardings, by a program for each of a few recipes."""

import collections
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jinit.fastinit import threefry
from jinit.fastinit.devices import Devices
from jinit.fastinit.recipe import Recipe, evaluate
from jinit.fastinit.schedule import Call, Piece, Shape, Strip, schedule

__all__ = ["Leaf", "draw_leaves"]

_WAITING = 8  # calls that may be under way; each holds what it draws


@dataclass(frozen=True)
class Leaf:
    """An array to be drawn.

    Attributes:
        number: Its number.
        recipe: How.
        strips: The parts that are drawn with one key, in order.
        shape: The shape of every device's part.
        dtype: The dtype.
    """

    number: int
    recipe: Recipe
    strips: tuple[Strip, ...]
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def levels(self) -> int:
        """How many digits the places of its elements have beside the slowest."""
        return len(self.strips[0].blocks[0].levels) - 1


def draw_leaves(leaves: Sequence[Leaf], devices: Devices) -> Iterator[tuple[int, jax.Array]]:
    """Draws leaves, and yields each when it is done: its parts one after another on the first axis."""
    alike: dict[Any, list[Leaf]] = {}
    for leaf in leaves:
        alike.setdefault((leaf.recipe, leaf.levels), []).append(leaf)
    for (recipe, levels), group in alike.items():
        yield from _draw_alike(recipe, levels, group, devices)


def _draw_alike(
    recipe: Recipe, levels: int, group: Sequence[Leaf], devices: Devices
) -> Iterator[tuple[int, jax.Array]]:
    shape, by_number = devices.shape, {leaf.number: leaf for leaf in group}
    waiting: collections.deque[jax.Array] = collections.deque()
    buffers: dict[int, jax.Array] = {}
    for call in schedule([(leaf.number, leaf.strips) for leaf in group], shape):
        with devices.active():
            rows = _rows(*_tables(recipe, call, levels, devices), recipe, levels, devices)
            for first, piece in call.pieces:
                buffer, leaf = buffers.pop(piece.leaf, None), by_number[piece.leaf]
                buffers[piece.leaf] = _put(rows, first, piece, leaf, buffer, devices)
        for _, piece in call.pieces:
            if piece.last:
                yield piece.leaf, buffers.pop(piece.leaf)
        waiting.append(rows)
        if len(waiting) > _WAITING:
            waiting.popleft().block_until_ready()


def _words(numbers: Any) -> np.ndarray:
    """Divides whole numbers into their high and low words, on a new last axis."""
    wide = np.asarray(numbers, np.uint64)
    return np.stack([wide >> np.uint64(32), wide & np.uint64(0xFFFFFFFF)], -1).astype(np.uint32)


def _tables(recipe: Recipe, call: Call, levels: int, devices: Devices) -> tuple[Any, ...]:
    """Returns, by device and row: keys, where rows begin, digits, and the recipe's numbers."""
    shape, count = devices.shape, devices.count
    keys = np.zeros((count, shape.rows, recipe.count("bits"), 2), np.uint32)
    begins = np.zeros((count, shape.rows, 2), np.uint64)
    digits = np.ones((shape.rows, levels, 2), np.uint64)
    numbers = [np.zeros((count, shape.rows), dtype) for dtype in recipe.dtypes]
    row = 0
    for _, piece in call.pieces:
        each = piece.rows_each(shape.width)
        for strip in piece.strips:
            rows = slice(row, row + each)
            digits[rows] = np.array(strip.blocks[0].levels[:levels], np.uint64).reshape(levels, 2)
            for device in range(count):
                block, own = strip.blocks[device], strip.ingredients[device]
                places = range(piece.begin, piece.begin + each * shape.width, shape.width)
                begins[device, rows] = [block.start(place) for place in places]
                keys[device, rows] = own.keys
                for table, number in zip(numbers, own.numbers, strict=True):
                    table[device, rows] = number
            row += each
    digits[..., 1] = np.where(digits[..., 0] == 1, 0, digits[..., 1])
    slowest = _slowest(call, levels, shape)
    return keys, _words(begins[..., 0]), begins[..., 1].astype(np.uint32), (
        digits[..., 0].astype(np.uint32), _words(digits[..., 1]), slowest,
    ), tuple(numbers)


def _slowest(call: Call, levels: int, shape: Shape) -> np.ndarray:
    """Returns the stride of the slowest digit of every row."""
    strides = np.ones(shape.rows, np.uint64)
    row = 0
    for _, piece in call.pieces:
        end = row + piece.rows(shape.width)
        strides[row:end] = piece.strips[0].blocks[0].levels[-1][1]
        row = end
    return _words(strides)


@functools.partial(jax.jit, static_argnames=("recipe", "levels", "devices"))
def _rows(
    keys: Any, begins: Any, rests: Any, digits: Any, numbers: Any,
    recipe: Recipe, levels: int, devices: Devices,
) -> jax.Array:
    """Draws rows: ``[devices, rows, width]``."""

    def draw(keys: Any, begins: Any, rests: Any, digits: Any, numbers: Any) -> jax.Array:
        here = devices.index()
        index = _places(begins[here], rests[here], digits, levels, devices.shape.width)

        def bits(number: int, width: int) -> jax.Array:
            words = keys[here][:, number, :, None]
            return threefry.draw_bits((words[:, 0], words[:, 1]), index, width)

        return evaluate(recipe, bits, [table[here][:, None] for table in numbers])[None]

    return devices.spread(draw, [False] * 5)(keys, begins, rests, digits, numbers)


def _places(begins: Any, rests: Any, digits: Any, levels: int, width: int) -> tuple[Any, Any]:
    """Returns the places of the elements of rows in their arrays, as two words; see ``blocks``."""
    turn = rests[:, None] + jnp.arange(width, dtype=jnp.uint32)
    high, low = begins[:, :1], begins[:, 1:]
    if not levels:
        return _sum((high, low), (jnp.uint32(0), turn))
    sizes, strides, slowest = digits
    place = (jnp.broadcast_to(high, turn.shape), jnp.broadcast_to(low, turn.shape))
    for level in range(levels):
        size = sizes[:, level, None]
        place = _sum(place, _product(turn % size, strides[:, level]))
        turn = turn // size
    return _sum(place, _product(turn, slowest))


def _sum(a: tuple[Any, Any], b: tuple[Any, Any]) -> tuple[Any, Any]:
    low = a[1] + b[1]
    return a[0] + b[0] + (low < b[1]).astype(jnp.uint32), low


def _product(digit: Any, stride: Any) -> tuple[Any, Any]:
    """Multiplies 32 bits by 64, of which the product has no more."""
    high, low = stride[:, :1], stride[:, 1:]
    half = 0xFFFF
    a, b, c, d = digit >> 16, digit & half, low >> 16, low & half
    middle = a * d + ((b * d) >> 16)
    other = b * c + (middle & half)
    return a * c + (middle >> 16) + (other >> 16) + digit * high, digit * low


def _put(
    rows: jax.Array, first: int, piece: Piece, leaf: Leaf, buffer: jax.Array | None, devices: Devices
) -> jax.Array:
    """Puts a piece into its leaf, which is new where it is the only one."""
    what = {
        "strips": len(piece.strips),
        "each": piece.rows_each(devices.shape.width),
        "length": piece.length,
        "shape": leaf.shape if piece.last else None,
        "devices": devices,
    }
    if buffer is None and piece.last:
        return _take(rows, np.int32(first), **what)
    if buffer is None:
        size = len(leaf.strips) * leaf.strips[0].blocks[0].size
        buffer = _begin(devices, size, leaf.dtype)
    return _insert(buffer, rows, np.int32(first), np.int64(piece.offset), **what)


_STATIC = ("strips", "each", "length", "shape", "devices")


def _cut(rows: jax.Array, first: Any, strips: int, each: int, length: int) -> jax.Array:
    cut = jax.lax.dynamic_slice_in_dim(rows[0], first, strips * each)
    return cut.reshape(strips, -1)[:, :length].reshape(-1)


@functools.partial(jax.jit, static_argnames=_STATIC)
def _take(rows, first, *, strips, each, length, shape, devices):
    def take(rows, first):
        return _cut(rows, first, strips, each, length).reshape(shape)

    return devices.spread(take, [True, False])(rows, first)


@functools.partial(jax.jit, static_argnames=("devices", "size", "dtype"))
def _begin(devices, size, dtype):
    return devices.spread(lambda: jnp.zeros((1, size), dtype), [])()


@functools.partial(jax.jit, static_argnames=_STATIC, donate_argnames="buffer")
def _insert(buffer, rows, first, offset, *, strips, each, length, shape, devices):
    def insert(buffer, rows, first, offset):
        new = _cut(rows, first, strips, each, length)
        filled = jax.lax.dynamic_update_slice(buffer[0], new, (offset,))
        return filled[None] if shape is None else filled.reshape(shape)

    return devices.spread(insert, [True, True, False, False])(buffer, rows, first, offset)
