"""Draws arrays, whatever their shapes and shardings, by a program for each of a few recipes."""

import collections
import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jinit.fastinit import threefry
from jinit.fastinit.drawing.devices import Devices
from jinit.fastinit.drawing.schedule import Piece, Strip, schedule
from jinit.fastinit.drawing.tables import Tables, tables_of
from jinit.fastinit.reading.recipe import Recipe, evaluate
from jinit.fastinit.running import Run

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


def draw_leaves(
    leaves: Sequence[Leaf], devices: Devices, run: Run
) -> Iterator[tuple[int, jax.Array]]:
    """Draws leaves, and yields each when it is done: parts one after another on the first axis."""
    alike: dict[Any, list[Leaf]] = {}
    for leaf in leaves:
        alike.setdefault((leaf.recipe, leaf.levels), []).append(leaf)
    for (recipe, levels), group in alike.items():
        yield from _draw_alike(recipe, levels, group, devices, run)


def _draw_alike(
    recipe: Recipe, levels: int, group: Sequence[Leaf], devices: Devices, run: Run
) -> Iterator[tuple[int, jax.Array]]:
    shape, by_number = devices.shape, {leaf.number: leaf for leaf in group}
    run = functools.partial(run, sharding=devices.sharding)
    waiting: collections.deque[jax.Array] = collections.deque()
    buffers: dict[int, jax.Array] = {}
    for call in schedule([(leaf.number, leaf.strips) for leaf in group], shape):
        with devices.active():
            tables = tables_of(recipe, call, levels, shape, devices.count)
            rows = run(_rows, tables, recipe, devices)
            for first, piece in call.pieces:
                buffer, leaf = buffers.pop(piece.leaf, None), by_number[piece.leaf]
                buffers[piece.leaf] = _put(rows, first, piece, leaf, buffer, devices, run)
        for _, piece in call.pieces:
            if piece.last:
                yield piece.leaf, buffers.pop(piece.leaf)
        waiting.append(rows)
        if len(waiting) > _WAITING:
            jax.block_until_ready(waiting.popleft())


@functools.partial(jax.jit, static_argnames=("recipe", "devices"))
def _rows(tables: Tables, recipe: Recipe, devices: Devices) -> jax.Array:
    """Draws rows: ``[devices, rows, width]``."""

    def draw(tables: Tables) -> jax.Array:
        here = devices.index()
        keys, numbers = tables.keys[here], [table[here][:, None] for table in tables.numbers]
        index = _places(tables, here, devices.shape.width)

        def bits(number: int, width: int) -> jax.Array:
            key = keys[:, number, :1], keys[:, number, 1:]
            return threefry.draw_bits(key, index, width)

        return evaluate(recipe, bits, numbers)[None]

    return devices.spread(draw, [False])(tables)


def _places(tables: Tables, device: Any, width: int) -> tuple[Any, Any]:
    """Returns the places of a row's elements in its array, as two words; see ``blocks``."""
    begins, rests = tables.begins[device], tables.rests[device]
    turn = rests[:, None] + jnp.arange(width, dtype=jnp.uint32)[None]
    place = jnp.broadcast_to(begins[:, :1], turn.shape), jnp.broadcast_to(begins[:, 1:], turn.shape)
    levels = tables.sizes.shape[1]
    for level in range(levels):
        size = tables.sizes[:, level, None]
        place = _sum(place, _product(turn % size, tables.strides[:, level]))
        turn = turn // size
    # Without other digits the stride is 1.
    rest = _product(turn, tables.strides[:, levels]) if levels else (jnp.zeros_like(turn), turn)
    return _sum(place, rest)


def _sum(a: tuple[Any, Any], b: tuple[Any, Any]) -> tuple[Any, Any]:
    """Adds numbers of two words."""
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
    rows: jax.Array,
    first: int,
    piece: Piece,
    leaf: Leaf,
    buffer: jax.Array | None,
    devices: Devices,
    run: Callable[..., jax.Array],
) -> jax.Array:
    """Puts a piece into its leaf, which is new where it is the only one."""
    cut = Cut(len(piece.strips), piece.rows_each(devices.shape.width), piece.length)
    shape = leaf.shape if piece.last else None
    if buffer is None and piece.last:
        return run(_take, rows, np.int32(first), cut, leaf.shape, devices)
    size = len(leaf.strips) * leaf.strips[0].blocks[0].size
    if buffer is None:
        # Where there is no room for it, it is said now, and not when all has been drawn.
        buffer = jax.block_until_ready(run(_begin, devices, size, leaf.dtype))
    wide = size >= 2**31
    offset = np.int64(piece.offset) if wide else np.int32(piece.offset)
    with jax.enable_x64(True) if wide else contextlib.nullcontext():
        return run(_insert, buffer, rows, np.int32(first), offset, cut, shape, devices)


class Cut(NamedTuple):
    """What is taken out of rows: of so many strips, which are so many rows each, the beginning."""

    strips: int
    each: int
    length: int

    def __call__(self, rows: jax.Array, first: Any) -> jax.Array:
        """Takes it out, from a first row on, as a flat array."""
        mine = jax.lax.dynamic_slice_in_dim(rows, first, self.strips * self.each)
        return mine.reshape(self.strips, -1)[:, : self.length].reshape(-1)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _take(rows: Any, first: Any, cut: Cut, shape: tuple[int, ...], devices: Devices) -> jax.Array:
    """Makes a leaf of one piece."""

    def take(rows: Any, first: Any) -> jax.Array:
        return cut(rows[0], first).reshape(shape)

    return devices.spread(take, [True, False])(rows, first)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _begin(devices: Devices, size: int, dtype: np.dtype) -> jax.Array:
    """Makes room for a leaf, as ``[devices, size]``."""
    return devices.spread(lambda: jnp.zeros((1, size), dtype), [])()


@functools.partial(jax.jit, static_argnums=(4, 5, 6), donate_argnums=0)
def _insert(
    buffer: Any,
    rows: Any,
    first: Any,
    offset: Any,
    cut: Cut,
    shape: tuple[int, ...] | None,
    devices: Devices,
) -> jax.Array:
    """Puts a piece into a leaf; the last one gives it its shape."""

    def insert(buffer: Any, rows: Any, first: Any, offset: Any) -> jax.Array:
        filled = jax.lax.dynamic_update_slice(buffer[0], cut(rows[0], first), (offset,))
        return filled[None] if shape is None else filled.reshape(shape)

    return devices.spread(insert, [True, True, False, False])(buffer, rows, first, offset)
