"""The compiled programs behind ``empirical_init`` and ``calibrate``."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jinit.empirical.inputs import all_finite, call_loss, describe_call, draw_inputs, first_step
from jinit.empirical.measure import measure_activations, measure_gradients, measure_updates
from jinit.empirical.scales import LeafScales, apply_scale, multipliers
from jinit.empirical.search import find_scales
from jinit.empirical.sites import Layer, Survey, survey
from jinit.tracing import Path, TracedFunction, trace

__all__ = ["Findings", "Job", "Statistics", "calibrated", "rescale", "scaled"]

Statistics = dict[int, dict[str, jax.Array]]
"""By a layer's index, mean squares over its output, one for each iteration of its scans."""


@dataclass(frozen=True)
class Job:
    """What a program is compiled for; hashable, so that an equal job compiles once.

    Attributes:
        apply_fn: The model.
        dummy_input: Draws its inputs; None where they are given as arrays.
        dummy_loss: Its loss.
        trainable: For every leaf of the variables whether it is a parameter.
        collection: The top-level entry that holds the parameters, or None for the whole tree.
        optimizer: What takes the first step.
        samples: The number of keys that are averaged over.
        batch_size: What a ``dummy_input`` that asks for a batch size is given.
    """

    apply_fn: Callable[..., Any]
    dummy_input: Callable[..., Any] | None
    dummy_loss: Callable[..., Any]
    trainable: tuple[bool, ...]
    collection: str | None = None
    optimizer: Any = "adam"
    samples: int = 8
    batch_size: int = 64


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["scales", "multipliers", "before", "after", "finite"],
    meta_fields=["found"],
)
@dataclass(frozen=True)
class Findings:
    """What a program returns.

    Attributes:
        scales: What each leaf is to be multiplied by.
        multipliers: The learning-rate multiplier of each leaf.
        before: Statistics of the parameters as they were given.
        after: Those of the rescaled ones with the multipliers, on keys used for nothing else.
        finite: Whether each leaf was finite.
        found: The layers.
    """

    scales: LeafScales
    multipliers: LeafScales
    before: Statistics
    after: Statistics
    finite: list[jax.Array]
    found: Survey


@dataclass(frozen=True)
class _Model:
    """A traced model, its layers, and how to draw its inputs."""

    job: Job
    params: Any
    inputs: Any
    traced: TracedFunction
    found: Survey

    @property
    def count(self) -> int:
        return len(self.job.trainable)

    def data(self, key: jax.Array) -> list[Any]:
        source = self.job.dummy_input if self.inputs is None else self.inputs
        return jax.tree.leaves(draw_inputs(source, key, self.job.batch_size))

    def loss(self, output: Any, key: jax.Array) -> jax.Array:
        return call_loss(self.job.dummy_loss, output, key)


def _model(job: Job, params: Any, inputs: Any, key: jax.Array) -> _Model:
    source = job.dummy_input if inputs is None else inputs
    drawn = jax.eval_shape(lambda key: draw_inputs(source, key, job.batch_size), key)
    traced = trace(job.apply_fn, params, *drawn)
    found = survey(traced, job.trainable)
    _check_found(found, job)
    output = traced.unflatten(traced.out_avals)
    jax.eval_shape(lambda out, key: call_loss(job.dummy_loss, out, key), output, key)
    return _Model(job, params, inputs, traced, found)


def _check_found(found: Survey, job: Job) -> None:
    name = describe_call(job.apply_fn)
    if not found.reached:
        raise ValueError(
            f"the output of {name} depends on no parameter; "
            "apply_fn must compute it from its first argument"
        )
    if not found.layers:
        raise ValueError(
            f"{name} never combines a parameter with an input; pass the inputs as arguments "
            "instead of closing over them"
        )


def _split(key: jax.Array, number: int | jax.Array, samples: int) -> jax.Array:
    return jax.random.split(jax.random.fold_in(key, number), samples)


def _find_scales(model: _Model, key: jax.Array) -> LeafScales:
    """Finds one scale a leaf, on the same keys in every sweep."""
    leaves, samples = jax.tree.leaves(model.params), _split(key, 0, model.job.samples)

    def measure(given: Mapping[Path, jax.Array]) -> dict[Path, jax.Array]:
        def one(sample: jax.Array) -> dict[Path, jax.Array]:
            args = [*leaves, *model.data(sample)]
            return measure_activations(model.traced, model.found, args, given)

        return jax.lax.map(one, samples)

    return find_scales(model.found.layers, model.count, measure)


def _mean_over_keys(power: jax.Array) -> jax.Array:
    """Averages over the keys on which a layer was reached: in a branch not taken all is 0."""
    return jnp.sum(power, 0) / jnp.maximum(jnp.sum(power != 0, 0, dtype=jnp.float32), 1.0)


def _first_step(model: _Model, gradients: list[Any], leaves: list[Any]) -> list[Any]:
    """Returns the optimizer's first step; it sees the parameters, not the other variables."""
    tree, name = jax.tree.structure(model.params), model.job.collection
    slopes, params = jax.tree.unflatten(tree, gradients), jax.tree.unflatten(tree, leaves)
    if name is not None:
        slopes, params = slopes[name], params[name]
    slopes, params = jax.tree.map(_float_or_none, (slopes, params))
    steps = iter(jax.tree.leaves(first_step(model.job.optimizer, slopes, params)))
    moving = [
        flag and _float_or_none(leaf) is not None
        for leaf, flag in zip(leaves, model.job.trainable, strict=True)
    ]
    return [next(steps) if flag else leaf for leaf, flag in zip(leaves, moving, strict=True)]


def _float_or_none(leaf: Any) -> Any:
    return leaf if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) else None


def _measure(
    model: _Model, leaves: list[jax.Array], rates: LeafScales, key: jax.Array, number: jax.Array
) -> Statistics:
    """Measures activations, gradients and updates: one backward and two forward passes a key."""
    layers = [layer for layer in model.found.layers if layer.measured]

    def one(sample: jax.Array) -> Any:
        data = model.data(sample)
        loss = functools.partial(model.loss, key=jax.random.fold_in(sample, 1))
        walk = (model.traced, model.found, layers)
        gradients, slopes, outputs = measure_gradients(*walk, loss, leaves, data)
        step = _first_step(model, gradients, leaves)
        step = [apply_scale(u, m) for u, m in zip(step, rates, strict=True)]
        return slopes, outputs, measure_updates(*walk, leaves, step, data)

    powers = jax.lax.map(one, _split(key, number, model.job.samples))
    slopes, outputs, changes = jax.tree.map(_mean_over_keys, powers)

    def statistics(layer: Layer) -> dict[str, jax.Array]:
        numbers = {"activation": outputs[layer.tail], "update": changes[layer.tail]}
        return {**numbers, "gradient": slopes[layer.head]} if layer.differentiable else numbers

    return {i: statistics(layer) for i, layer in enumerate(model.found.layers) if layer.measured}


@functools.partial(jax.jit, static_argnames="job")
def scaled(
    job: Job, params: Any, inputs: Any, key: jax.Array
) -> tuple[LeafScales, list[jax.Array]]:
    """Returns every leaf's scale, and whether each leaf is finite."""
    model = _model(job, params, inputs, key)
    return _find_scales(model, key), _finite(job, jax.tree.leaves(params))


def _finite(job: Job, leaves: Sequence[Any]) -> list[jax.Array]:
    """Tells of every parameter whether it is finite; a mask among the constants need not be."""
    pairs = zip(leaves, job.trainable, strict=True)
    return [all_finite(leaf) if flag else jnp.array(True) for leaf, flag in pairs]


@functools.partial(jax.jit, static_argnames="job")
def calibrated(job: Job, params: Any, inputs: Any, key: jax.Array) -> Findings:
    """Finds scales and multipliers, and measures before, between and after.

    The three measurements are one loop, so that the program holds the measuring code once.
    """
    model = _model(job, params, inputs, key)
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(params)]
    scales = _find_scales(model, key)
    layers = model.found.layers

    def rates_from(statistics: Statistics) -> LeafScales:
        updates = {index: numbers["update"] for index, numbers in statistics.items()}
        return multipliers(layers, updates, model.count)

    shapes = jax.eval_shape(rates_from, _no_changes(layers))
    ones = [jnp.ones(s.shape, s.dtype) for s in shapes]

    def stage(rates: LeafScales, number: jax.Array) -> tuple[LeafScales, Any]:
        sizes = [jnp.where(number > 0, scale, 1.0) for scale in scales]
        moved = [apply_scale(leaf, size) for leaf, size in zip(leaves, sizes, strict=True)]
        statistics = _measure(model, moved, rates, key, 100 + number)
        solved = rates_from(statistics)
        chosen = [jnp.where(number == 1, new, old) for new, old in zip(solved, rates, strict=True)]
        return chosen, statistics

    rates, statistics = jax.lax.scan(stage, ones, jnp.arange(3))
    return Findings(
        scales=scales,
        multipliers=rates,
        before=jax.tree.map(lambda v: v[0], statistics),
        after=jax.tree.map(lambda v: v[2], statistics),
        finite=_finite(job, leaves),
        found=model.found,
    )


def _no_changes(layers: Sequence[Layer]) -> Statistics:
    measured = [(i, layer) for i, layer in enumerate(layers) if layer.measured]
    return {i: {"update": jnp.zeros(layer.lengths, jnp.float32)} for i, layer in measured}


@functools.partial(jax.jit, static_argnames="shardings")
def rescale(leaves: list[Any], scales: LeafScales, shardings: tuple[Any, ...]) -> list[jax.Array]:
    """Multiplies every leaf by its scale, on the devices it was on."""
    moved = [apply_scale(leaf, scale) for leaf, scale in zip(leaves, scales, strict=True)]
    return [
        leaf if sharding is None else jax.lax.with_sharding_constraint(leaf, sharding)
        for leaf, sharding in zip(moved, shardings, strict=True)
    ]
