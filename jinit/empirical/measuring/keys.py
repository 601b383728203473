"""Random keys of a program that runs a model more than once on the same ones."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["cloned"]


def cloned(values: Sequence[Any]) -> list[Any]:
    """Returns values whose typed random keys JAX does not take for those that were used before.

    A pass repeats what the model drew on the pass before, which ``jax.debug_key_reuse`` would
    refuse.
    """
    return [jax.random.clone(value) if _is_typed_key(value) else value for value in values]


def _is_typed_key(value: Any) -> bool:
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
