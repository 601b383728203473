"""Threefry-2x32, JAX's default generator: for one key with integers, and for arrays of numbers.

With ``jax_threefry_partitionable`` (the default) number i that a key draws is a block of the
cipher: the key encrypts i. So any part of an array can be drawn by itself, in any shape.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["draw_bits", "fold_in", "split"]

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_MASK = 0xFFFFFFFF

Words = tuple[Any, Any]


def _encrypt(key: Words, counter: Words, wrap: Callable[[Any], Any]) -> Words:
    """Encrypts a block of two words of 32 bits, in 20 rounds; ``wrap`` cuts a number to 32 bits.

    It is written out, not rolled into a loop: XLA then makes one pass over memory of it all.
    """
    first, second = key
    keys = first, second, first ^ second ^ _PARITY
    x, y = wrap(counter[0] + first), wrap(counter[1] + second)
    for group in range(5):
        for turn in _ROTATIONS[group % 2]:
            x = wrap(x + y)
            y = wrap(y << turn) | (y >> (32 - turn))
            y = x ^ y
        x = wrap(x + keys[(group + 1) % 3])
        y = wrap(y + keys[(group + 2) % 3] + (group + 1))
    return x, y


def fold_in(key: tuple[int, int], data: int) -> tuple[int, int]:
    """Returns ``jax.random.fold_in(key, data)`` of a key's two words.

    Example:
        >>> key = jax.random.fold_in(jax.random.key(0), 1)
        >>> fold_in((0, 0), 1) == tuple(jax.random.key_data(key).tolist())
        True
    """
    return _encrypt(key, (0, data & _MASK), lambda word: word & _MASK)


def split(key: tuple[int, int], number: int) -> list[tuple[int, int]]:
    """Returns ``jax.random.split(key, number)`` of a key's two words."""
    return [_encrypt(key, (n >> 32, n & _MASK), lambda word: word & _MASK) for n in range(number)]


def draw_bits(key: Words, index: Words, width: int) -> jax.Array:
    """Draws the bits that ``jax.random.bits`` draws at some places of an array.

    Args:
        key: The two words of the key, ``uint32``.
        index: The places in the flat array: their high and low words, ``uint32``.
        width: How many bits, 8 to 64.

    Returns:
        Unsigned integers of that width.
    """
    high, low = _encrypt(key, index, lambda word: word)
    if width == 64:
        return (high.astype(jnp.uint64) << 32) | low.astype(jnp.uint64)
    return (high ^ low).astype(f"uint{width}")
