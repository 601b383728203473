"""The compiled programs behind ``empirical_init`` and ``calibrate``."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jinit.empirical.inputs import all_finite, call_loss, describe_call, draw_inputs, first_step
from jinit.empirical.measure import (
    inverse_rms,
    measure_activations,
    measure_gradients,
    measure_updates,
)
from jinit.empirical.scales import (
    LeafScales,
    apply_scale,
    leaf_scales,
    multipliers,
    shared_factors,
)
from jinit.empirical.sites import Layer, Survey, survey
from jinit.tracing import Path, TracedFunction, trace

__all__ = ["Findings", "Job", "Statistics", "calibrated", "rescale", "scaled"]

_SHARED_SWEEPS = 6  # fixed-point rounds for a leaf that several uses share

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


def _split(key: jax.Array, number: jax.Array, samples: int) -> jax.Array:
    return jax.random.split(jax.random.fold_in(key, number), samples)


def _find_scales(model: _Model, key: jax.Array) -> LeafScales:
    """Finds one scale a leaf from forward passes alone, each with its own key."""
    layers, leaves = model.found.layers, jax.tree.leaves(model.params)
    index = {layer.tail: i for i, layer in enumerate(layers)}
    ones = leaf_scales(layers, {}, model.count)
    # every scale has its final shape from the start, as the loop over sweeps requires
    shapes = jax.eval_shape(lambda: _averaged(layers, _no_powers(layers), index, model.count))
    start = [jnp.broadcast_to(one, s.shape) for one, s in zip(ones, shapes, strict=True)]

    def sweep(scales: LeafScales, number: jax.Array) -> tuple[LeafScales, None]:
        given = shared_factors(layers, scales)

        def one(sample: jax.Array) -> Mapping[Path, jax.Array]:
            args = [*leaves, *model.data(sample)]
            return measure_activations(model.traced, model.found, args, given)

        powers = jax.lax.map(one, _split(key, number, model.job.samples))
        return _averaged(layers, powers, index, model.count), None

    rounds = _SHARED_SWEEPS if any(layer.shared for layer in layers) else 1
    return jax.lax.scan(sweep, start, jnp.arange(rounds))[0]


def _no_powers(layers: Sequence[Layer]) -> dict[Path, jax.Array]:
    scaled_layers = [layer for layer in layers if layer.carrier is not None]
    return {layer.tail: jnp.ones((1, *layer.lengths)) for layer in scaled_layers}


def _averaged(
    layers: Sequence[Layer], powers: Mapping[Path, jax.Array], index: Mapping[Path, int], count: int
) -> LeafScales:
    """Averages over keys geometrically, leaving out those on which a layer put out nothing."""
    factors = {}
    for path, power in powers.items():
        live = ((power > 0) & jnp.isfinite(power)).astype(jnp.float32)
        weight = jnp.sum(live, 0)
        total = jnp.sum(jnp.log(inverse_rms(power)) * live, 0)
        factors[index[path]] = (total / jnp.maximum(weight, 1.0), jnp.minimum(weight, 1.0))
    return leaf_scales(layers, factors, count)


def _first_step(model: _Model, gradients: list[Any], leaves: list[Any]) -> list[Any]:
    """Returns the optimizer's first step; it sees the parameters, not the other variables."""
    tree, name = jax.tree.structure(model.params), model.job.collection
    slopes, params = jax.tree.unflatten(tree, gradients), jax.tree.unflatten(tree, leaves)
    if name is not None:
        slopes, params = slopes[name], params[name]
    steps = iter(jax.tree.leaves(first_step(model.job.optimizer, slopes, params)))
    pairs = zip(leaves, model.job.trainable, strict=True)
    return [next(steps) if flag else jnp.zeros_like(leaf) for leaf, flag in pairs]


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
    slopes, outputs, changes = jax.tree.map(lambda power: jnp.mean(power, 0), powers)

    def statistics(layer: Layer) -> dict[str, jax.Array]:
        absent = jnp.full(layer.lengths, jnp.nan)
        return {
            "activation": outputs[layer.tail],
            "gradient": slopes[layer.head] if layer.differentiable else absent,
            "update": changes[layer.tail],
        }

    return {i: statistics(layer) for i, layer in enumerate(model.found.layers) if layer.measured}


@functools.partial(jax.jit, static_argnames="job")
def scaled(
    job: Job, params: Any, inputs: Any, key: jax.Array
) -> tuple[LeafScales, list[jax.Array]]:
    """Returns every leaf's scale, and whether each leaf is finite."""
    model = _model(job, params, inputs, key)
    return _find_scales(model, key), [all_finite(leaf) for leaf in jax.tree.leaves(params)]


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
        finite=[all_finite(leaf) for leaf in leaves],
        found=model.found,
    )


def _no_changes(layers: Sequence[Layer]) -> Statistics:
    measured = [(i, layer) for i, layer in enumerate(layers) if layer.measured]
    return {i: {"update": jnp.zeros(layer.lengths)} for i, layer in measured}


@functools.partial(jax.jit, static_argnames="shardings")
def rescale(leaves: list[Any], scales: LeafScales, shardings: tuple[Any, ...]) -> list[jax.Array]:
    """Multiplies every leaf by its scale, on the devices it was on."""
    moved = [apply_scale(leaf, scale) for leaf, scale in zip(leaves, scales, strict=True)]
    return [
        leaf if sharding is None else jax.lax.with_sharding_constraint(leaf, sharding)
        for leaf, sharding in zip(moved, shardings, strict=True)
    ]
