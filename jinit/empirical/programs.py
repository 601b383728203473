"""The compiled programs: one measurement on one key, and the scaling of all leaves."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jinit._arithmetic import apply_scale, is_float, on_cpu, rms
from jinit.empirical.inputs import call_loss
from jinit.empirical.plan import Plan
from jinit.empirical.rounding import nudged, sketch
from jinit.layers import gathered, leading, placed

__all__ = ["Measured", "Programs", "Stage", "Statistics", "programs", "rescale", "stack"]


class Statistics(NamedTuple):
    """What is measured, one number a statistic, or of shape (keys, statistics).

    Attributes:
        activation: The RMS of every layer's output.
        gradient: That of the gradient at its input.
        update: That of the change in its output along the optimizer's step.
        dead: The fraction of its units that no gradient reaches.
        mean: If the job is detailed, the mean of the output in units of its RMS.
        leaf: The RMS of the gradient of every slot of a leaf, as the optimizer sees it.
        joint: If the job asks for the step of the network, the RMS of the change in every
            output along the step of all layers at once, over that of the output.
    """

    activation: Any
    gradient: Any
    update: Any
    dead: Any
    mean: Any
    leaf: Any
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
    """How a measurement is made.

    Attributes:
        given: By layer, the factor of its output; 0 for the layer's own.
        balance: By layer, the factor of the gradient at its input; 0 for its own.
        gauge: By stacked leaf, what the optimizer sees it multiplied by; 0 for what the layers'
            own factors say.
        weight: By stacked leaf, what its gradient is multiplied by as well.
        rate: By stacked leaf, what its step is multiplied by.
    """

    given: Sequence[Any]
    balance: Sequence[Any]
    gauge: Sequence[Any]
    weight: Sequence[Any]
    rate: Sequence[Any]


def _keys(key: jax.Array, number: Any, count: int) -> jax.Array:
    """Derives ``count`` keys from a number, by one call of the generator."""
    numbers = count * number + jnp.arange(count)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers.astype(jnp.uint32))


def _forward(
    plan: Plan, consts: Any, leaves: Any, inputs: Any, key: Any, number: Any, given: Sequence[Any]
) -> jax.Array:
    """Runs forward once, and returns the RMS of every output before its factor."""
    (sample,) = _keys(key, number, 1)
    return plan.meter(consts).forward([*leaves, *plan.data(inputs, sample)], given)


def _measure(
    plan: Plan, consts: Any, leaves: Any, inputs: Any, key: Any, number: Any, nudge: Any,
    stage: Stage,
) -> Measured:  # fmt: skip
    """Runs forward, backward, and forward with derivatives, on one key.

    Every parameter, and what the loss sees of the output, is first changed by the part ``nudge``
    of it, which is 0 or a rounding error.
    """
    leaves = [
        nudged(leaf, nudge) if plan.job.trainable[group[0]] else leaf
        for leaf, group in zip(leaves, plan.rolled.groups, strict=True)
    ]
    sample, loss_key = _keys(key, number, 2)
    data, meter = plan.data(inputs, sample), plan.meter(consts)
    loss = functools.partial(_loss, plan, loss_key, nudge)
    back = meter.backward(loss, leaves, data, stage.given, stage.balance)
    gauge = [
        jnp.where(g > 0, g, own)
        for g, own in zip(stage.gauge, _own(plan, back.factors), strict=True)
    ]
    inward = [weight / c for weight, c in zip(stage.weight, gauge, strict=True)]
    outward = [rate / c for rate, c in zip(stage.rate, gauge, strict=True)]
    seen = _Seen(leaves, back.gradients, gauge, inward)
    step, degrees = _step(plan, seen, outward)
    update = meter.updates(leaves, step, data, stage.given)
    network = plan.job.step == "network"
    joint = meter.joint(leaves, step, data, stage.given) if network else jnp.zeros(0)
    found = Statistics(
        back.activations, back.slopes, update, back.dead, back.means, seen.sizes(plan), joint
    )
    return Measured(found, degrees, seen.sketches(plan))


def _loss(plan: Plan, key: jax.Array, nudge: Any, output: Any) -> jax.Array:
    output = jax.tree.map(lambda y: nudged(y, nudge), output)
    return call_loss(plan.job.dummy_loss, output, key)


def _own(plan: Plan, factors: Sequence[jax.Array]) -> list[jax.Array]:
    """Returns the scale that each leaf takes from the layer it carries, or is a bias of."""
    own = plan.layout.leaves(jnp.ones(plan.layout.slots, jnp.float32))
    for layer, factor in zip(plan.layout.layers, factors, strict=True):
        for leaf, degree in layer.scaled:
            if not layer.shared:
                scale = factor if degree.degree == 1 else factor ** (1 / (degree.degree or 1))
                own[leaf] = placed(scale, plan.layout.places[leaf])
    return own


# On a CPU, the compilation of a program that runs a few dozen times takes longer than its runs:
# these take a fifth to two fifths off it, and leave the speed as it is. Which are known depends on
# the version of jaxlib.
_CHEAP: Sequence[dict[str, Any]] = (
    {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 1},
    {"xla_backend_optimization_level": 1},
)


class Programs(NamedTuple):
    """The two programs that measure.

    Attributes:
        forward: Runs forward once, and returns the RMS of every output.
        measure: Runs forward, backward, and forward with derivatives.
    """

    forward: Any
    measure: Any


def _programs(**options: Any) -> Programs:
    jit = functools.partial(jax.jit, static_argnames="plan", **options)
    return Programs(jit(_forward), jit(_measure))


_plain = _programs()


@functools.cache
def _on_cpu() -> Programs:
    for options in _CHEAP:
        try:
            with jax.default_device(jax.devices("cpu")[0]):
                jax.jit(lambda: 0, compiler_options=options)()
        except jax.errors.JaxRuntimeError:
            continue
        return _programs(compiler_options=options)
    return _plain


def programs(leaves: Sequence[Any], *, traced: bool) -> Programs:
    """Returns the programs that measure, for the devices that the leaves are on.

    Args:
        leaves: The leaves.
        traced: Whether the programs become part of another one, which has options of its own.
    """
    return _on_cpu() if on_cpu(leaves) and not traced else _plain


class _Seen(NamedTuple):
    """What the optimizer sees: a leaf times its gauge c, hence a gradient divided by c."""

    leaves: Sequence[Any]
    gradients: Sequence[Any]
    gauge: Sequence[Any]
    inward: Sequence[Any]

    def sketches(self, plan: Plan) -> jax.Array:
        """Returns random sums of the gradient of every slot."""
        layout = plan.layout
        triples = zip(self.gradients, layout.shapes, layout.places, strict=True)
        return jnp.concatenate(
            [sketch(leading(slope, places), shape) for slope, shape, places in triples]
        )

    def sizes(self, plan: Plan) -> jax.Array:
        """Returns the RMS of the gradient of every slot."""
        parts = []
        layout = plan.layout
        for slope, factor, shape, places in zip(
            self.gradients, self.inward, layout.shapes, layout.places, strict=True
        ):
            slope, factor = leading(slope, places), gathered(factor, places)
            axes = range(len(shape), jnp.ndim(slope))
            size = rms(slope, axes) if is_float(slope) else jnp.zeros(shape)
            parts.append(jnp.ravel(size * factor))
        return jnp.concatenate(parts)


def _step(plan: Plan, seen: _Seen, outward: Sequence[Any]) -> tuple[list[Any], jax.Array]:
    """Returns the change of every leaf, and how the optimizer's step scales."""
    if plan.job.optimizer == "adam":  # indifferent to the gradient's size
        return _scaled(plan.step(seen.gradients, seen.leaves), outward), jnp.zeros(
            (2, 0), jnp.float32
        )
    if plan.job.optimizer == "sgd":
        # one after the other: their product may be out of range
        step = _scaled(plan.step(seen.gradients, seen.leaves), seen.inward)
        return _scaled(step, outward), jnp.zeros((2, 0), jnp.float32)
    slopes, leaves = _scaled(seen.gradients, seen.inward), _scaled(seen.leaves, seen.gauge)
    step = plan.step(slopes, leaves)
    degrees = (
        _degrees(plan, slopes, leaves, step)
        if plan.job.mode == "explicit"
        else jnp.zeros((2, 0), jnp.float32)
    )
    return _scaled(step, outward), degrees


def _scaled(leaves: Sequence[Any], factors: Sequence[Any]) -> list[Any]:
    return [apply_scale(leaf, factor) for leaf, factor in zip(leaves, factors, strict=True)]


def _degrees(plan: Plan, slopes: list[Any], seen: list[Any], step: list[Any]) -> jax.Array:
    """Measures how an optimizer's step scales with the gradient, and with the parameters."""
    double = [jnp.float32(2.0)] * len(seen)
    others = plan.step(_scaled(slopes, double), seen), plan.step(slopes, _scaled(seen, double))

    def sizes(steps: list[Any]) -> jax.Array:
        return jnp.stack([rms(u) for u in steps])

    base = sizes(step)
    ratios = [jnp.where(base > 0, sizes(other) / base, jnp.nan) for other in others]
    return jnp.log2(jnp.stack(ratios))


@functools.partial(jax.jit, static_argnames="plan")
def stack(plan: Plan, leaves: Sequence[Any]) -> list[Any]:
    """Stacks the leaves of equal layers."""
    return plan.rolled.stack(leaves)


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
