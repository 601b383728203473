"""Loss scaling for optax: take a scaled loss's gradients, skip the step that overflowed."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jinit._kinds import model_kind
from jinit._known import known_arguments
from jinit.amp.arguments import (
    check_grads,
    check_leaves,
    check_optimizer,
    check_overflow,
    check_state,
)
from jinit.amp.scaling.scale_schedule import ScaleSchedule, parse_count
from jinit.amp.scaling.scaled_gradients import (
    UnscaledGrads,
    check_loss_id,
    map_inexact,
    marked_again,
    unscale,
)

__all__ = ["LossScalingState", "loss_scaling"]


class LossScalingState(NamedTuple):
    """Holds the state of ``loss_scaling``; every array is a leaf.

    The arrays have shape () for one loss, and (num_losses,) for several.

    Args:
        loss_scale: Float32, the factor of the loss.
        growth_count: Int32, steps since the scale last changed or a gradient overflowed
            (apex's ``unskipped``).
        overflow_count: Int32, steps in a row in which a gradient overflowed.
        last_finite: Bool, whether the loss's last gradients were all finite.
        inner_state: The state of the inner transformation.
    """

    loss_scale: jax.Array
    growth_count: jax.Array
    overflow_count: jax.Array
    last_finite: jax.Array
    inner_state: optax.OptState


@known_arguments
def loss_scaling(
    inner: optax.GradientTransformation,
    loss_scale: float | str = "dynamic",
    *,
    init_scale: float = 2.0**16,
    growth_factor: float = 2.0,
    backoff_factor: float = 0.5,
    growth_interval: int = 2000,
    hysteresis: int = 1,
    min_loss_scale: float | None = None,
    max_loss_scale: float = 2.0**24,
    num_losses: int = 1,
    skip_nonfinite: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that it takes the gradients of a scaled loss.

    With scale s, the inner transformation sees g / s in float32 (or wider). A dynamic scale
    becomes::

        max(s · backoff_factor, min_loss_scale)   if any gradient is not finite, for the
                                                  hysteresis-th step in a row or a later one
        min(s · growth_factor, max_loss_scale)    after growth_interval finite steps since the
                                                  scale last changed or a step was skipped
        s                                         otherwise

    and stays between 2**-126 and 2**126, so that neither it nor its reciprocal reaches 0 or
    infinity. A step whose gradients are not finite is skipped: the updates are -0.0 (x + -0.0 is
    x for both zeros), the inner state is returned as it was, and only the scaler's fields change.
    A constant scale never skips, unless ``skip_nonfinite``.

    So a skipped step keeps the parameters and the inner state, and nothing else. What the forward
    pass returns as well (the ``batch_stats`` of Flax, a cache) the optimizer does not see: it is
    new after such a step too, and may hold what overflowed. Keep the old where the new state's
    ``last_finite`` is False (the second example); with several losses, where ``finite`` of the
    ``UnscaledGrads`` is.

    Several losses, several optimizers: a loss is multiplied by a scale in the state of an
    optimizer that it feeds, and unscaled by the same one before its gradients meet any other's
    (``value_and_grad``, or ``scale_loss`` and ``unscale``). The ``UnscaledGrads`` name the losses
    in them, and one rule follows: an update is skipped if any loss in its gradients overflowed,
    and it moves the scales of just these losses, each once. So all optimizers that a loss feeds
    skip together and hold the same scale of it, and no other optimizer notices. A scale is never
    shared: losses with one ``loss_id`` overflow together in an update, and two optimizers that
    use one ``loss_id`` for different losses move it each for itself.

    Put it outermost, ``loss_scaling(chain(clip, adam, ...))``, so that everything inside sees
    true gradients: also outside ``MultiSteps(...).gradient_transformation()``, whose accumulator
    keeps a non-finite value for ever, and outside ``multi_transform``, in whose groups each would
    keep a scale of its own. Finiteness is read from the gradients that are handed in: where
    replicas reduce them by hand (``shard_map``), reduce before the update.

    Args:
        inner: The optimizer. Its ``init`` and ``update`` see float32 parameters, so that its
            state is float32 also where the parameters are stored in half.
        loss_scale: ``"dynamic"``, or a positive number (or one in a string), the constant scale.
        init_scale: The first dynamic scale, brought within the bounds.
        growth_factor: Above 1.
        backoff_factor: Between 0 and 1.
        growth_interval: Steps, at least 1.
        hysteresis: How many steps in a row must overflow for the scale to back off; every one is
            skipped, and a finite step begins the count anew.
        min_loss_scale: The least scale that backing off leads to; None means no floor.
        max_loss_scale: The greatest scale that growing leads to.
        num_losses: The number of separately scaled losses.
        skip_nonfinite: Skips a step whose gradients are not finite under a constant scale too.

    Returns:
        The transformation, with a ``LossScalingState``. Its updates are float32 (or wider)
        whatever the dtype of the parameters: ``optax.apply_updates`` adds them in float32 and
        rounds the sum once. ``update`` takes ``UnscaledGrads``, or, of the only loss, the
        gradients of ``scale_loss`` as they are. Where only arrays pass, as through
        ``nnx.Optimizer`` or ``optax.masked``, hand it ``grads.grads`` and the keyword
        ``overflow=grads.overflow``.

    Raises:
        ValueError: If a number is out of its range; from ``init``, if the inner state holds a
            loss scale already; from ``update``, if the gradients come from a loss that there is
            not, or are of one of several losses and not unscaled.
        TypeError: If ``inner`` is not an optax transformation; from ``update``, if the state is
            another optimizer's, or the gradients are not a tree of arrays.

    Example:
        >>> from jinit import amp
        >>> tx = loss_scaling(optax.sgd(0.5), init_scale=8.0)
        >>> params = jnp.array([1.0, 2.0])
        >>> state = tx.init(params)
        >>> scaled_grads = jax.grad(lambda p: amp.scale_loss((p**2).sum() / 2, state))(params)
        >>> updates, state = tx.update(scaled_grads, state, params)
        >>> scaled_grads.tolist(), optax.apply_updates(params, updates).tolist()
        ([8.0, 16.0], [0.5, 1.0])
        >>> updates, state = tx.update(scaled_grads * jnp.inf, state, params)
        >>> float(state.loss_scale), updates.tolist()
        (4.0, [-0.0, -0.0])

        Statistics of the forward pass are kept by hand:

        >>> old, new = {"mean": jnp.zeros(2)}, {"mean": jnp.array([jnp.inf, 1.0])}
        >>> finite = optax.tree.get(state, "last_finite").all()
        >>> jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)
        {'mean': Array([0., 0.], dtype=float32)}

    Source:
        NVIDIA apex's ``LossScaler`` and ``update_scale_hysteresis``. It differs in the bounds
        that float32 sets to the scale, and in that a scale moves once in an update where apex
        moves it once in a backward pass.
    """
    check_optimizer(inner)
    schedule = ScaleSchedule.parse(
        loss_scale,
        init_scale=init_scale,
        growth_factor=growth_factor,
        backoff_factor=backoff_factor,
        growth_interval=growth_interval,
        hysteresis=hysteresis,
        min_loss_scale=min_loss_scale,
        max_loss_scale=max_loss_scale,
        skip_nonfinite=skip_nonfinite,
    )
    count = parse_count("num_losses", num_losses)
    shape = () if count == 1 else (count,)
    return _scaled(optax.with_extra_args_support(inner), schedule, shape)


def _scaled(
    inner: optax.GradientTransformationExtraArgs, schedule: ScaleSchedule, shape: tuple[int, ...]
) -> optax.GradientTransformationExtraArgs:
    def init(params: optax.Params) -> LossScalingState:
        check_leaves("params", params)
        inner_state = inner.init(_widen(params))
        if optax.tree.get_all_with_path(inner_state, "loss_scale"):
            raise ValueError("the optimizer holds a loss_scale already: it was initialized twice")
        return LossScalingState(
            loss_scale=jnp.full(shape, schedule.initial, jnp.float32),
            growth_count=jnp.zeros(shape, jnp.int32),
            overflow_count=jnp.zeros(shape, jnp.int32),
            last_finite=jnp.full(shape, True),
            inner_state=inner_state,
        )

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        overflow: Mapping[int, jax.Array] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, LossScalingState]:
        check_state("loss_scaling", state, LossScalingState)
        check_leaves("params", params)
        if overflow is None:
            updates = marked_again(updates, params, state.loss_scale.size)
        handed = updates if overflow is None else _marked(updates, overflow)
        unscaled = _unscaled(handed, state)

        def step() -> tuple[optax.Updates, optax.OptState]:
            # Unscaled once more: the check and the update each fuse it into their own pass, where
            # sharing it would write the gradients out in float32.
            grads = _unscaled(handed, state).grads
            new, inner_state = inner.update(grads, state.inner_state, _widen(params), **extra_args)
            return _like_stored(optax.tree.cast_like(new, grads), params), inner_state

        def skip() -> tuple[optax.Updates, optax.OptState]:
            return _like_stored(_negative_zeros(unscaled.grads), params), state.inner_state

        new, inner_state = jax.lax.cond(unscaled.finite, step, skip) if schedule.skips else step()
        return new, _moved(schedule, state, unscaled.overflow)._replace(inner_state=inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _marked(grads: Any, overflow: Mapping[int, Any]) -> UnscaledGrads:
    check_overflow(overflow)
    if isinstance(grads, UnscaledGrads):
        raise TypeError("overflow= goes with grads.grads: write it, or hand over grads alone")
    check_grads(grads, UnscaledGrads)
    return UnscaledGrads(grads, dict(overflow))


def _unscaled(grads: Any, state: LossScalingState) -> UnscaledGrads:
    if not isinstance(grads, UnscaledGrads):
        if state.loss_scale.ndim:
            raise ValueError(
                f"an optimizer with num_losses={state.loss_scale.size} takes gradients that are "
                "unscaled and name their loss: take them from amp.value_and_grad or amp.unscale"
            )
        return unscale(grads, state)
    check_overflow(grads.overflow)
    for loss_id in grads.overflow:
        check_loss_id(loss_id, state.loss_scale.size)
    return grads


def _moved(
    schedule: ScaleSchedule, state: LossScalingState, overflow: Mapping[int, Any]
) -> LossScalingState:
    """Moves the scales of the losses that an update comes from; the inner state stays."""
    shape, losses = state.loss_scale.shape, range(state.loss_scale.size)
    present = np.reshape([loss_id in overflow for loss_id in losses], shape)
    marks = [jnp.asarray(overflow.get(loss_id, 0.0)) for loss_id in losses]
    finite = jnp.stack([mark == 0 for mark in marks]).reshape(shape)
    moved = schedule.next(state.loss_scale, state.growth_count, state.overflow_count, finite)
    fields = dict(zip(state._fields, (*moved, finite), strict=False))
    return state._replace(
        **{name: jnp.where(present, new, getattr(state, name)) for name, new in fields.items()}
    )


def _like_stored(updates: Any, params: Any) -> Any:
    """Returns updates of an Equinox module in its dtypes: ``eqx.apply_updates`` adds, and promotes.

    ``optax.apply_updates`` adds in float32, and casts the sum.
    """
    equinox = model_kind(params) == "an Equinox module"
    return optax.tree.cast_like(updates, params) if equinox else updates


def _widen(tree: Any) -> Any:
    return map_inexact(lambda leaf: leaf, tree)


def _negative_zeros(grads: optax.Updates) -> optax.Updates:
    return map_inexact(lambda grad: jnp.full_like(grad, -0.0), grads)
