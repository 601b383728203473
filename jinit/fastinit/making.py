"""Makes the leaves of an initialization, each in its way; see ``ways``."""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from jinit.fastinit.drawing.devices import Devices
from jinit.fastinit.drawing.draw import Leaf, draw_leaves
from jinit.fastinit.drawing.placing import (
    devices_of,
    joined,
    local_shape,
    place,
    replicated,
    strips_of,
)
from jinit.fastinit.ordinary import Ordinary, array_of
from jinit.fastinit.program import InitProgram
from jinit.fastinit.reading.values import Drawn, Given, Keys, Known
from jinit.fastinit.running import Lowering, Run, run_now
from jinit.fastinit.ways import Ways

__all__ = ["lower_leaves", "make_leaves"]

_FILLED_ON_HOST = 2**16  # elements; a longer array is filled where it lies


def make_leaves(
    program: InitProgram, ways: Ways, shardings: Sequence[Sharding | None]
) -> Iterator[tuple[int, jax.Array]]:
    """Makes the leaves, and yields each with its number when it is under way."""
    for number, value in ways.copied.items():
        yield number, _copy(value, shardings[number])
    for number, value in ways.filled.items():
        shape = program.leaves[number].shape
        if math.prod(shape) <= _FILLED_ON_HOST:
            yield number, place(np.full(shape, value, value.dtype), shardings[number])
    yield from _compiled(program, ways, shardings, run_now)


def lower_leaves(
    program: InitProgram, ways: Ways, shardings: Sequence[Sharding | None]
) -> list[Any]:
    """Lowers the programs that make leaves, each once, for devices that need not be there."""
    lowering = Lowering()
    for _ in _compiled(program, ways, shardings, lowering):
        pass
    return lowering.programs


def _compiled(
    program: InitProgram, ways: Ways, shardings: Sequence[Sharding | None], run: Run
) -> Iterator[tuple[int, jax.Array]]:
    """Makes what compiled programs make."""
    for number, value in ways.filled.items():
        shape, sharding = program.leaves[number].shape, shardings[number]
        if math.prod(shape) > _FILLED_ON_HOST:
            with devices_of(sharding).active():
                fill = _filled(shape, value.dtype, sharding)
                yield number, run(fill, value, sharding=sharding)
    drawn: dict[int, jax.Array] = {}
    wanted = {number: (value, shardings[number]) for number, value in ways.drawn.items()}
    for number, array in _draw(wanted, ways, run):
        drawn[id(ways.drawn[number])] = array
        yield number, array
    for ordinary in ways.ordinary:
        made = _run(program, ordinary, ways, shardings, drawn, run)
        yield from zip(ordinary.leaves, made, strict=True)


def _copy(value: Known | Keys | Given, sharding: Sharding | None) -> jax.Array:
    if isinstance(value, Keys):
        return jax.random.wrap_key_data(place(value.words, sharding), impl="threefry2x32")
    if isinstance(value, Known):
        return place(value.array, sharding)
    array = value.array
    return jnp.asarray(array) if sharding is None else jax.device_put(array, sharding)


@functools.lru_cache(maxsize=1024)
def _filled(shape: tuple[int, ...], dtype: np.dtype, sharding: Sharding | None) -> Any:
    return jax.jit(lambda value: jnp.full(shape, value, dtype), out_shardings=sharding)


def _draw(
    wanted: Mapping[int, tuple[Drawn, Sharding | None]], ways: Ways, run: Run
) -> Iterator[tuple[int, jax.Array]]:
    """Draws arrays, those on the same devices one after another."""
    groups: dict[Devices, list[Leaf]] = {}
    for number, (value, sharding) in wanted.items():
        recipe, parts = ways.recipes[id(value)]
        strips = strips_of(value.shape, parts, sharding)
        shape = local_shape(value.shape, sharding)
        if not shape and sharding is not None:  # the devices' parts lie along an axis
            shape = (1,)
        leaf = Leaf(number, recipe, strips, shape, value.dtype)
        groups.setdefault(devices_of(sharding), []).append(leaf)
    for devices, leaves in groups.items():
        for number, array in draw_leaves(leaves, devices, run):
            value, sharding = wanted[number]
            yield number, joined(array, value.shape, sharding)


def _run(
    program: InitProgram,
    ordinary: Ordinary,
    ways: Ways,
    shardings: Sequence[Sharding | None],
    made: Mapping[int, jax.Array],
    run: Run,
) -> list[jax.Array]:
    """Runs the program of some leaves on what goes into it."""
    asked = tuple(shardings[number] for number in ordinary.leaves)
    devices = devices_of(next((sharding for sharding in asked if sharding is not None), None))
    values = {id(value): value for value in ordinary.drawn if id(value) not in made}
    wanted = {place: (value, replicated(devices)) for place, value in values.items()}
    drawn = dict(_draw(wanted, ways, run))
    ready = {**made, **drawn}
    inputs = [ready[id(v)] if id(v) in ready else array_of(v) for v in ordinary.inputs]
    key = ordinary.key, asked
    if key not in program.compiled:
        where = None if devices.mesh is None else [*asked]
        program.compiled[key] = jax.jit(ordinary.run, out_shardings=where)
    with devices.active():
        return run(program.compiled[key], inputs, sharding=devices.sharding)
