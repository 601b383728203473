"""How large what an initialization returns is, known before anything is allocated."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
from jax.sharding import Sharding

from jinit._arithmetic import bytes_of, is_float_dtype
from jinit._plain import PlainData
from jinit._tables import format_bytes, format_count, format_table
from jinit._trees import collection_of
from jinit.fastinit.program import InitProgram, LeafSpec, Slot
from jinit.modules.roles import param_mask

__all__ = ["Count", "ModuleCount", "count_leaves", "on_each"]

_FEW = 3  # equal modules, from which on one row of the table stands for them; .modules has all


@dataclass(frozen=True)
class ModuleCount:
    """What a top-level module holds.

    Attributes:
        name: Its name.
        parameters: How many numbers its parameters are.
        state: How many numbers its other arrays are: statistics, caches, counters.
        bytes: The bytes of all of them.
    """

    name: str
    parameters: int
    state: int
    bytes: int


@dataclass(frozen=True)
class Count(PlainData):
    """How large what an initialization returns is.

    Attributes:
        modules: By top-level module.
        parameters: How many numbers the parameters are.
        state: How many numbers all other arrays are.
        bytes: The bytes of all arrays.
        bytes_by_dtype: The same by dtype.
        bytes_by_device: What lies on every device under the shardings, by the device's name; empty
            where there are none, and all lies on the default one.
    """

    modules: tuple[ModuleCount, ...]
    parameters: int
    state: int
    bytes: int
    bytes_by_dtype: dict[str, int]
    bytes_by_device: dict[str, int]

    def __str__(self) -> str:
        columns = ["module", ">parameters", ">state", ">bytes"]
        rows = [_row(m.name, m.parameters, m.state, m.bytes) for m in _runs(self.modules)]
        total = _row("total", self.parameters, self.state, self.bytes)
        lines = [format_table(columns, [*rows, total])]
        dtypes = ", ".join(f"{name} {format_bytes(n)}" for name, n in self.bytes_by_dtype.items())
        lines.append(f"by dtype: {dtypes}")
        if self.bytes_by_device:
            lines.append(f"by device: {on_each(self.bytes_by_device)}")
        return "\n".join(lines)


def _runs(modules: Sequence[ModuleCount]) -> Iterator[ModuleCount]:
    """Takes together modules that are equally large and differ in a number of their names.

    A model of 80 blocks is a line of the table, and not 80 in alphabetical order.
    """
    runs: dict[tuple, list[ModuleCount]] = {}
    for m in modules:
        stem = re.sub(r"\d+", "#", m.name)
        runs.setdefault((stem, m.parameters, m.state, m.bytes), []).append(m)
    for run in runs.values():
        run.sort(key=lambda m: [*map(int, re.findall(r"\d+", m.name))])
        if len(run) < _FEW:
            yield from run
            continue
        name = f"{run[0].name} to {run[-1].name}: {len(run)} alike"
        sums = (sum(m.parameters for m in run), sum(m.state for m in run))
        yield ModuleCount(name, *sums, sum(m.bytes for m in run))


def _row(name: str, parameters: int, state: int, size: int) -> list[str]:
    return [name, format_count(parameters), format_count(state), format_bytes(size)]


def on_each(by_device: dict[str, int]) -> str:
    """Says how much lies on a device."""
    sizes = sorted({*by_device.values()})
    if len(sizes) == 1:
        return f"{format_bytes(sizes[0])} on each of {len(by_device)}"
    return f"{format_bytes(sizes[0])} to {format_bytes(sizes[-1])} on each of {len(by_device)}"


def count_leaves(program: InitProgram, shardings: Sequence[Sharding | None]) -> Count:
    """Counts what a traced initialization returns."""
    trained, returned = _trained(program), {*jax.tree.leaves(program.abstract)}
    modules: dict[str, list[int]] = {}
    by_dtype: Counter[str] = Counter()
    by_device: Counter[str] = Counter()
    for number, (leaf, sharding) in enumerate(zip(program.leaves, shardings, strict=True)):
        if number not in returned:  # it belongs to an object that was given
            continue
        size, numbers = bytes_of(leaf.shape, leaf.dtype), math.prod(leaf.shape)
        sums = modules.setdefault(_module(leaf, program), [0, 0, 0])
        sums[number not in trained] += numbers
        sums[2] += size
        by_dtype[str(leaf.dtype)] += size
        by_device.update(_on_devices(leaf, sharding))
    rows = tuple(ModuleCount(name, *sums) for name, sums in modules.items())
    parameters, state = sum(row.parameters for row in rows), sum(row.state for row in rows)
    size = sum(row.bytes for row in rows)
    return Count(rows, parameters, state, size, dict(by_dtype), dict(by_device))


def _module(leaf: LeafSpec, program: InitProgram) -> str:
    """Returns the top-level module that a leaf belongs to, below Flax's collection."""
    components = leaf.path.split("/")
    below = components[1:] if collection_of(program.abstract) else components
    return below[0] if below else leaf.path


def _trained(program: InitProgram) -> set[int]:
    """Returns the numbers of the leaves that are parameters."""
    slots = jax.tree.leaves(program.abstract)
    pairs = zip(slots, param_mask(program.abstract), strict=True)
    return {
        slot
        for slot, is_parameter in pairs
        if is_parameter and isinstance(slot, Slot) and is_float_dtype(program.leaves[slot].dtype)
    }


def _on_devices(leaf: LeafSpec, sharding: Sharding | None) -> dict[str, int]:
    if sharding is None:
        return {}
    part = bytes_of(sharding.shard_shape(leaf.shape), leaf.dtype)
    devices = sorted(sharding.device_set, key=lambda device: device.id)
    return {str(device): part for device in devices}
