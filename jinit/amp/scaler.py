"""Loss scaling for optax: scale the loss, unscale its gradients, skip the step that overflowed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jinit.amp.schedule import ScaleSchedule

__all__ = ["LossScalingState", "loss_scaling", "scale_loss"]


class LossScalingState(NamedTuple):
    """Holds the state of ``loss_scaling``; every array is a leaf.

    Args:
        loss_scale: Float32 of shape (), the factor of the loss.
        growth_count: Int32 of shape (), steps since the scale last changed or a gradient
            overflowed (apex's ``unskipped``).
        last_finite: Bool of shape (), whether the last gradients were all finite.
        inner_state: The state of the inner transformation.
    """

    loss_scale: jax.Array
    growth_count: jax.Array
    last_finite: jax.Array
    inner_state: optax.OptState


def loss_scaling(
    inner: optax.GradientTransformation,
    loss_scale: float | str = "dynamic",
    *,
    init_scale: float = 2.0**16,
    growth_factor: float = 2.0,
    backoff_factor: float = 0.5,
    growth_interval: int = 2000,
    min_loss_scale: float | None = None,
    max_loss_scale: float = 2.0**24,
    num_losses: int = 1,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that it takes the gradients of a scaled loss.

    With scale s, the inner transformation sees g / s in float32 (or wider). A dynamic scale
    becomes::

        max(s · backoff_factor, min_loss_scale)   if any gradient is not finite
        min(s · growth_factor, max_loss_scale)    after growth_interval finite steps since the
                                                  scale last changed
        s                                         otherwise

    and never leaves float32's normal numbers: it reaches neither 0 nor infinity. A step whose
    gradients are not finite is skipped: the updates are -0.0 (x + -0.0 is x for both zeros), the
    inner state is returned as it was, and only the scaler's fields change. A constant scale
    never skips.

    Put it outermost, ``loss_scaling(chain(clip, adam, ...))``, so that everything inside sees
    true gradients: also outside ``MultiSteps(...).gradient_transformation()``, whose accumulator
    keeps a non-finite value for ever. Finiteness is read from the gradients that are handed in:
    where replicas reduce them by hand (``shard_map``), reduce before the update.

    Args:
        inner: The optimizer. Its ``init`` and ``update`` see float32 parameters, so that its
            state is float32 also where the parameters are stored in half.
        loss_scale: ``"dynamic"``, or a positive number (or one in a string), the constant scale.
        init_scale: The first dynamic scale, brought within the bounds.
        growth_factor: Above 1.
        backoff_factor: Between 0 and 1.
        growth_interval: Steps, at least 1.
        min_loss_scale: The least scale that backing off leads to; None means no floor.
        max_loss_scale: The greatest scale that growing leads to.
        num_losses: The number of separately scaled losses; only 1 so far.

    Returns:
        The transformation, with a ``LossScalingState``. Its updates are float32 (or wider)
        whatever the dtype of the parameters: ``optax.apply_updates`` adds them in float32 and
        rounds the sum once.

    Raises:
        ValueError: If a number is out of its range or, from ``init``, if the inner state holds
            a loss scale already.
        TypeError: If ``inner`` is not an optax transformation.

    Example:
        >>> tx = loss_scaling(optax.sgd(0.5), init_scale=8.0)
        >>> params = jnp.array([1.0, 2.0])
        >>> state = tx.init(params)
        >>> scaled_grads = jax.grad(lambda p: scale_loss((p**2).sum() / 2, state))(params)
        >>> updates, state = tx.update(scaled_grads, state, params)
        >>> scaled_grads.tolist(), optax.apply_updates(params, updates).tolist()
        ([8.0, 16.0], [0.5, 1.0])
        >>> updates, state = tx.update(scaled_grads * jnp.inf, state, params)
        >>> float(state.loss_scale), updates.tolist()
        (4.0, [-0.0, -0.0])

    Reference:
        NVIDIA apex's ``LossScaler``. It differs in that its minimum may also be 0, that it
        divides by the scale where apex multiplies by its reciprocal, and in the bounds that
        float32 sets to the scale.
    """
    if not isinstance(inner, optax.GradientTransformation):
        raise TypeError(
            f"an optimizer must be an optax.GradientTransformation, not {type(inner).__name__} "
            "(for MultiSteps: its gradient_transformation())"
        )
    if num_losses != 1:
        raise ValueError(
            f"num_losses must be 1, not {num_losses!r}: losses with scales of their own are not "
            "supported yet; add the losses, or give each its own optimizer"
        )
    schedule = ScaleSchedule.parse(
        loss_scale,
        init_scale=init_scale,
        growth_factor=growth_factor,
        backoff_factor=backoff_factor,
        growth_interval=growth_interval,
        min_loss_scale=min_loss_scale,
        max_loss_scale=max_loss_scale,
    )
    return _scaled(optax.with_extra_args_support(inner), schedule)


def _scaled(
    inner: optax.GradientTransformationExtraArgs, schedule: ScaleSchedule
) -> optax.GradientTransformationExtraArgs:
    def init(params: optax.Params) -> LossScalingState:
        inner_state = inner.init(_widen(params))
        if _find_scales(inner_state):
            raise ValueError("the optimizer holds a loss_scale already: it was initialized twice")
        return LossScalingState(
            loss_scale=jnp.asarray(schedule.initial, jnp.float32),
            growth_count=jnp.zeros((), jnp.int32),
            last_finite=jnp.asarray(True),
            inner_state=inner_state,
        )

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, LossScalingState]:
        def step() -> tuple[optax.Updates, optax.OptState]:
            grads = _unscale(updates, state.loss_scale)
            new, inner_state = inner.update(grads, state.inner_state, _widen(params), **extra_args)
            return optax.tree.cast_like(new, grads), inner_state

        def skip() -> tuple[optax.Updates, optax.OptState]:
            return _negative_zeros(updates), state.inner_state

        # Unscaled once more inside step: the check and the update each fuse it into their own
        # pass, where sharing it would write the gradients out in float32.
        finite = _all_finite(_unscale(updates, state.loss_scale))
        new, inner_state = jax.lax.cond(finite, step, skip) if schedule.dynamic else step()
        scale, count = schedule.next(state.loss_scale, state.growth_count, finite)
        return new, LossScalingState(scale, count, finite, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def scale_loss(
    loss: jax.typing.ArrayLike, opt_state: optax.OptState, loss_id: int = 0
) -> jax.Array:
    """Multiplies a loss by the scale that the optimizer's state holds.

    Differentiate the product, and hand its gradients to the optimizer, which unscales them.

    Args:
        loss: A scalar, float32 or wider.
        opt_state: The state of one optimizer that ``initialize`` or ``loss_scaling`` returned,
            alone or inside ``optax.chain``.
        loss_id: Which of the optimizer's losses; only 0 so far.

    Returns:
        ``loss * loss_scale``, a float32 (or wider) scalar.

    Raises:
        ValueError: If the loss is not a float32 scalar, the state does not hold exactly one
            loss scale, or there is no such loss.

    Example:
        >>> state = loss_scaling(optax.sgd(0.1), 128.0).init(jnp.ones(2))
        >>> scale_loss(jnp.float32(0.5), state)
        Array(64., dtype=float32)

    Reference:
        NVIDIA apex's ``amp.scale_loss``, a context manager there.
    """
    dtype, shape = jnp.result_type(loss), jnp.shape(loss)
    wide = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits >= 32
    if shape != () or not wide:
        raise ValueError(
            f"a loss must be a float32 scalar, not {dtype} of shape {shape}: average it, and "
            "cast the model's outputs to float32 before the loss is computed"
        )
    scales = _find_scales(opt_state)
    if len(scales) != 1:
        raise ValueError(
            f"opt_state holds {len(scales) or 'no'} loss_scale where one is needed: initialize "
            "the optimizer with amp.initialize or amp.loss_scaling, and give the state of one"
        )
    if loss_id != 0:
        raise ValueError(f"loss_id must be 0, the only loss of this optimizer, not {loss_id!r}")
    return jnp.asarray(loss) * scales[0]


def _find_scales(opt_state: optax.OptState) -> list[Any]:
    return [value for _, value in optax.tree.get_all_with_path(opt_state, "loss_scale")]


def _map_inexact(function: Callable[[jax.Array], jax.Array], tree: Any) -> Any:
    """Maps a function over float32 (or wider) views; integers and float0 gradients stay."""

    def visit(leaf: Any) -> Any:
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact):
            return leaf
        return function(jnp.asarray(leaf).astype(jnp.promote_types(dtype, jnp.float32)))

    return jax.tree.map(visit, tree)


def _widen(tree: Any) -> Any:
    return _map_inexact(lambda leaf: leaf, tree)


def _unscale(grads: optax.Updates, loss_scale: jax.Array) -> optax.Updates:
    return _map_inexact(lambda grad: grad / loss_scale, grads)


def _negative_zeros(grads: optax.Updates) -> optax.Updates:
    return _map_inexact(lambda grad: jnp.full_like(grad, -0.0), grads)


def _all_finite(tree: Any) -> jax.Array:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.stack([jnp.asarray(True), *(jnp.isfinite(leaf).all() for leaf in leaves)]).all()
