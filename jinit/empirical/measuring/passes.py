"""The compiled passes through a model: one measurement on one key, and the scaling of leaves."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jinit._arithmetic import apply_scale, is_float, on_cpu, rms
from jinit.empirical.measuring.factors import Factors
from jinit.empirical.measuring.rounding import nudged, sketch
from jinit.empirical.traced_model import TracedModel
from jinit.empirical.user_functions import call_loss
from jinit.layers import gathered, leading, placed

__all__ = ["Measured", "Passes", "Stage", "Statistics", "passes_for", "rescale", "stack"]


class Statistics(NamedTuple):
    """What is measured, one number a statistic, or of shape (keys, statistics).

    Attributes:
        activation: The RMS of every layer's output.
        gradient: That of the gradient at its input.
        update: That of the change in its output along the optimizer's step.
        dead: The fraction of its units that no gradient reaches.
        mean: If the request is detailed, the mean of the output in units of its RMS.
        leaf_gradient: That of the gradient of every slot of a leaf, as the optimizer sees it.
        joint: If the request asks for the step of the network, the RMS of the change in every
            output along the step of all layers at once, over that of the output.
    """

    activation: Any
    gradient: Any
    update: Any
    dead: Any
    mean: Any
    leaf_gradient: Any
    joint: Any


class Measured(NamedTuple):
    """What one measurement returns.

    Attributes:
        statistics: The statistics.
        degrees: How the optimizer's step scales, by stacked leaf.
        sketch: Random sums of the gradient of every slot, by which a gradient is known again.
    """

    statistics: Statistics
    degrees: Any
    sketch: Any


class Stage(NamedTuple):
    """How a measurement is made; what is left open is a layer's own factor.

    Attributes:
        output_scale: By layer, the factor of its output.
        gradient_scale: By layer, the factor of the gradient that it sends back.
        parameter_scale: By stacked leaf, what the optimizer sees it multiplied by; its own is
            what the factors of its layers' outputs say.
        leaf_gradient_scale: By stacked leaf, what its gradient is multiplied by as well.
        multiplier: By stacked leaf, what its step is multiplied by.
    """

    output_scale: Sequence[Factors]
    gradient_scale: Sequence[Factors]
    parameter_scale: Sequence[Factors]
    leaf_gradient_scale: Sequence[Any]
    multiplier: Sequence[Any]


def _keys(key: jax.Array, number: Any, count: int) -> jax.Array:
    """Derives ``count`` keys from a number, by one call of the generator."""
    numbers = count * number + jnp.arange(count)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers.astype(jnp.uint32))


def _forward(
    model: TracedModel, consts: Any, leaves: Any, inputs: Any, key: Any, number: Any,
    output_scales: Sequence[Factors],
) -> jax.Array:  # fmt: skip
    """Runs forward once, and returns the RMS of every output before its factor."""
    (sample,) = _keys(key, number, 1)
    return model.meter(consts).forward([*leaves, *model.data(inputs, sample)], output_scales)


def _measure(
    model: TracedModel, consts: Any, leaves: Any, inputs: Any, key: Any, number: Any, nudge: Any,
    stage: Stage,
) -> Measured:  # fmt: skip
    """Runs forward, backward, and forward with derivatives, on one key.

    Every parameter, and what the loss sees of the output, is first changed by the part ``nudge``
    of it, which is 0 or a rounding error.
    """
    leaves = [
        nudged(leaf, nudge) if model.request.trainable[group[0]] else leaf
        for leaf, group in zip(leaves, model.rolled.groups, strict=True)
    ]
    sample, loss_key = _keys(key, number, 2)
    data, meter = model.data(inputs, sample), model.meter(consts)
    loss = functools.partial(_loss, model, loss_key, nudge)
    back = meter.backward(loss, leaves, data, stage.output_scale, stage.gradient_scale)
    own = _own_scales(model, back.factors)
    scales = [each.resolved(x) for each, x in zip(stage.parameter_scale, own, strict=True)]
    seen = _Seen(
        leaves,
        back.gradients,
        scales,
        inward=[g / c for g, c in zip(stage.leaf_gradient_scale, scales, strict=True)],
        outward=[m / c for m, c in zip(stage.multiplier, scales, strict=True)],
    )
    step, degrees = _step(model, seen)
    update = meter.updates(leaves, step, data, stage.output_scale)
    network = model.request.step == "network"
    joint = meter.joint(leaves, step, data, stage.output_scale) if network else jnp.zeros(0)
    found = Statistics(
        back.activations, back.slopes, update, back.dead, back.means, seen.sizes(model), joint
    )
    return Measured(found, degrees, seen.sketches(model))


def _loss(model: TracedModel, key: jax.Array, nudge: Any, output: Any) -> jax.Array:
    output = jax.tree.map(lambda y: nudged(y, nudge), output)
    return call_loss(model.request.dummy_loss, output, key)


def _own_scales(model: TracedModel, factors: Sequence[jax.Array]) -> list[jax.Array]:
    """Returns the scale that each leaf takes from the layer it carries, or is a bias of."""
    own = model.layout.leaves(jnp.ones(model.layout.slots, jnp.float32))
    for layer, factor in zip(model.layout.layers, factors, strict=True):
        for leaf, degree in layer.scaled:
            if not layer.shared:
                scale = factor if degree.degree == 1 else factor ** (1 / (degree.degree or 1))
                own[leaf] = placed(scale, model.layout.places[leaf])
    return own


# On a CPU, the compilation of a program that runs a few dozen times takes longer than its runs:
# these take a fifth to two fifths off it, and leave the speed as it is. Which are known depends on
# the version of jaxlib.
_CHEAP: Sequence[dict[str, Any]] = (
    {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 1},
    {"xla_backend_optimization_level": 1},
)


class Passes(NamedTuple):
    """The two programs that measure.

    Attributes:
        forward: Runs forward once, and returns the RMS of every output.
        measure: Runs forward, backward, and forward with derivatives.
    """

    forward: Any
    measure: Any


def _passes(**options: Any) -> Passes:
    jit = functools.partial(jax.jit, static_argnames="model", **options)
    return Passes(jit(_forward), jit(_measure))


_plain = _passes()


@functools.cache
def _on_cpu() -> Passes:
    for options in _CHEAP:
        try:
            with jax.default_device(jax.devices("cpu")[0]):
                jax.jit(lambda: 0, compiler_options=options)()
        except jax.errors.JaxRuntimeError:
            continue
        return _passes(compiler_options=options)
    return _plain


def passes_for(leaves: Sequence[Any], *, traced: bool) -> Passes:
    """Returns the programs that measure, for the devices that the leaves are on.

    Args:
        leaves: The leaves.
        traced: Whether the programs become part of another one, which has options of its own.
    """
    return _on_cpu() if on_cpu(leaves) and not traced else _plain


class _Seen(NamedTuple):
    """What the optimizer sees: a leaf W times its parameter scale c, hence a gradient over c.

    Attributes:
        leaves: The stacked leaves, W.
        gradients: Their gradients g.
        scales: By leaf, c.
        inward: By leaf, what its gradient is multiplied by: the leaf-gradient scale over c.
        outward: By leaf, what the step of c W is multiplied by: the multiplier over c.
    """

    leaves: Sequence[Any]
    gradients: Sequence[Any]
    scales: Sequence[Any]
    inward: Sequence[Any]
    outward: Sequence[Any]

    def sketches(self, model: TracedModel) -> jax.Array:
        """Returns random sums of the gradient of every slot."""
        layout = model.layout
        triples = zip(self.gradients, layout.shapes, layout.places, strict=True)
        return jnp.concatenate(
            [sketch(leading(slope, places), shape) for slope, shape, places in triples]
        )

    def sizes(self, model: TracedModel) -> jax.Array:
        """Returns the RMS of the gradient of every slot."""
        parts = []
        layout = model.layout
        for slope, factor, shape, places in zip(
            self.gradients, self.inward, layout.shapes, layout.places, strict=True
        ):
            slope, factor = leading(slope, places), gathered(factor, places)
            axes = range(len(shape), jnp.ndim(slope))
            size = rms(slope, axes) if is_float(slope) else jnp.zeros(shape)
            parts.append(jnp.ravel(size * factor))
        return jnp.concatenate(parts)


_NO_DEGREES = np.zeros((2, 0), np.float32)


def _step(model: TracedModel, seen: _Seen) -> tuple[list[Any], Any]:
    """Returns the change of every leaf, and how the optimizer's step scales if it must be known."""
    degree = model.request.optimizer.degree
    if degree is not None:
        step = model.first_step(seen.gradients, seen.leaves)
        # one factor after the other: their product may be out of range
        for factors in (*[seen.inward] * degree, seen.outward):
            step = _scaled(step, factors)
        return step, _NO_DEGREES
    slopes, leaves = _scaled(seen.gradients, seen.inward), _scaled(seen.leaves, seen.scales)
    step = model.first_step(slopes, leaves)
    explicit = model.request.mode == "explicit"
    degrees = _degrees(model, slopes, leaves, step) if explicit else _NO_DEGREES
    return _scaled(step, seen.outward), degrees


def _scaled(leaves: Sequence[Any], factors: Sequence[Any]) -> list[Any]:
    return [apply_scale(leaf, factor) for leaf, factor in zip(leaves, factors, strict=True)]


def _degrees(model: TracedModel, slopes: list[Any], seen: list[Any], step: list[Any]) -> jax.Array:
    """Measures how an optimizer's step scales with the gradient, and with the parameters."""
    double = [jnp.float32(2.0)] * len(seen)
    others = (
        model.first_step(_scaled(slopes, double), seen),
        model.first_step(slopes, _scaled(seen, double)),
    )

    def sizes(steps: list[Any]) -> jax.Array:
        return jnp.stack([rms(u) for u in steps])

    base = sizes(step)
    ratios = [jnp.where(base > 0, sizes(other) / base, jnp.nan) for other in others]
    return jnp.log2(jnp.stack(ratios))


@functools.partial(jax.jit, static_argnames="model")
def stack(model: TracedModel, leaves: Sequence[Any]) -> list[Any]:
    """Stacks the leaves of equal layers."""
    return model.rolled.stack(leaves)


def rescale(leaves: Sequence[Any], scales: Sequence[Any]) -> list[jax.Array]:
    """Multiplies every leaf by its scale, on the devices it was on.

    One small program a shape compiles faster than one that holds all leaves.
    """
    return [
        _rescaling(_sharding(leaf))(leaf, scale) for leaf, scale in zip(leaves, scales, strict=True)
    ]


@functools.cache
def _rescaling(sharding: Any) -> Callable[..., jax.Array]:
    """Returns the program that leaves its result on the given devices, whatever axes they have."""
    return jax.jit(_rescaled, out_shardings=sharding)


def _rescaled(leaf: Any, scale: Any) -> jax.Array:
    return apply_scale(leaf, jnp.asarray(scale, jnp.float32))


def _sharding(leaf: Any) -> Any:
    """Returns a sharding over several devices; what is on one stays free to move."""
    sharding = None if isinstance(leaf, Tracer) else getattr(leaf, "sharding", None)
    return sharding if sharding is not None and len(sharding.device_set) > 1 else None
