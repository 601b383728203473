"""Training bfloat16 parameters without masters: steps too small to show are taken by chance."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jinit.amp.arguments import check_optimizer, check_state, shown
from jinit.amp.scaling.half_updates import is_half, needs_params, step_to

__all__ = ["StochasticRoundingState", "stochastic_rounding"]


class StochasticRoundingState(NamedTuple):
    """Holds the state of ``stochastic_rounding``; every array is a leaf.

    Args:
        step: Int32 of shape (), the steps so far, from which the random bits follow.
        inner_state: The state of the inner transformation.
    """

    step: jax.Array
    inner_state: optax.OptState


def stochastic_rounding(
    inner: optax.GradientTransformation, seed: int = 0
) -> optax.GradientTransformationExtraArgs:
    """Rounds what an optimizer makes of bfloat16 parameters up or down at random, unbiased.

    With the update u of a parameter p, and a < b the bfloat16 numbers around x = p + u::

        p' = b with probability (x - a) / (b - a), else a        E[p'] = x

    Rounded to nearest instead, an update below half a unit in the last place (0.2 % to 0.4 % of
    the parameter) is lost every time. A step that loss scaling skips changes nothing.

    Args:
        inner: The optimizer, with loss scaling; put ``stochastic_rounding`` outermost.
        seed: The random bits follow from it, the step and the leaf's place in the tree.

    Returns:
        The transformation, with a ``StochasticRoundingState``. Parameters of 32 bits and more
        are stepped as they are.

    Raises:
        ValueError: From ``update``, if it is called without parameters.
        TypeError: If ``inner`` is not an optax transformation or ``seed`` not an integer; from
            ``update`` if the state is another's; from ``init`` and ``update``, if a parameter is
            float16, whose range needs masters.

    Example:
        >>> params = jnp.ones(10_000, "bfloat16")
        >>> tx = stochastic_rounding(optax.sgd(0.001))
        >>> state = tx.init(params)
        >>> for _ in range(100):
        ...     updates, state = tx.update(jnp.ones_like(params), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> round(float(params.astype("float32").mean()), 2)
        0.9

    Source:
        Gupta et al., "Deep Learning with Limited Numerical Precision" (2015),
        https://arxiv.org/abs/1502.02551.
    """
    check_optimizer(inner, alike=True)
    _check_seed(seed)
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> StochasticRoundingState:
        _refuse_float16(params)
        return StochasticRoundingState(jnp.zeros((), jnp.int32), inner.init(params))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, StochasticRoundingState]:
        params = needs_params("stochastic_rounding", params)
        check_state("stochastic_rounding", state, StochasticRoundingState)
        _refuse_float16(params)
        steps, inner_state = inner.update(updates, state.inner_state, params, **extra)
        leaves, structure = jax.tree.flatten(params)
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        keys = [jax.random.fold_in(key, number) for number in range(len(leaves))]
        steps = jax.tree.map(_rounded, params, steps, jax.tree.unflatten(structure, keys))
        step = jnp.asarray(optax.safe_increment(state.step))
        return steps, StochasticRoundingState(step, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _check_seed(seed: Any) -> None:
    dtype = getattr(seed, "dtype", None)
    integer = isinstance(seed, int) if dtype is None else jnp.issubdtype(dtype, jnp.integer)
    if not integer:
        raise TypeError(f"seed must be an integer, from which the bits follow, not {shown(seed)}")


def _rounded(param: Any, step: jax.Array, key: jax.Array) -> jax.Array:
    if not is_half(param):
        return step
    exact = param.astype(jnp.float32) + step.astype(jnp.float32)
    return step_to(_round_at_random(exact, key), param)


def _round_at_random(value: jax.Array, key: jax.Array) -> jax.Array:
    """Rounds float32 to bfloat16: of 16 random bits added below, the carry decides."""
    bits = lax.bitcast_convert_type(value, jnp.uint32)
    noise = jax.random.bits(key, value.shape, jnp.uint16).astype(jnp.uint32)
    upper = ((bits + noise) >> 16).astype(jnp.uint16)
    rounded = lax.bitcast_convert_type(upper, jnp.bfloat16)
    return jnp.where(jnp.isfinite(value), rounded, value.astype(jnp.bfloat16))


def _refuse_float16(params: optax.Params) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    found = [jax.tree_util.keystr(p) for p, x in leaves if jnp.result_type(x) == jnp.float16]
    if found:
        raise TypeError(
            f"stochastic_rounding takes bfloat16 parameters, but float16 are {', '.join(found)}: "
            "use amp.master_weights"
        )
