"""The steps of a calibration: measure as given, find the pillars, measure the result."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jinit._arithmetic import namespace
from jinit.empirical.job import Job
from jinit.empirical.plan import Plan, plan_of
from jinit.empirical.programs import Measured, Stage, Statistics, programs, rescale, stack
from jinit.empirical.progress import Progress
from jinit.empirical.rounding import is_rounding
from jinit.empirical.scales import log_mean
from jinit.empirical.search import find_backward, find_scales
from jinit.tracing import is_tracing

__all__ = ["Findings", "Pillars", "Scaled", "calibrated", "scaled"]

_STAGES: Mapping[int, tuple[str, Callable[[int], int]]] = {
    1: ("measuring as given", lambda samples: samples // 4 - 1),
    # one pass more, on a key that is repeated, comes off what is only shown
    2: ("measuring the pillars", lambda samples: samples),
    3: ("measuring the result", lambda samples: samples // 2),
}
"""By its number, what a measurement says that it does, and how many keys it takes, at least 1."""


class Pillars(NamedTuple):
    """What brings the three quantities to O(1); vectors of one entry a slot but for ``backward``.

    Attributes:
        scale: What each slot of a leaf is multiplied by.
        multiplier: Its learning-rate multiplier.
        forward: In explicit mode, what it is multiplied by when the model is applied.
        weight: In explicit mode, what its gradient is multiplied by as well.
        backward: In explicit mode, what the gradient is multiplied by that leaves a layer through
            its input; one a statistic.
    """

    scale: Any
    multiplier: Any
    forward: Any
    weight: Any
    backward: Any


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["pillars", "before", "solved", "after", "degrees", "growth", "null"],
    meta_fields=["plan"],
)
@dataclass(frozen=True)
class Findings:
    """What a calibration found.

    Attributes:
        pillars: The scales.
        before: Statistics of the parameters as they were given.
        solved: Those that the pillars were found from.
        after: Those of the result, on keys used for nothing else.
        degrees: In explicit mode with a foreign optimizer, how its step scales with the gradient
            and with the parameters; of shape (keys, 2, stacked leaves).
        growth: What the multipliers were divided by.
        null: Of every slot whether its gradient is nothing but rounding.
        plan: The layers.
    """

    pillars: Pillars
    before: Statistics
    solved: Statistics
    after: Statistics
    degrees: Any
    growth: Any
    null: Any
    plan: Plan


class Scaled(NamedTuple):
    """What the forward pass alone found.

    Attributes:
        scales: What each leaf is multiplied by.
        activation: The RMS of outputs; of shape (keys, statistics).
        plan: The layers.
    """

    scales: Sequence[Any]
    activation: Any
    plan: Plan


class _Run:
    """One calibration under way."""

    def __init__(
        self, job: Job, params: Any, inputs: Any, key: jax.Array, progress: Progress
    ) -> None:
        self.plan, self.consts = plan_of(job, params, inputs, key)
        self.inputs, self.key, self.progress = inputs, key, progress
        leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(params)]
        self.stacked = stack(self.plan, leaves) if self.plan.rolled.loops else leaves
        self.traced = is_tracing()
        self.programs = programs(leaves, traced=self.traced)

    def leaves(self, scale: Any) -> list[Any]:
        """Returns the stacked leaves, each slot multiplied by its scale; None leaves them be."""
        if scale is None:
            return self.stacked
        return rescale(self.stacked, self.plan.layout.leaves(_single(scale)))

    def over_keys(self, what: str, one: Any, numbers: np.ndarray, nudges: np.ndarray) -> Any:
        """Runs a program once a key, one after the other, and stacks what it returns."""
        self.progress.begin(what, len(numbers))
        passes = numbers.astype(np.int32), nudges.astype(np.float32)
        if self.traced:
            return jax.lax.map(lambda one_pass: one(*one_pass), jax.tree.map(jnp.asarray, passes))
        results = [self._counted(one, *one_pass) for one_pass in zip(*passes, strict=True)]
        return jax.tree.map(lambda *xs: np.stack(xs), *jax.device_get(results))

    def _counted(self, one: Any, number: Any, nudge: Any) -> Any:
        result = one(number, nudge)
        self.progress.advance(result)
        return result

    def search(self) -> tuple[Any, Any]:
        """Finds the logarithm of every slot's scale, on the same keys in every sweep.

        Returns:
            That, and the RMS of the first sweep.
        """
        plan, leaves = self.plan, self.leaves(None)
        keys = np.arange(plan.job.samples)

        def sweep(given: Any) -> Any:
            factors = self.by_layer(given)

            def one(number: Any, nudge: Any) -> Any:
                del nudge
                return self.programs.forward(
                    plan, self.consts, leaves, self.inputs, self.key, number, factors
                )

            return self.over_keys("scaling", one, keys, np.zeros(len(keys)))

        return find_scales(plan.solver, plan.targets, sweep)

    def measure(self, number: int, scale: Any, nudge: float = 0.0, **options: Any) -> Measured:
        """Measures once a key.

        Args:
            number: That of the measurement, in ``_STAGES``.
            scale: What each slot of a leaf is multiplied by; None for the leaves as given.
            nudge: Where it is not 0, the first key is measured once more at the end, with every
                parameter changed by this part of it.
            **options: Those of ``Stage`` that are not 1 throughout.
        """
        plan, leaves, stage = self.plan, self.leaves(scale), self.stage(**options)

        def one(number: Any, nudge: Any) -> Any:
            return self.programs.measure(
                plan, self.consts, leaves, self.inputs, self.key, number, nudge, stage
            )

        samples = plan.job.samples
        what, count = _STAGES[number]
        keys = number * samples + np.arange(max(1, count(samples)))
        nudges = np.zeros(len(keys))
        if nudge:
            keys, nudges = np.append(keys, keys[0]), np.append(nudges, nudge)
        return self.over_keys(what, one, keys, nudges)

    def solve(self, scale: Any, **options: Any) -> tuple[Measured, Any]:
        """Measures what the pillars are found from.

        Returns:
            That, and of every slot whether its gradient is rounding, or 0 on all keys.
        """
        unit = self.plan.rounding_unit
        found = self.measure(2, scale, unit, **options)
        null = is_rounding(found.sketch[0], found.sketch[-1], unit)
        found = jax.tree.map(lambda x: x[:-1], found)
        # on one key alone, a branch may not be taken
        return found, null | (found.statistics.leaf == 0).all(0)

    def balance(self, scale: Any, forward: Any) -> dict[str, Any]:
        """Finds, in explicit mode, what brings gradients to RMS 1; 0 for a layer's own factor."""
        if self.plan.job.mode == "fold":
            return {}

        def sweep(balance: Any) -> Any:
            return self.measure(2, scale, balance=balance, **forward).statistics.gradient

        return {"balance": find_backward(self.plan.solver, sweep)}

    def stage(self, **options: Any) -> Stage:
        """Divides what a measurement is told among the layers and the leaves."""
        layout = self.plan.layout
        none, ones = np.ones(layout.size), np.ones(layout.slots)
        by_layer = {n: self.by_layer(options.get(n, none)) for n in ("given", "balance")}
        by_leaf = {
            n: layout.leaves(_single(options.get(n, ones))) for n in ("gauge", "weight", "rate")
        }
        return Stage(**by_layer, **by_leaf)

    def by_layer(self, vector: Any) -> list[Any]:
        """Divides statistics among the layers."""
        vector = _single(vector)
        return [self.plan.layout.unpack(vector, i) for i in range(len(self.plan.layout.layers))]


def _single(vector: Any) -> Any:
    with np.errstate(over="ignore", under="ignore"):  # what is out of range is refused at the end
        return vector.astype(np.float32)


def scaled(job: Job, params: Any, inputs: Any, key: jax.Array, progress: Progress) -> Scaled:
    """Finds every leaf's scale."""
    run = _Run(job, params, inputs, key, progress)
    found, activation = run.search()
    return Scaled(run.plan.by_leaf(_single(namespace(found).exp(found))), activation, run.plan)


def calibrated(job: Job, params: Any, inputs: Any, key: jax.Array, progress: Progress) -> Findings:
    """Finds the pillars, and measures before, during and after."""
    run = _Run(job, params, inputs, key, progress)
    plan, solver = run.plan, run.plan.solver
    before = run.measure(1, None).statistics
    scale, forward = None, {"given": solver.own, "gauge": np.zeros(plan.layout.slots)}
    if solver.shared.any():
        logs, _ = run.search()
        scale, forward = namespace(logs).exp(logs), {}
    balance = run.balance(scale, forward)
    (solved, degrees, _), null = run.solve(scale, **forward, **balance)
    if scale is None:
        size, put_out = log_mean(solved.activation)
        logs = solver.scales(np.log(plan.targets) - size, put_out)
        scale = namespace(logs).exp(logs)
    multiplier = plan.solver.multipliers(*log_mean(solved.update), null)
    explicit = job.mode == "explicit"
    find = (
        functools.partial(_explicit, solved=solved, degrees=degrees, **balance)
        if explicit
        else _folded
    )
    pillars = find(plan, scale, multiplier)
    after = run.measure(3, scale, **_options(pillars, job)).statistics
    # a gradient is measured where it enters the factor that it leaves with
    after = after._replace(gradient=after.gradient * pillars.backward[None])
    growth = _growth(plan, after)
    if job.step == "network":
        by_slot = namespace(growth).where(solver.frozen, 1.0, growth)
        pillars = find(plan, scale, multiplier / by_slot)
        leaf = after.leaf / by_slot[None] if explicit else after.leaf
        after = after._replace(update=after.update / growth, leaf=leaf)
    return Findings(pillars, before, solved, after, degrees, growth, null, plan)


def _options(pillars: Pillars, job: Job) -> dict[str, Any]:
    """Returns the options of ``Stage`` that measure the result."""
    if job.mode == "fold":
        return {"rate": pillars.multiplier}
    return {
        "balance": pillars.backward,
        "weight": pillars.weight,
        "gauge": 1.0 / pillars.forward,
    }


def _folded(plan: Plan, scale: Any, multiplier: Any) -> Pillars:
    ones = np.ones(plan.layout.slots)
    return Pillars(scale, multiplier, ones, ones, np.ones(plan.layout.size))


def _explicit(
    plan: Plan, scale: Any, multiplier: Any, solved: Statistics, degrees: Any, balance: Any
) -> Pillars:
    xp = namespace(scale, multiplier)
    slope, _ = log_mean(solved.gradient)
    follows = _follows_gradient(plan, degrees)
    return Pillars(
        scale,
        multiplier,
        forward=xp.where(follows, scale, multiplier),
        weight=xp.where(follows, multiplier / scale / scale, 1.0),
        backward=xp.where(balance > 0, balance, xp.exp(-slope)),
    )


def _growth(plan: Plan, after: Statistics) -> Any:
    """Returns how much a unit step of all layers at once changes an output, relative to its RMS.

    It is the geometric mean over the layers that have an output and move; 1 if not asked for.
    """
    if plan.job.step == "layer":
        return np.float32(1)
    logs, moved = log_mean(after.joint)
    xp, weight = namespace(logs), moved * plan.solver.carries
    return xp.exp((logs * weight).sum() / xp.maximum(weight.sum(), 1)).astype(np.float32)


def _follows_gradient(plan: Plan, degrees: Any) -> Any:
    """Returns of every slot whether the optimizer's step is as large as the gradient."""
    if isinstance(plan.job.optimizer, str):
        return np.full(plan.layout.slots, plan.job.optimizer == "sgd")
    xp, counts = namespace(degrees), np.diff(plan.layout.slot_starts)
    known = xp.isfinite(degrees[:, 0])
    total = xp.where(known, degrees[:, 0], 0.0).sum(0)
    mean = total / xp.maximum(known.sum(0), 1)
    return xp.repeat(mean > 0.5, counts)
