"""Makes the leaves of an initialization, each in the way that its value allows.

==========  ==============================================================================
copied      known before anything is drawn, or given: put where it is to lie
filled      one number everywhere
drawn       number by number, by a program for each of a few recipes
computed    anything else, by a program for each kind; what goes into it is drawn first
together    the same, of leaves that depend on one another
at once     all leaves, by the whole program, where the generator leaves no other way
==========  ==============================================================================
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from jinit.fastinit.devices import Devices
from jinit.fastinit.drawing import Leaf, draw_leaves
from jinit.fastinit.ordinary import Ordinary, array_of, ordinary_of, together
from jinit.fastinit.placing import devices_of, joined, local_shape, place, replicated, strips_of
from jinit.fastinit.program import InitProgram
from jinit.fastinit.reading import outside, read_program
from jinit.fastinit.recipe import recipes_of
from jinit.fastinit.values import Drawn, Given, Keys, Known, Number, Value
from jinit.tracing.rolling.fingerprint import Fingerprints

__all__ = ["Way", "Ways", "make_leaves", "ways_of"]

Way: TypeAlias = Literal["copied", "filled", "drawn", "computed", "together", "at once"]

_FILLED_ON_HOST = 2**16  # elements; a longer array is filled where it lies


@dataclass(frozen=True)
class Ways:
    """How each leaf is made.

    Attributes:
        values: What the leaves are.
        shardings: Where they lie.
        copied: Leaves that are known or given.
        filled: Leaves of one number, and the number.
        drawn: Leaves that are drawn.
        ordinary: The programs of the others.
    """

    values: Sequence[Value]
    shardings: Sequence[Sharding | None]
    copied: list[int] = field(default_factory=list)
    filled: dict[int, np.generic] = field(default_factory=dict)
    drawn: list[int] = field(default_factory=list)
    ordinary: list[Ordinary] = field(default_factory=list)


def ways_of(
    program: InitProgram, arrays: Sequence[Any], shardings: Sequence[Sharding | None]
) -> Ways:
    """Finds out how each leaf is made, for the arrays that the program is given."""
    used = [outside(array) for array, uses in zip(arrays, program.used, strict=True) if uses]
    values = read_program(program.jaxpr, [outside(const) for const in program.consts], used)
    ways = Ways(values, shardings)
    rest: dict[int, Value] = {}
    for number, (value, sharding) in enumerate(zip(values, shardings, strict=True)):
        if isinstance(value, Known | Keys | Given):
            ways.copied.append(number)
        elif isinstance(value, Drawn) and not value.size:
            ways.filled[number] = np.zeros((), value.dtype)[()]
        elif isinstance(value, Drawn) and _is_fill(value):
            ways.filled[number] = value.segments[0].value
        elif isinstance(value, Drawn) and value.random and _is_drawable(value, sharding):
            ways.drawn.append(number)
        else:
            rest[number] = value
    prints = program.cache.setdefault("fingerprints", Fingerprints())
    ways.ordinary.extend(ordinary_of(group, values, prints) for group in together(rest))
    return ways


def _is_fill(value: Drawn) -> bool:
    return len(value.segments) == 1 and isinstance(value.segments[0], Number)


def _is_drawable(value: Drawn, sharding: Sharding | None) -> bool:
    """Returns whether a leaf's parts can be drawn by themselves: its segments lie along axes."""
    if sharding is None:
        return True
    return bool(value.shape) and _leading_matches(value)


def _leading_matches(value: Drawn) -> bool:
    return any(
        math.prod(value.shape[:count]) == len(value.segments)
        for count in range(len(value.shape) + 1)
    )


def make_leaves(program: InitProgram, ways: Ways) -> Iterator[tuple[int, jax.Array]]:
    """Makes the leaves, and yields each with its number when it is under way."""
    made: dict[int, jax.Array] = {}

    def done(number: int, array: jax.Array) -> tuple[int, jax.Array]:
        made[number] = array
        return number, array

    for number in ways.copied:
        yield done(number, _copy(ways.values[number], ways.shardings[number]))
    for number, value in ways.filled.items():
        spec = program.leaves[number]
        yield done(number, _fill(value, spec.shape, ways.shardings[number]))
    wanted = {n: (ways.values[n], ways.shardings[n]) for n in ways.drawn}
    for number, array in _draw(wanted):
        yield done(number, array)
    by_value = {id(ways.values[number]): made[number] for number in ways.drawn}
    for ordinary in ways.ordinary:
        arrays = _run(program, ordinary, ways.shardings, by_value)
        yield from map(done, ordinary.leaves, arrays)


def _copy(value: Value, sharding: Sharding | None) -> jax.Array:
    if isinstance(value, Keys):
        return jax.random.wrap_key_data(place(value.words, sharding), impl="threefry2x32")
    if isinstance(value, Known):
        return place(value.array, sharding)
    array = value.array
    return jnp.asarray(array) if sharding is None else jax.device_put(array, sharding)


def _fill(value: np.generic, shape: tuple[int, ...], sharding: Sharding | None) -> jax.Array:
    if math.prod(shape) <= _FILLED_ON_HOST:
        return place(np.full(shape, value, value.dtype), sharding)
    return _filled(shape, value.dtype, sharding)(value)


@functools.lru_cache(maxsize=1024)
def _filled(shape: tuple[int, ...], dtype: np.dtype, sharding: Sharding | None) -> Any:
    return jax.jit(lambda value: jnp.full(shape, value, dtype), out_shardings=sharding)


def _draw(wanted: Mapping[int, tuple[Drawn, Sharding | None]]) -> Iterator[tuple[int, jax.Array]]:
    """Draws arrays, those on the same devices one after another."""
    groups: dict[Devices, list[Leaf]] = {}
    numbers = list(wanted)
    nodes = [(n, node) for n in numbers for node in wanted[n][0].segments]
    parts: dict[int, list[Any]] = {number: [] for number in numbers}
    for (number, _), found in zip(nodes, recipes_of([node for _, node in nodes]), strict=True):
        parts[number].append(found)
    for number in numbers:
        value, sharding = wanted[number]
        strips = strips_of(value.shape, [own for _, own in parts[number]], sharding)
        shape = local_shape(value.shape, sharding)
        leaf = Leaf(number, parts[number][0][0], strips, shape, value.dtype)
        groups.setdefault(devices_of(sharding), []).append(leaf)
    for devices, leaves in groups.items():
        for number, array in draw_leaves(leaves, devices):
            value, sharding = wanted[number]
            yield number, joined(array, value.shape, sharding)


def _run(
    program: InitProgram,
    ordinary: Ordinary,
    shardings: Sequence[Sharding | None],
    by_value: Mapping[int, jax.Array],
) -> list[jax.Array]:
    """Runs the program of some leaves on what goes into it."""
    asked = tuple(shardings[number] for number in ordinary.leaves)
    devices = devices_of(next((sharding for sharding in asked if sharding is not None), None))
    drawn = {
        place: (value, replicated(devices))
        for place, value in enumerate(ordinary.inputs)
        if isinstance(value, Drawn) and value.random and id(value) not in by_value
    }
    arrays = dict(_draw(drawn))
    inputs = [
        arrays[place] if place in arrays else by_value.get(id(value), array_of(value))
        for place, value in enumerate(ordinary.inputs)
    ]
    key = ordinary.key, asked
    if key not in program.cache:
        free = devices.mesh is None
        program.cache[key] = jax.jit(ordinary.run, **({} if free else {"out_shardings": [*asked]}))
    with devices.active():
        return program.cache[key](inputs)
