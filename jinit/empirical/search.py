"""The search for what several uses share: a fixed point, followed by secant steps."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jinit._arithmetic import namespace
from jinit.empirical.measuring.factors import Factors
from jinit.empirical.scales import Solver, log_mean

__all__ = ["find_gradient_scales", "find_scales"]

SWEEPS = 6  # measurements of a fixed point


def find_scales(
    solver: Solver, targets: np.ndarray, measure: Callable[[Factors], Any]
) -> tuple[Any, Any]:
    """Finds the scales at which every layer produces its target RMS.

    A leaf with one use takes what a single sweep measures. One with N uses, be they layers or
    iterations of a loop, takes the geometric mean u of what they want, which depends on u, since
    each use scales the input of the next. The first sweep, in which every use is brought to its
    target by itself, is the start.

    Args:
        solver: The layers and their leaves.
        targets: The RMS of every output; one a statistic.
        measure: Runs the model forward at given factors, one a statistic;
            returns RMS before the factor, with a leading axis of keys.

    Returns:
        The logarithms of the scales, one a slot, and the RMS of the first sweep.
    """
    uses = np.bincount(solver.scaled.slot, minlength=solver.layout.slots)

    def residual(scale: Any, sizes: Any) -> Any:
        size, weight = log_mean(sizes)
        return solver.scales(np.log(targets) - size, weight) - scale

    first = measure(solver.own)
    start = residual(np.zeros(solver.layout.slots, np.float32), first)
    if not solver.shared.any():
        return start, first

    def shared(scale: Any) -> Any:
        factors = namespace(scale).where(solver.shared, solver.factors(scale), 1.0)
        return residual(scale, measure(Factors(factors, solver.tuned & ~solver.shared)))

    return _settled(start, shared, uses), first


def find_gradient_scales(solver: Solver, measure: Callable[[Factors], Any]) -> Factors:
    """Finds the factors at which the gradient leaves every layer with an RMS of 1.

    They belong to explicit mode. A layer in a loop that hands it one leaf has one factor for all
    iterations, the geometric mean of what they want, which the search follows; any other layer
    brings its gradient to 1 by itself.

    Args:
        solver: The layers and their leaves.
        measure: Runs the model backward at given factors, one a statistic;
            returns RMS before the factor, with a leading axis of keys.

    Returns:
        The factors, one a statistic.
    """
    uses = solver.layout.free_iterations
    free = solver.tuned & (uses > 1)
    if not free.any():
        return solver.own

    def factors(logs: Any) -> Factors:
        xp = namespace(logs)
        return Factors(xp.where(free, xp.exp(logs), 1.0), solver.tuned & ~free)

    def residual(logs: Any, given: Factors) -> Any:
        return -solver.layout.over_free_loops(*log_mean(measure(given))) - logs

    start = residual(np.zeros(solver.layout.size, np.float32), solver.own)
    return factors(_settled(start, lambda logs: residual(logs, factors(logs)), uses))


def _settled(start: Any, residual: Callable[[Any], Any], uses: np.ndarray) -> Any:
    """Follows ``residual`` to 0 by secant steps, elementwise.

    Along a chain of N uses what they want falls by (N - 1) / 2 for each unit that is given: so a
    step is of between 2 / (N + 1), which is right for a chain, and 1 of the residual.
    """
    least = (2.0 / (np.maximum(uses, 1) + 1.0)).astype(np.float32)
    scale, previous, before = start, None, None
    for _ in range(SWEEPS - 1):
        now = residual(scale)
        length = least if before is None else _secant(scale, previous, now, before, least)
        previous, before, scale = scale, now, scale + length * now
    return scale


def _secant(scale: Any, previous: Any, now: Any, before: Any, least: Any) -> Any:
    """Returns the length of a step that would end the change seen in the last one."""
    xp, change = namespace(scale), now - before
    known = change != 0
    length = (previous - scale) / xp.where(known, change, 1.0)
    return xp.where(known, xp.clip(length, least, 1.0), least)
