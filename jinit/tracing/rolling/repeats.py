"""Where a sequence of equations repeats itself, and where its blocks may begin."""

from dataclasses import dataclass, replace

import numpy as np

from jinit.tracing.rolling.schedule import Schedule
from jinit.tracing.structure import PRODUCTS

__all__ = ["LEAST_BLOCKS", "Stretch", "phases", "repeats"]

LEAST_BLOCKS = 3


@dataclass(frozen=True)
class Stretch:
    """A stretch of labels equal to those ``period`` further on."""

    start: int
    stop: int
    period: int
    saved: int

    def shifted(self, by: int) -> "Stretch":
        """Returns the stretch of a part of a sequence as one of the whole."""
        return replace(self, start=self.start + by, stop=self.stop + by)


def repeats(labels: np.ndarray, weights: np.ndarray, least_saved: int) -> list[Stretch]:
    """Finds where a sequence repeats itself, the largest savings first.

    Args:
        labels: What stands at each position, shape (n,).
        weights: What leaving it out saves, shape (n,).
        least_saved: What one of the stretches must save, all but its first period left out.

    Returns:
        Maximal stretches of at least three periods each.
    """
    total = np.concatenate([[0], np.cumsum(weights)])
    stretches = []
    for period in range(1, len(labels) // LEAST_BLOCKS + 1):
        same = labels[:-period] == labels[period:]
        least = (LEAST_BLOCKS - 1) * period
        if np.count_nonzero(same) < least:
            continue
        edges = np.flatnonzero(np.diff(same, prepend=False, append=False))
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            blocks = (stop - start) // period
            saved = total[start + blocks * period] - total[start]
            if stop - start >= least and saved >= least_saved:
                stretches.append(Stretch(int(start), int(stop) + period, period, int(saved)))
    return sorted(stretches, key=lambda each: (-each.saved, each.period))


def phases(schedule: Schedule, stretch: Stretch) -> list[int]:
    """Lists where the blocks of a stretch may start, the most natural first.

    That is where the fewest values pass from block to block, and before a product with a
    parameter, so that its bias stays in the same block. In ``y = x @ w; z = y + b; x = tanh z``
    one value passes at each of the three places; the product's is first.
    """
    start, period = stretch.start, stretch.period
    stop = min(stretch.stop, start + 3 * period)
    makers: dict[int, int] = {}  # where a result is made, and where it is last read, by its number
    readers: dict[int, int] = {}
    for position in range(start, stop):
        flat = schedule.sequence[position]
        for operand in flat.operands:
            needed = int(schedule.ready[operand])
            if needed in makers and position - makers[needed] <= period:
                readers[needed] = position
        makers.update((int(schedule.index[result]), position) for result in flat.results)
    alive = np.zeros(stop - start + 2, int)
    for number, reader in readers.items():
        alive[makers[number] + 1 - start] += 1
        alive[reader + 1 - start] -= 1
    crossing = np.cumsum(alive)[period : 2 * period]
    return sorted(
        range(period), key=lambda p: (crossing[p], not _is_product(schedule, start + p), p)
    )


def _is_product(schedule: Schedule, position: int) -> bool:
    flat = schedule.sequence[position]
    return flat.equation.primitive.name in PRODUCTS and any(
        operand in schedule.classes for operand in flat.operands
    )
