"""The generator, written once for Python's integers and for arrays, is JAX's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jinit.fastinit.threefry import draw_bits, fold_in, split

WORD = st.integers(0, 2**32 - 1)
KEY = st.tuples(WORD, WORD)


def as_key(words):
    return jax.random.wrap_key_data(np.array(words, np.uint32), impl="threefry2x32")


def words_of(keys):
    return [tuple(row) for row in np.asarray(jax.random.key_data(keys)).reshape(-1, 2).tolist()]


@settings(max_examples=30, deadline=None)
@given(KEY, WORD)
def test_fold_in(key, data):
    expected = jax.random.fold_in(as_key(key), np.uint32(data))
    assert [fold_in(key, data)] == words_of(expected)


@pytest.mark.parametrize("data", [-1, -(2**31), 2**32 - 1])
def test_fold_in_at_the_ends(data):
    wrapped = np.uint32(data & 0xFFFFFFFF)
    assert [fold_in((3, 4), data)] == words_of(jax.random.fold_in(as_key((3, 4)), wrapped))


@settings(max_examples=10, deadline=None)
@given(KEY, st.sampled_from([0, 1, 2, 7]))
def test_split(key, number):
    assert split(key, number) == words_of(jax.random.split(as_key(key), number))


@pytest.mark.parametrize("width", [8, 16, 32, 64])
@pytest.mark.parametrize("shape", [(1,), (7,), (5, 3, 4)])
def test_bits(width, shape):
    with jax.enable_x64(width == 64):
        words = (0xDEADBEEF, 17)
        expected = jax.random.bits(as_key(words), shape, f"uint{width}")
        low = jnp.arange(np.prod(shape), dtype=jnp.uint32)
        key = tuple(jnp.asarray(word, jnp.uint32) for word in words)
        found = draw_bits(key, (jnp.zeros_like(low), low), width)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, np.asarray(expected).reshape(-1))


def test_bits_at_places_beyond_32_bits():
    """A block of the cipher is what the key makes of a place's two words, at any place."""
    places = [2**32 - 1, 2**32, 2**32 + 5, 2**40 + 3, 2**63]
    words = (12345, 678)
    high = jnp.array([place >> 32 for place in places], jnp.uint32)
    low = jnp.array([place & 0xFFFFFFFF for place in places], jnp.uint32)
    found = draw_bits(tuple(jnp.uint32(word) for word in words), (high, low), 32)
    from jax.extend.random import threefry_2x32

    pair = jnp.array(words, jnp.uint32)
    expected = [
        np.bitwise_xor(*np.asarray(threefry_2x32(pair, jnp.stack(words))).tolist())
        for words in zip(high, low, strict=True)
    ]
    assert found.tolist() == expected
