"""What an initialization did, leaf by leaf, as a table and as plain data."""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from jax.sharding import Sharding

from jinit._arithmetic import bytes_of
from jinit._plain import PlainData
from jinit._tables import format_bytes, format_count, format_table
from jinit.fastinit.counting import count_leaves, on_each
from jinit.fastinit.program import InitProgram
from jinit.fastinit.ways import Ways

__all__ = ["InitReport", "Made", "Way", "report_on"]

Way: TypeAlias = Literal["copied", "filled", "drawn", "computed", "at once"]

_MOST_PATHS = 4  # in a row of the table; to_dict() has all


@dataclass(frozen=True)
class Made:
    """Leaves that were made alike.

    Attributes:
        way: How they were made, see ``ways``.
        what: What they were made of.
        programs: How many programs they share.
        leaves: Their paths.
        numbers: How many numbers they are.
    """

    way: Way
    what: str
    programs: int
    leaves: tuple[str, ...]
    numbers: int


@dataclass(frozen=True)
class InitReport(PlainData):
    """What an initialization did.

    Attributes:
        rows: The leaves, those together that were made alike.
        bytes: The bytes of all leaves.
        bytes_by_device: What lies on every device, by its name; empty where no sharding was given.
        trace_seconds: How long tracing took; 0 where the program was known.
        make_seconds: How long compiling and running took.
        reason: Why the whole program made all leaves at once, or None.
    """

    rows: tuple[Made, ...]
    bytes: int
    bytes_by_device: dict[str, int]
    trace_seconds: float
    make_seconds: float
    reason: str | None = None

    def __str__(self) -> str:
        columns = ["way", "made of", ">programs", ">leaves", ">numbers", "which"]
        leaves = sum(len(row.leaves) for row in self.rows)
        held = f", {on_each(self.bytes_by_device)} devices" if self.bytes_by_device else ""
        total = (
            f"{leaves} leaves of {format_bytes(self.bytes)}{held}, traced in "
            f"{self.trace_seconds:.2f} s, compiled and made in {self.make_seconds:.2f} s"
        )
        lines = [format_table(columns, map(_cells, self.rows)), total]
        return "\n".join(lines if self.reason is None else [*lines, f"at once: {self.reason}"])


def _cells(row: Made) -> list[str]:
    listed = row.way in ("computed", "drawn") and len(row.leaves) <= _MOST_PATHS
    numbers = [str(row.programs or "-"), str(len(row.leaves)), format_count(row.numbers)]
    return [row.way, row.what, *numbers, ", ".join(row.leaves) if listed else ""]


def report_on(
    program: InitProgram,
    ways: Ways,
    shardings: Sequence[Sharding | None],
    trace_seconds: float,
    make_seconds: float,
) -> InitReport:
    """Reports on an initialization."""
    size = sum(bytes_of(leaf.shape, leaf.dtype) for leaf in program.leaves)
    held = count_leaves(program, shardings).bytes_by_device
    rows = tuple(_rows(program, ways))
    return InitReport(rows, size, held, trace_seconds, make_seconds, ways.reason)


def _rows(program: InitProgram, ways: Ways) -> Iterator[Made]:
    kinds: dict[tuple[Way, str], tuple[list[int], set[Hashable]]] = {}
    for way, what, numbers, key in _leaves(ways):
        leaves, keys = kinds.setdefault((way, what), ([], set()))
        leaves += numbers
        if key is not None:
            keys.add(key)
    for (way, what), (numbers, keys) in kinds.items():
        leaves = [program.leaves[number] for number in numbers]
        size = sum(math.prod(leaf.shape) for leaf in leaves)
        yield Made(way, what, len(keys), tuple(leaf.path for leaf in leaves), size)


def _leaves(ways: Ways) -> Iterator[tuple[Way, str, Sequence[int], Hashable]]:
    """Yields of leaves how they are made, of what, and by which program."""
    for number in ways.copied:
        yield "copied", "what is known", [number], None
    for number, value in ways.filled.items():
        shown = f"{value.item():g}" if value.dtype.kind in "fiu" else str(value)
        yield "filled", shown, [number], None
    for number, value in ways.drawn.items():
        recipe, _ = ways.recipes[id(value)]
        yield "drawn", recipe.name, [number], recipe
    for ordinary in ways.ordinary:
        way = "computed" if ways.reason is None else "at once"
        yield way, ordinary.what, ordinary.leaves, ordinary.key
