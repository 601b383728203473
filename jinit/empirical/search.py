"""The search for the scales of leaves that several uses share, from forward passes."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jinit.empirical.numbers import namespace
from jinit.empirical.scales import Solver, log_mean

__all__ = ["find_scales"]

SWEEPS = 6  # rounds of the fixed point for a leaf that several uses share


def find_scales(solver: Solver, targets: np.ndarray, measure: Callable[[Any], Any]) -> Any:
    """Finds the scales at which every layer puts out its target RMS.

    A leaf with one use takes what a single sweep measures. One with N uses, be they layers or
    iterations of a loop, takes the geometric mean u of what they want, which depends on u, since
    each use scales the input of the next: along a chain the wish falls by (N - 1) / 2 for each
    unit that u rises. So u moves by a secant step of between 2 / (N + 1), which is right for a
    chain, and 1. The first sweep, in which every use is brought to its target by itself, is the
    start.

    Args:
        solver: The layers and their leaves.
        targets: The RMS of every output; one a statistic.
        measure: Runs the model forward at given factors, one a statistic, 0 for a layer's own;
            returns mean squares before the factor, with a leading axis of keys.

    Returns:
        The logarithms of the scales, one a slot.
    """
    uses = np.maximum(np.bincount(solver.scaled.slot, minlength=solver.layout.slots), 1)
    least = (2.0 / (uses + 1.0)).astype(np.float32)

    def residual(scale: Any, given: Any) -> Any:
        size, weight = log_mean(measure(given))
        return solver.scales(np.log(targets) - size, weight) - scale

    alone = np.where(solver.tuned, 0.0, 1.0).astype(np.float32)
    scale = residual(np.zeros_like(least), alone)
    previous, before = None, None
    for _ in range(SWEEPS - 1 if solver.shared.any() else 0):
        xp = namespace(scale)
        now = residual(scale, xp.where(solver.shared, solver.factors(scale), alone))
        length = least if before is None else _secant(scale, previous, now, before, least)
        previous, before, scale = scale, now, scale + length * now
    return scale


def _secant(scale: Any, previous: Any, now: Any, before: Any, least: Any) -> Any:
    """Returns the length of a step that would end the change seen in the last one."""
    xp, change = namespace(scale), now - before
    known = change != 0
    length = (previous - scale) / xp.where(known, change, 1.0)
    return xp.where(known, xp.clip(length, least, 1.0), least)
