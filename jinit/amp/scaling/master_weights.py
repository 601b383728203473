"""Half parameters with float32 masters in the optimizer's state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jinit.amp.arguments import check_optimizer, check_state
from jinit.amp.scaling.half_updates import is_half, keep, needs_params, same_bits, step_to

__all__ = ["MasterWeightsState", "master_weights"]


class MasterWeightsState(NamedTuple):
    """Holds the state of ``master_weights``; every array is a leaf.

    Args:
        master_params: The parameters in float32.
        inner_state: The state of the inner transformation.
    """

    master_params: optax.Params
    inner_state: optax.OptState


def master_weights(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Lets an optimizer step float32 masters of half parameters.

    With masters m and half parameters p = half(m), the inner transformation sees m and the
    gradients in float32, and its update u leads to::

        m' = m + u        p' = half(m')

    After every step p equals m cast down, bit for bit: the updates are float32(p') - p, which
    ``optax.apply_updates`` adds in float32. Where that sum misses p' (a step that shrinks a
    parameter several thousandfold) the master takes the value that was reached. Parameters that
    are not half are stepped as without masters.

    Put it outermost, ``master_weights(loss_scaling(chain(...)))``: what changes its updates
    parts the parameters from their masters. A step that loss scaling skips changes neither.

    Args:
        inner: The optimizer, with loss scaling.

    Returns:
        The transformation, with a ``MasterWeightsState``. Its ``init`` takes the parameters in
        half, or in float32 if the masters are not to be rounded first; its ``update`` takes the
        half ones.

    Raises:
        TypeError: If ``inner`` is not an optax transformation, or from ``update`` if the state is
            another's.
        ValueError: From ``update``, if it is called without parameters.

    Example:
        >>> params = jnp.bfloat16([1.0, 2.0])
        >>> tx = master_weights(optax.sgd(0.001))
        >>> state = tx.init(params)
        >>> for _ in range(5):
        ...     updates, state = tx.update(jnp.ones(2, "bfloat16"), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> [round(x, 4) for x in state.master_params.tolist()], params.tolist()
        ([0.995, 1.995], [0.99609375, 1.9921875])

    Source:
        The master weights of NVIDIA apex's O2, and of Micikevicius et al., "Mixed Precision
        Training" (2018), https://arxiv.org/abs/1710.03740.
    """
    check_optimizer(inner, alike=True)
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> MasterWeightsState:
        masters = jax.tree.map(_widen, params)
        return MasterWeightsState(masters, inner.init(masters))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, MasterWeightsState]:
        params = needs_params("master_weights", params)
        check_state("master_weights", state, MasterWeightsState)
        masters, inner_state = state.master_params, state.inner_state
        grads = jax.tree.map(_widen, updates)
        steps, inner_state = inner.update(grads, inner_state, masters, **extra)
        pairs = jax.tree.map(_advance, params, masters, steps)
        outer = jax.tree.structure(params)
        steps, masters = jax.tree.transpose(outer, jax.tree.structure((0, 0)), pairs)
        return steps, MasterWeightsState(masters, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _widen(leaf: Any) -> Any:
    """Casts half to float32, into an array of its own: parameters may be donated."""
    return jnp.asarray(leaf).astype(jnp.float32) if is_half(leaf) else leaf


def _advance(param: Any, master: jax.Array, step: jax.Array) -> tuple[Any, Any]:
    """Returns the update of a parameter, and its master after it."""
    if not is_half(param):
        return step, optax.apply_updates(param, step)
    moved = master + step
    wanted = keep(moved.astype(param.dtype))
    update = step_to(wanted, param)
    reached = keep((param.astype(jnp.float32) + update).astype(param.dtype))
    return update, jnp.where(same_bits(reached, wanted), moved, reached.astype(jnp.float32))
