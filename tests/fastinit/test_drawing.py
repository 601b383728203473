"""What the programs draw: places of 64 bits, parts, segments, and nothing between devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jinit import fast_init
from jinit.fastinit.drawing import devices
from jinit.fastinit.drawing.blocks import Block, block_of
from jinit.fastinit.drawing.draw import _places
from jinit.fastinit.drawing.schedule import Call, Piece, Shape, Strip
from jinit.fastinit.drawing.tables import tables_of
from jinit.fastinit.reading.recipe import Ingredients, Recipe
from tests.fastinit.reference import assert_same, check, ways
from tests.fastinit.test_blocks import place_in

BITS = Recipe((("bits", 32),))
WIDTH = 16
HUGE = {
    "rows": block_of((2**20, 2**24), (2**18, 0), (2**18, 2**24)),
    "columns": block_of((2**20, 2**24), (0, 2**23 + 1), (2**20, 2**23 - 5)),
    "three axes": block_of((37, 2**15, 2**18), (3, 5, 7), (29, 2**15 - 9, 2**17 + 3)),
    "inner": Block(2**62, ((2**16 + 1, 1), (2**15 + 3, 2**20), (2**10, 2**40))),
    "small": block_of((5, 7), (1, 2), (3, 4)),
}


@pytest.mark.parametrize("name", HUGE)
def test_places(name):
    block = HUGE[name]
    strip = Strip((Ingredients(((1, 2),), ()),), (block,))
    begins = {0, max(block.size // 2 - 3, 0), max(block.size - 3 * WIDTH, 0)}
    for begin in begins:
        length = min(3 * WIDTH, block.size - begin)
        call = Call()
        call.add(Piece(0, (strip,), begin, length, 0, True), WIDTH)
        tables = tables_of(BITS, call, len(block.levels) - 1, Shape(4, WIDTH), 1)
        high, low = _places(jax.tree.map(jnp.asarray, tables), 0, WIDTH)
        found = (np.asarray(high, np.uint64) << np.uint64(32)) | np.asarray(low, np.uint64)
        expected = [place_in(block, begin + step) for step in range(length)]
        assert found.reshape(-1)[:length].tolist() == expected


@pytest.fixture
def small_calls(monkeypatch):
    """A call draws four rows of eight numbers."""
    monkeypatch.setattr(devices, "_SHAPES", {"cpu": Shape(4, 8)})


def several(key):
    """Leaves that are smaller, as large and larger than a call."""
    keys = random.split(key, 8)
    shapes = [(1,), (8,), (9,), (32,), (33,), (5, 13), (4, 8), (200,)]
    return [0.5 * random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True)]


def segments(key):
    """Parts of many keys: more than a call has rows, smaller and larger than a row and a call."""
    return {
        size: jax.vmap(lambda key: random.uniform(key, (size,)))(random.split(key, 11))  # noqa: B023
        for size in (1, 7, 8, 20, 32, 70)
    }


@pytest.mark.cases
@pytest.mark.cases
@pytest.mark.parametrize("init_fn", [several, segments])
def test_parts_of_calls(init_fn, small_calls):
    assert ways(check(init_fn, random.key(3))).keys() == {"drawn"}


@pytest.mark.cases
@pytest.mark.parametrize("spec", [P(), P("a"), P("b"), P(("b", "a")), P(None, "a"), P("b", "a")])
def test_parts_of_calls_on_devices(spec, small_calls):
    """Segments of 12 by 8 in six rows, cut across and along."""
    mesh = Mesh(np.array(jax.devices()[:6]).reshape(2, 3), ("a", "b"))

    def init_fn(key):
        return jax.vmap(lambda key: random.normal(key, (12, 8)))(random.split(key, 6))

    init = check(init_fn, random.key(3), out_shardings=NamedSharding(mesh, spec))
    assert ways(init) == {"drawn": 1}


def test_a_leaf_larger_than_a_call():
    init = check(lambda key: random.uniform(key, (2**20 + 77,)), random.key(0))
    assert ways(init) == {"drawn": 1}


COLLECTIVE = re.compile(r" (all-\w+|collective-\w+|reduce-scatter|send|recv)[\w-]*\(")


@pytest.mark.cases
@pytest.mark.cases
@pytest.mark.parametrize("spec", [P(), P("a"), P(None, "b"), P("a", "b"), P(("a", "b"))])
def test_no_device_waits_for_another(spec):
    """The programs, as they were compiled, exchange nothing."""
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))

    def init_fn(key):
        one, other = random.split(key)
        return {
            "large": random.normal(one, (2048, 2**11)),
            "small": random.normal(other, (8, 8)),
            "ones": jnp.ones((512, 512)),
        }

    init = fast_init(init_fn, out_shardings=NamedSharding(mesh, spec))
    programs = init.lower(random.key(0))
    assert len(programs) >= 4  # rows, a whole leaf, the room for a large one and what goes in
    for program in programs:
        assert not COLLECTIVE.findall(program.compile().as_text())


def test_the_search_for_collectives_finds_them():
    mesh = Mesh(np.array(jax.devices()), ("a",))
    where = NamedSharding(mesh, P("a"))
    text = jax.jit(jnp.sum, in_shardings=where).lower(np.ones(8, "f")).compile().as_text()
    assert COLLECTIVE.findall(text)


def test_a_mesh_in_another_order_draws_the_same():
    """Parts lie where the sharding says, not in the order of the devices' numbers."""
    mixed = np.array(jax.devices())[[5, 2, 7, 0, 1, 6, 3, 4]].reshape(2, 4)
    sharding = NamedSharding(Mesh(mixed, ("a", "b")), P("b", "a"))

    def init_fn(key):
        return random.normal(key, (8, 6))

    found = fast_init(init_fn, out_shardings=sharding)(random.key(1))
    assert found.sharding == sharding
    assert_same(found, jax.jit(init_fn)(random.key(1)))
