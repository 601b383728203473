"""Every element of every leaf is drawn, at its own place and in the calls' shape."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from jinit.fastinit.drawing.blocks import Block
from jinit.fastinit.drawing.schedule import Shape, Strip, schedule
from jinit.fastinit.reading.recipe import Ingredients

SHAPES = st.builds(Shape, st.integers(1, 6), st.integers(1, 5))
LEAVES = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 60)), min_size=1, max_size=6)


def strips(count, size):
    return [
        Strip((Ingredients(((0, number),), ()),), (Block(0, ((size, 1),)),))
        for number in range(count)
    ]


@settings(max_examples=100, deadline=None)
@given(LEAVES, SHAPES)
def test_every_element_is_drawn_at_its_place(sizes, shape):
    leaves = [(number, strips(*leaf)) for number, leaf in enumerate(sizes)]
    drawn = {number: {} for number, _ in leaves}
    done = []
    for call in schedule(leaves, shape):
        assert call.rows <= shape.rows
        row = 0
        for first, piece in call.pieces:
            assert first == row
            row += piece.rows(shape.width)
            assert piece.leaf not in done
            for place, strip in enumerate(piece.strips):
                ((_, number),) = strip.ingredients[0].keys
                for step in range(piece.length):
                    target = piece.offset + place * piece.length + step
                    drawn[piece.leaf].setdefault(target, set()).add((number, piece.begin + step))
            done += [piece.leaf] * piece.last
        assert row == call.rows
    assert done == [number for number, _ in leaves]
    for number, (count, size) in enumerate(sizes):
        places = itertools.product(range(count), range(size))
        assert drawn[number] == {n: {place} for n, place in enumerate(places)}


@settings(max_examples=100, deadline=None)
@given(LEAVES, SHAPES)
def test_no_call_is_nearly_empty(sizes, shape):
    """Two calls after one another have more rows than fit into one."""
    leaves = [(number, strips(*leaf)) for number, leaf in enumerate(sizes)]
    calls = list(schedule(leaves, shape))
    for one, other in itertools.pairwise(calls):
        first = other.pieces[0][1]
        assert one.rows + first.rows(shape.width) > shape.rows


def test_a_leaf_of_terabytes_takes_no_memory():
    """Its pieces are made one after another."""
    shape = Shape(256, 4096)
    calls = schedule([(0, strips(1, 2**45))], shape)
    pieces = [piece for call in itertools.islice(calls, 3) for _, piece in call.pieces]
    assert [piece.begin for piece in pieces] == [0, 2**20, 2**21]
    assert {piece.length for piece in pieces} == {2**20}
