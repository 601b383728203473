"""Updates that bring half parameters to given values through ``optax.apply_updates``."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

__all__ = ["is_half", "keep", "needs_params", "same_bits", "step_to"]


def is_half(leaf: Any) -> bool:
    """Returns whether a value is a 16-bit floating array."""
    dtype = jnp.result_type(leaf)
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits == 16


def keep(value: jax.Array) -> jax.Array:
    """Keeps XLA from undoing a cast down together with the cast up that follows."""
    return lax.optimization_barrier(value)


def same_bits(first: jax.Array, second: jax.Array) -> jax.Array:
    """Compares half arrays bit by bit, which tells the zeros apart and finds nan equal to nan."""
    bits = (lax.bitcast_convert_type(value, jnp.uint16) for value in (first, second))
    return jnp.equal(*bits)


def step_to(wanted: jax.Array, param: jax.Array) -> jax.Array:
    """Returns the float32 difference of two half arrays; -0.0, which adds nothing, of equals."""
    difference = wanted.astype(jnp.float32) - param.astype(jnp.float32)
    return jnp.where(same_bits(wanted, param), -0.0, difference)


def needs_params(name: str, params: optax.Params | None) -> optax.Params:
    """Raises ValueError where an update is called without parameters."""
    if params is None:
        raise ValueError(f"{name} needs the parameters: call update(grads, state, params)")
    return params
