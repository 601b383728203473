"""Places of a shard in its array, against the indexing of NumPy."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jinit.fastinit.drawing.blocks import block_of


@st.composite
def shards(draw):
    """The shape of an array, and where a part of it begins and how large it is."""
    shape = draw(st.lists(st.integers(1, 5), max_size=5))
    sizes = [draw(st.integers(1, whole)) for whole in shape]
    starts = [draw(st.integers(0, n - size)) for n, size in zip(shape, sizes, strict=True)]
    return shape, starts, sizes


def place_in(block, place):
    """Place of the array, digit by digit, as the module's docstring has it."""
    total = block.base
    for size, stride in block.levels:
        place, digit = divmod(place, size)
        total += digit * stride
    return total


@settings(max_examples=100, deadline=None)
@given(shards())
def test_places(shard):
    shape, starts, sizes = shard
    block = block_of(shape, starts, sizes)
    corner = tuple(slice(start, start + n) for start, n in zip(starts, sizes, strict=True))
    expected = np.arange(math.prod(shape)).reshape(shape)[corner].reshape(-1)
    assert block.size == len(expected)
    assert [place_in(block, place) for place in range(block.size)] == expected.tolist()


@settings(max_examples=100, deadline=None)
@given(shards())
def test_a_start_and_the_rest_make_the_place(shard):
    block = block_of(*shard)
    turns, rests = block.start(np.arange(block.size, dtype=np.uint64))
    for place, (turn, rest) in enumerate(zip(turns.tolist(), rests.tolist(), strict=True)):
        for size, stride in block.levels[:-1]:
            rest, digit = divmod(rest, size)
            turn += digit * stride
        assert turn == place_in(block, place)
        assert rest == 0


@pytest.mark.parametrize(
    ("shape", "starts", "sizes", "levels"),
    [
        ((8, 6), (4, 0), (4, 6), ((24, 1),)),
        ((8, 6), (0, 3), (8, 3), ((3, 1), (8, 6))),
        ((8, 6), (4, 3), (2, 3), ((3, 1), (2, 6))),
        ((4, 8, 6), (1, 0, 0), (2, 8, 6), ((96, 1),)),
        ((4, 8, 6), (0, 2, 0), (4, 2, 6), ((12, 1), (4, 48))),
        ((4, 8, 6), (0, 2, 3), (4, 2, 3), ((3, 1), (2, 6), (4, 48))),
        ((), (), (), ((1, 1),)),
    ],
)
def test_axes_that_lie_together_are_one_digit(shape, starts, sizes, levels):
    assert block_of(shape, starts, sizes).levels == levels


def test_places_beyond_32_bits():
    block = block_of((2**20, 2**20), (2**19, 2**10), (2**19, 2**10))
    assert block.base == 2**39 + 2**10
    assert block.size == 2**29
    turns, rests = block.start(np.array([block.size - 1], np.uint64))
    assert turns.tolist() == [2**39 + 2**10 + (2**19 - 1) * 2**20]
    assert rests.tolist() == [2**10 - 1]
