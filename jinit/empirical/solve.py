"""The steps of a calibration: measure as given, find the scales, measure the result."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from jinit._arithmetic import namespace
from jinit._progress import Progress
from jinit.empirical.measuring.factors import Factors
from jinit.empirical.measuring.measurement import Measurement, single
from jinit.empirical.measuring.passes import Statistics
from jinit.empirical.request import Problem
from jinit.empirical.scales import log_mean
from jinit.empirical.search import find_gradient_scales, find_scales
from jinit.empirical.traced_model import TracedModel

__all__ = ["Findings", "Scaled", "Solution", "solve", "solve_forward"]


class Solution(NamedTuple):
    """What brings the three quantities to O(1); one entry a slot but for ``gradient_scale``.

    Attributes:
        parameter_scale: What each slot of a leaf is multiplied by.
        multiplier: Its learning-rate multiplier.
        applied_scale: In explicit mode, the part of the parameter scale that is applied with the
            model; the rest is folded.
        leaf_gradient_scale: In explicit mode, what its gradient is multiplied by as well.
        gradient_scale: In explicit mode, the factor of the gradient that a layer sends back; one
            a statistic.
    """

    parameter_scale: Any
    multiplier: Any
    applied_scale: Any
    leaf_gradient_scale: Any
    gradient_scale: Any


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["solution", "before", "solved", "after", "degrees", "growth", "null"],
    meta_fields=["model"],
)
@dataclass(frozen=True)
class Findings:
    """What a calibration found.

    Attributes:
        solution: The scales.
        before: Statistics of the parameters as they were given.
        solved: Those that the scales were found from.
        after: Those of the result, on keys used for nothing else.
        degrees: In explicit mode with a foreign optimizer, how its step scales with the gradient
            and with the parameters; of shape (keys, 2, stacked leaves).
        growth: What the multipliers were divided by.
        null: Of every slot whether its gradient is nothing but rounding.
        model: The layers.
    """

    solution: Solution
    before: Statistics
    solved: Statistics
    after: Statistics
    degrees: Any
    growth: Any
    null: Any
    model: TracedModel


class Scaled(NamedTuple):
    """What the forward pass alone found.

    Attributes:
        scales: What each leaf is multiplied by.
        activation: The RMS of outputs; of shape (keys, statistics).
        model: The layers.
    """

    scales: Sequence[Any]
    activation: Any
    model: TracedModel


def solve_forward(problem: Problem, progress: Progress) -> Scaled:
    """Finds every leaf's scale by forward passes alone."""
    measurement = Measurement(problem, progress)
    model = measurement.model
    logs, activation = find_scales(model.solver, model.targets, measurement.forward)
    return Scaled(model.by_leaf(single(namespace(logs).exp(logs))), activation, model)


def solve(problem: Problem, progress: Progress) -> Findings:
    """Finds the scales and multipliers, and measures before, during and after."""
    measurement = Measurement(problem, progress)
    model, solver = measurement.model, measurement.model.solver
    before = measurement.before()
    scale: Any = None
    forward: dict[str, Any] = _left_to_layers(model)
    if solver.shared.any():
        logs, _ = find_scales(solver, model.targets, measurement.forward)
        scale, forward = namespace(logs).exp(logs), dict[str, Any]()
    gradient_scale = _gradient_scale(measurement, scale, forward)
    (solved, degrees, _), null = measurement.decisive(
        scale, **forward, gradient_scale=gradient_scale
    )
    if scale is None:
        size, produced = log_mean(solved.activation)
        logs = solver.scales(np.log(model.targets) - size, produced)
        scale = namespace(logs).exp(logs)
    multiplier = solver.multipliers(*log_mean(solved.update), null)
    find, explicit = _folded, False
    if gradient_scale is not None:
        explicit = True
        find = functools.partial(_explicit, solved, degrees, gradient_scale)
    solution = find(model, scale, multiplier)
    after = measurement.after(scale, **_factors(solution, explicit)).statistics
    # a gradient is measured where it enters the factor that it leaves with
    after = after._replace(gradient=after.gradient * solution.gradient_scale[None])
    growth = _growth(model, after)
    if model.request.step == "network":
        by_slot = namespace(growth).where(solver.frozen, 1.0, growth)
        solution = find(model, scale, multiplier / by_slot)
        leaf = after.leaf_gradient / by_slot[None] if explicit else after.leaf_gradient
        after = after._replace(update=after.update / growth, leaf_gradient=leaf)
    return Findings(solution, before, solved, after, degrees, growth, null, model)


def _left_to_layers(model: TracedModel) -> dict[str, Factors]:
    """Leaves it to every layer to bring its own output to the target, in one pass."""
    every_slot = np.ones(model.layout.slots, bool)
    return {"output_scale": model.solver.own, "parameter_scale": Factors.left_open(every_slot)}


def _gradient_scale(
    measurement: Measurement, scale: Any, forward: dict[str, Any]
) -> Factors | None:
    """Finds, in explicit mode, what brings gradients to RMS 1."""
    if measurement.model.request.mode == "fold":
        return None

    sweep = functools.partial(measurement.gradients, scale, **forward)
    return find_gradient_scales(measurement.model.solver, sweep)


def _factors(solution: Solution, explicit: bool) -> dict[str, Any]:
    """Returns what the result is measured with."""
    if not explicit:
        return {"multiplier": solution.multiplier}
    return {
        "gradient_scale": Factors.given(solution.gradient_scale),
        "leaf_gradient_scale": solution.leaf_gradient_scale,
        "parameter_scale": Factors.given(1.0 / solution.applied_scale),
    }


def _folded(model: TracedModel, scale: Any, multiplier: Any) -> Solution:
    ones = np.ones(model.layout.slots)
    return Solution(scale, multiplier, ones, ones, np.ones(model.layout.size))


def _explicit(
    solved: Statistics,
    degrees: Any,
    balanced: Factors,
    model: TracedModel,
    scale: Any,
    multiplier: Any,
) -> Solution:
    xp = namespace(scale, multiplier)
    slope, _ = log_mean(solved.gradient)
    follows = _follows_gradient(model, degrees)
    return Solution(
        scale,
        multiplier,
        applied_scale=xp.where(follows, scale, multiplier),
        leaf_gradient_scale=xp.where(follows, multiplier / scale / scale, 1.0),
        gradient_scale=balanced.resolved(xp.exp(-slope)),
    )


def _growth(model: TracedModel, after: Statistics) -> Any:
    """Returns how much a unit step of all layers at once changes an output, relative to its RMS.

    It is the geometric mean over the layers that have an output and move; 1 if not asked for.
    """
    if model.request.step == "layer":
        return np.float32(1)
    logs, moved = log_mean(after.joint)
    xp, weight = namespace(logs), moved * model.solver.carries
    return xp.exp((logs * weight).sum() / xp.maximum(weight.sum(), 1)).astype(np.float32)


def _follows_gradient(model: TracedModel, degrees: Any) -> Any:
    """Returns of every slot whether the optimizer's step is as large as the gradient."""
    degree = model.request.optimizer.degree
    if degree is not None:
        return np.full(model.layout.slots, degree == 1)
    xp, counts = namespace(degrees), np.diff(model.layout.slot_starts)
    known = xp.isfinite(degrees[:, 0])
    total = xp.where(known, degrees[:, 0], 0.0).sum(0)
    mean = total / xp.maximum(known.sum(0), 1)
    return xp.repeat(mean > 0.5, counts)
