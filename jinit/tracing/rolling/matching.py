"""Blocks matched with one another: which stretches of a program one loop can compute."""

import math
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import numpy as np

from jinit.tracing.rolling.flat import FlatEquation
from jinit.tracing.rolling.loop import Carried, Internal, Loop, Made, Outside, Scanned, Source, Step
from jinit.tracing.rolling.repeats import LEAST_BLOCKS, Stretch, phases, repeats
from jinit.tracing.rolling.schedule import Schedule

__all__ = ["find_loops"]

_TRIES = 12


def find_loops(schedule: Schedule, least_saved: int) -> list[Loop]:
    """Finds disjoint runs of blocks that loops can compute, in schedule."""

    def find(low: int, high: int) -> Iterator[Loop]:
        stretches = repeats(schedule.labels[low:high], schedule.weights[low:high], least_saved)
        for stretch in stretches[:_TRIES]:
            loop = _first_loop(schedule, stretch.shifted(low), least_saved)
            if loop is not None:
                yield from find(low, loop.start)
                yield loop
                yield from find(loop.stop, high)
                return

    return list(find(0, len(schedule.sequence)))


def _first_loop(schedule: Schedule, stretch: Stretch, least_saved: int) -> Loop | None:
    for phase in phases(schedule, stretch)[:_TRIES]:
        start = stretch.start + phase
        weight = int(schedule.weights[start : start + stretch.period].sum())
        least = max(LEAST_BLOCKS, 1 + math.ceil(least_saved / weight))
        while (blocks := (stretch.stop - start) // stretch.period) >= least:
            loop, valid = _loop(schedule, start, stretch.period, blocks, least)
            if loop is not None:
                return loop
            start += stretch.period * valid
    return None


def _loop(
    schedule: Schedule, start: int, period: int, blocks: int, least: int
) -> tuple[Loop | None, int]:
    """Returns a loop over at least some blocks, or None and how many fit together."""
    while blocks >= least:
        trial = _Trial(schedule, start, period, blocks)
        if trial.valid == blocks:
            return trial.loop(), blocks
        blocks = trial.valid
    return None, blocks


class _Trial:
    """The attempt to see a stretch of the sequence as blocks of one loop.

    A column holds, for one operand of a block, the value that each of the blocks reads. Of three
    blocks ``y = x @ w; x = tanh y`` the operands are, a row a block::

        x0 w0 y0      x0: from before the loop
        x1 w1 y1
        x2 w2 y2

    The first column is result 1 of the block before (``Carried``), the second is every block's own
    variable (``Scanned``, a group), and the third is result 0 of the same block (``Internal``).
    What holds of the second block, the first that has one before it, must hold of all.

    Attributes:
        valid: How many of the first blocks fit together, at least 1.
    """

    def __init__(self, schedule: Schedule, start: int, period: int, blocks: int) -> None:
        self.schedule, self.start, self.blocks = schedule, start, blocks
        self.stop = start + period * blocks
        self.equations = tuple(schedule.sequence[start : start + period])
        self.operands = _rows(schedule.operands, schedule.operand_at, start, self.stop, blocks)
        self.results = _rows(schedule.results, schedule.result_at, start, self.stop, blocks)
        self.bases = schedule.result_at[start : self.stop : period]
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
        return self.schedule.index[columns] - self.bases[:, None]

    def _fitting(self, columns: np.ndarray) -> np.ndarray:
        """Returns, for columns of shape (blocks, n), which blocks read as the second one does."""
        relative = self._relative(columns)
        second, early = relative[1], self.schedule.ready[columns] < self.bases[0]
        computed = relative == second
        computed[0] = np.where(second < 0, early[0], computed[0])
        same = (columns == columns[0]) & early[0]
        own = self.schedule.index[columns] < self.bases[0]
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
        made = [self.schedule.made[value] for value in values if value in self.schedule.made]
        if len(made) == len(values) and len({self.schedule.classes[v] for v in values}) == 1:
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
        if all(map(self.schedule.is_variable, values)):
            self.groups.add(values)
        else:
            self._expect(self.schedule.ready[column] < self.bases[0])
            self._expect(np.array([not self.schedule.is_trained(value) for value in values]))
        return Scanned(self.scanned.setdefault(values, len(self.scanned)))

    def _own_variables(self) -> None:
        """Checks that nothing else reads the variables to be stacked, or a value made of them."""
        for values in sorted(self.groups):
            column = np.array(values)
            owned = self.schedule.uses[column] == self.uses[column.tobytes()]
            if any(map(self.schedule.is_trained, values)):
                self._expect(owned)
            elif not owned.all():
                self.groups.remove(values)
        for key in self.deferred:
            firsts = np.frombuffer(key, int)
            for number in range(len(self.schedule.made[int(firsts[0])].results)):
                column = firsts + number
                if self.schedule.reads_variables(int(column[0])):
                    self._expect(self.schedule.uses[column] == self.uses[column.tobytes()])

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
        schedule, read = self.schedule, np.concatenate(self.read)
        inside = np.bincount(read, minlength=len(schedule.uses))
        leaving = schedule.uses[self.results] > inside[self.results]
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
