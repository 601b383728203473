"""Parameters that a half dtype does not hold."""

from typing import Any

import jax.numpy as jnp
from jax import lax

__all__ = ["within_range"]


def within_range(parameter: Any, half: Any) -> Any:
    """Keeps a parameter from becoming infinite or zero in half: a mask of -1e9, an eps of 1e-9.

    Its value is not known where the program is made, as a literal's is; so its dtype cannot follow
    from it, and it becomes the nearest number that does what it is there for.
    """
    if jnp.result_type(parameter) == half:
        return parameter
    limits = jnp.finfo(half)
    largest, least = float(limits.max), float(limits.smallest_subnormal)
    tiny = (parameter != 0) & (jnp.abs(parameter) < least)
    beyond = jnp.isfinite(parameter) & (tiny | (jnp.abs(parameter) > largest))
    nearest = jnp.copysign(jnp.where(tiny, least, largest), parameter)
    # its gradient is that of the parameter: a bias of 1e-8, as after a first step, goes on learning
    moved = jnp.where(beyond, parameter, 0)
    moved = lax.stop_gradient(nearest) + (moved - lax.stop_gradient(moved))
    return jnp.where(beyond, moved, parameter)
