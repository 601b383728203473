"""The dtypes that a rule must leave as the program declares them."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from jinit.tracing._jax import aval_of

__all__ = ["cast_back", "cast_to_declared", "dtypes_of"]


def dtypes_of(values: Sequence[Any]) -> tuple[Any, ...]:
    """Returns the dtypes of arrays or their avals; None for a token, which has none."""
    return tuple(getattr(value, "dtype", None) for value in values)


def cast_back(values: Sequence[Any], dtypes: Sequence[Any]) -> list[Any]:
    """Casts values that a rule left in another float dtype."""
    return [
        lax.convert_element_type(value, dtype)
        if dtype is not None
        and jnp.issubdtype(dtype, jnp.floating)
        and jnp.result_type(value) != dtype
        else value
        for value, dtype in zip(values, dtypes, strict=True)
    ]


def cast_to_declared(values: Sequence[Any], atoms: Sequence[Any]) -> list[Any]:
    """Casts the values of an equation's operands, or a jaxpr's results, to what it declares."""
    return cast_back(values, dtypes_of([aval_of(atom) for atom in atoms]))
