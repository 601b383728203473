"""What a half dtype holds: of a known number the answer, of a parameter the nearest value."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

__all__ = ["fits", "is_lost", "within_range"]


def fits(constant: float, half: np.dtype) -> bool:
    """Returns whether a constant is rounded neither to zero nor to infinity in the half dtype."""
    limits = jnp.finfo(half)
    normal = float(limits.tiny) <= abs(constant) <= float(limits.max)
    return constant == 0 or not math.isfinite(constant) or normal


def is_lost(constant: Any, half: np.dtype) -> bool:
    """Returns whether a known number becomes zero or infinite in a half dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> is_lost(1e-12, jnp.dtype("float16")), is_lost(1e-12, jnp.dtype("bfloat16"))
        (True, False)
    """
    if not isinstance(constant, float) or not np.isfinite(constant) or constant == 0:
        return False
    with np.errstate(over="ignore"):
        rounded = np.float32(np.asarray(constant, np.float32).astype(half))
    return bool(rounded == 0 or np.isinf(rounded))


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
