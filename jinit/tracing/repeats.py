"""Runs of equal blocks in a program, and how values flow through them."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from jinit.tracing.flat import FlatEquation
from jinit.tracing.order import Order
from jinit.tracing.structure import PRODUCTS

__all__ = [
    "Carried", "Internal", "Loop", "Made", "Outside", "Scanned", "Source", "find_loops", "repeats",
]  # fmt: skip

_LEAST_BLOCKS = 3
_TRIES = 12


@dataclass(frozen=True)
class Internal:
    """The ``index``-th result of the block."""

    index: int


@dataclass(frozen=True)
class Carried:
    """The ``slot``-th of the values carried from block to block."""

    slot: int


@dataclass(frozen=True)
class Outside:
    """A value that is the same for all blocks."""

    value: int


@dataclass(frozen=True)
class Scanned:
    """The ``slot``-th of the values of which every block has its own."""

    slot: int


@dataclass(frozen=True, eq=False)
class Made:
    """A result of a deferred equation."""

    equation: FlatEquation
    operands: "tuple[Source, ...]"
    result: int


Source = Internal | Carried | Outside | Scanned | Made
"""Where an equation in a block gets an operand from."""


@dataclass(frozen=True)
class Step:
    """An equation of a block, where its operands come from, and its first result's index."""

    equation: FlatEquation
    sources: tuple[Source, ...]
    first: int


@dataclass(frozen=True)
class Loop:
    """A run of blocks that one loop can compute.

    Attributes:
        start: The position of its first equation in the sequence.
        stop: The position after its last.
        steps: The equations of the first block that are needed.
        carries: For every carried value the result of the block, by index, and the value that
            the first block gets instead.
        constants: The values that are the same for all blocks.
        scanned: The values of each of which every block has its own, block by block.
        groups: Those among them that are variables, to be stacked outside.
        results: The values that each block computes: an array of shape (blocks, results).
        exits: The indices of the results that are used after the loop.
    """

    start: int
    stop: int
    steps: tuple[Step, ...]
    carries: tuple[tuple[int, int], ...]
    constants: tuple[int, ...]
    scanned: tuple[tuple[int, ...], ...]
    groups: frozenset[tuple[int, ...]]
    results: np.ndarray
    exits: tuple[int, ...]


@dataclass(frozen=True)
class _Run:
    """A stretch of labels equal to those ``period`` further on."""

    start: int
    stop: int
    period: int
    saved: int

    def shifted(self, by: int) -> "_Run":
        return replace(self, start=self.start + by, stop=self.stop + by)


def repeats(labels: np.ndarray, weights: np.ndarray, least_saved: int) -> list[_Run]:
    """Finds where a sequence repeats itself, the largest savings first.

    Args:
        labels: What stands at each position, shape (n,).
        weights: What leaving it out saves, shape (n,).
        least_saved: What one of the stretches must save, all but its first period left out.

    Returns:
        Maximal stretches of at least three periods each.
    """
    total = np.concatenate([[0], np.cumsum(weights)])
    runs = []
    for period in range(1, len(labels) // _LEAST_BLOCKS + 1):
        same = labels[:-period] == labels[period:]
        least = (_LEAST_BLOCKS - 1) * period
        if np.count_nonzero(same) < least:
            continue
        edges = np.flatnonzero(np.diff(same, prepend=False, append=False))
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            blocks = (stop - start) // period
            saved = total[start + blocks * period] - total[start]
            if stop - start >= least and saved >= least_saved:
                runs.append(_Run(int(start), int(stop) + period, period, int(saved)))
    return sorted(runs, key=lambda run: (-run.saved, run.period))


def find_loops(order: Order, least_saved: int) -> list[Loop]:
    """Finds disjoint runs of blocks that loops can compute, in order."""

    def find(low: int, high: int) -> Iterator[Loop]:
        runs = repeats(order.labels[low:high], order.weights[low:high], least_saved)
        for run in runs[:_TRIES]:
            loop = _first_loop(order, run.shifted(low), least_saved)
            if loop is not None:
                yield from find(low, loop.start)
                yield loop
                yield from find(loop.stop, high)
                return

    return list(find(0, len(order.sequence)))


def _first_loop(order: Order, run: _Run, least_saved: int) -> Loop | None:
    for phase in _phases(order, run)[:_TRIES]:
        start = run.start + phase
        weight = int(order.weights[start : start + run.period].sum())
        least = max(_LEAST_BLOCKS, 1 + math.ceil(least_saved / weight))
        while (blocks := (run.stop - start) // run.period) >= least:
            loop, valid = _loop(order, start, run.period, blocks, least)
            if loop is not None:
                return loop
            start += run.period * valid
    return None


def _phases(order: Order, run: _Run) -> list[int]:
    """Lists where the blocks of a run may start, the most natural first.

    That is where the fewest values pass from block to block, and before a product with a
    parameter, so that its bias stays in the same block.
    """
    start, period = run.start, run.period
    stop = min(run.stop, start + 3 * period)
    first, last = order.operand_at[start], order.operand_at[stop]
    operands = order.operands[first:last]
    sizes = np.diff(order.operand_at[start : stop + 1])
    readers = np.repeat(np.arange(stop - start), sizes)
    indices = order.ready[operands] - order.result_at[start]
    makers = np.searchsorted(order.result_at[start : stop + 1] - order.result_at[start], indices,
                             side="right") - 1  # fmt: skip
    near = (indices >= 0) & (readers - makers <= period)
    last_read = np.zeros(order.result_at[stop] - order.result_at[start], int)
    np.maximum.at(last_read, indices[near], readers[near])
    made = np.repeat(np.arange(stop - start), np.diff(order.result_at[start : stop + 1]))
    alive = np.zeros(stop - start + 2, int)
    read = last_read > made
    np.add.at(alive, made[read] + 1, 1)
    np.add.at(alive, last_read[read] + 1, -1)
    crossing = np.cumsum(alive)[period : 2 * period]
    return sorted(range(period), key=lambda p: (crossing[p], not _is_product(order, start + p), p))


def _is_product(order: Order, position: int) -> bool:
    flat = order.sequence[position]
    return flat.equation.primitive.name in PRODUCTS and any(
        operand in order.classes for operand in flat.operands
    )


def _loop(
    order: Order, start: int, period: int, blocks: int, least: int
) -> tuple[Loop | None, int]:
    """Returns a loop over at least some blocks, or None and how many fit together."""
    while blocks >= least:
        trial = _Trial(order, start, period, blocks)
        if trial.valid == blocks:
            return trial.loop(), blocks
        blocks = trial.valid
    return None, blocks


class _Trial:
    """The attempt to see a stretch of the sequence as blocks of one loop.

    A column holds, for one operand of a block, the value that each of the blocks reads.

    Attributes:
        valid: How many of the first blocks fit together, at least 1.
    """

    def __init__(self, order: Order, start: int, period: int, blocks: int) -> None:
        self.order, self.start, self.blocks = order, start, blocks
        self.stop = start + period * blocks
        self.equations = tuple(order.sequence[start : start + period])
        self.operands = _rows(order.operands, order.operand_at, start, self.stop, blocks)
        self.results = _rows(order.results, order.result_at, start, self.stop, blocks)
        self.bases = order.result_at[start : self.stop : period]
        self.sources: dict[bytes, Source] = {}
        self.uses: Counter[bytes] = Counter()
        self.deferred: dict[bytes, tuple[Source, ...]] = {}
        self.read: list[np.ndarray] = [self.operands.ravel()]
        self.carries: dict[tuple[int, int], int] = {}
        self.scanned: dict[tuple[int, ...], int] = {}
        self.groups: set[tuple[int, ...]] = set()
        self.valid = blocks
        self._expect(self._fitting(self.operands))
        if self.valid == blocks:
            self.columns = [self._source(column) for column in self.operands.T]
            self._own_variables()

    def _expect(self, fits: np.ndarray) -> None:
        """Ends the blocks at the first for which something does not hold."""
        failing = np.flatnonzero(~fits.reshape(self.blocks, -1).all(axis=1))
        if failing.size:
            self.valid = min(self.valid, max(1, int(failing[0])))

    def _relative(self, columns: np.ndarray) -> np.ndarray:
        """Numbers values as results of the block that reads them; others are negative."""
        return self.order.index[columns] - self.bases[:, None]

    def _fitting(self, columns: np.ndarray) -> np.ndarray:
        """Tells for columns of shape (blocks, n) which blocks read what the second one reads."""
        relative = self._relative(columns)
        second, early = relative[1], self.order.ready[columns] < self.bases[0]
        computed = relative == second
        computed[0] = np.where(second < 0, early[0], computed[0])
        same = (columns == columns[0]) & early[0]
        own = self.order.index[columns] < self.bases[0]
        outside = np.where(columns[1] == columns[0], same, own)
        return np.where(second >= -self.results.shape[1], computed, outside)

    def _source(self, column: np.ndarray) -> Source:
        key = column.tobytes()
        self.uses[key] += 1
        if key not in self.sources:
            self._expect(self._fitting(column[:, None]))
            self.sources[key] = self._new_source(column)
        return self.sources[key]

    def _new_source(self, column: np.ndarray) -> Source:
        index, num_results = int(self._relative(column[:, None])[1, 0]), self.results.shape[1]
        if index >= 0:
            return Internal(index)
        if index >= -num_results:
            carry = (index + num_results, int(column[0]))
            return Carried(self.carries.setdefault(carry, len(self.carries)))
        if column[0] == column[1]:
            return Outside(int(column[0]))
        values = tuple(column.tolist())
        made = [self.order.made[value] for value in values if value in self.order.made]
        if len(made) == len(values) and len({self.order.classes[v] for v in values}) == 1:
            return self._made(made, values)
        return self._own(column, values)

    def _made(self, makers: list[FlatEquation], values: tuple[int, ...]) -> Made:
        """Computes a deferred equation in the block, from what it reads."""
        firsts = np.array([flat.results[0] for flat in makers])
        key = firsts.tobytes()
        if key not in self.deferred:
            operands = np.array([flat.operands for flat in makers])
            self.read.append(operands.ravel())
            self.deferred[key] = tuple(self._source(column) for column in operands.T)
        return Made(makers[0], self.deferred[key], values[0] - makers[0].results[0])

    def _own(self, column: np.ndarray, values: tuple[int, ...]) -> Scanned:
        """Hands every block its own value; of parameters only those as they were given."""
        if all(map(self.order.is_variable, values)):
            self.groups.add(values)
        else:
            self._expect(self.order.ready[column] < self.bases[0])
            self._expect(np.array([not self.order.is_trained(value) for value in values]))
        return Scanned(self.scanned.setdefault(values, len(self.scanned)))

    def _own_variables(self) -> None:
        """Checks that nothing else reads the variables to be stacked, or a value made of them."""
        for values in sorted(self.groups):
            column = np.array(values)
            owned = self.order.uses[column] == self.uses[column.tobytes()]
            if any(map(self.order.is_trained, values)):
                self._expect(owned)
            elif not owned.all():
                self.groups.remove(values)
        for key in self.deferred:
            firsts = np.frombuffer(key, int)
            for number in range(len(self.order.made[int(firsts[0])].results)):
                column = firsts + number
                if self.order.reads_variables(int(column[0])):
                    self._expect(self.order.uses[column] == self.uses[column.tobytes()])

    def loop(self) -> Loop:
        """Returns the loop, if all blocks fit together."""
        exits = self._exits()
        return Loop(
            start=self.start,
            stop=self.stop,
            steps=self._steps({*exits, *(index for index, _ in self.carries)}),
            carries=tuple(self.carries),
            constants=tuple(s.value for s in self.sources.values() if isinstance(s, Outside)),
            scanned=tuple(self.scanned),
            groups=frozenset(self.groups),
            results=self.results,
            exits=exits,
        )

    def _steps(self, needed: set[int]) -> tuple[Step, ...]:
        """Lists the equations that results depend on, or effects."""
        columns, steps, first = iter(self.columns), [], 0
        for flat in self.equations:
            steps.append(Step(flat, tuple(islice(columns, len(flat.operands))), first))
            first += len(flat.results)
        kept = []
        for step in reversed(steps):
            if not needed.isdisjoint(range(step.first, step.first + len(step.equation.results))):
                needed |= {index for source in step.sources for index in _internal(source)}
                kept.append(step)
        return tuple(reversed(kept))

    def _exits(self) -> tuple[int, ...]:
        """Lists the results that are read outside and that the last carry does not hold."""
        order, read = self.order, np.concatenate(self.read)
        inside = np.bincount(read, minlength=len(order.uses))
        leaving = order.uses[self.results] > inside[self.results]
        carried = [index for index, _ in self.carries]
        leaving[-1, carried] = False
        return tuple(np.flatnonzero(leaving.any(0)).tolist())


def _internal(source: Source) -> Iterator[int]:
    """Lists the results of the same block that a source reads."""
    if isinstance(source, Internal):
        yield source.index
    elif isinstance(source, Made):
        for operand in source.operands:
            yield from _internal(operand)


def _rows(flat: np.ndarray, starts: np.ndarray, start: int, stop: int, blocks: int) -> np.ndarray:
    return flat[starts[start] : starts[stop]].reshape(blocks, -1)
