"""Whether the devices can compute in a half dtype."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["check_backend"]


def check_backend(half_dtype: np.dtype) -> None:
    """Checks that the default backend compiles products in a half dtype.

    Args:
        half_dtype: The dtype.

    Raises:
        ValueError: If it does not.
    """
    backend = jax.default_backend()
    reason = _failure(half_dtype, backend)
    if reason:
        raise ValueError(
            f"the backend {backend!r} cannot compute in {half_dtype}, choose another half_dtype "
            f"or opt_level 'O0': {reason}"
        )


@functools.cache
def _failure(half_dtype: np.dtype, backend: str) -> str:
    matrix = jax.ShapeDtypeStruct((8, 8), half_dtype)
    try:
        _product.lower(matrix).compile()
    except Exception as error:  # each backend has its own
        return str(error) or type(error).__name__
    return ""


@jax.jit
def _product(matrix: jax.Array) -> jax.Array:
    return jnp.tanh(matrix @ matrix)
