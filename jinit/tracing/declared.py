"""What a rule must leave as the program declares it: dtypes, and the mesh of what crosses."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from jinit.tracing._jax import aval_of

__all__ = ["cast_back", "cast_to_declared", "dtypes_of", "in_context_mesh"]


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


def in_context_mesh(tree: Any) -> Any:
    """Brings values of another mesh to the one that is entered, replicated over it.

    The axes of a mesh are of another type inside ``jax.sharding.auto_axes``, in which JAX itself
    computes some operations.
    """
    mesh = jax.sharding.get_abstract_mesh()

    def brought(value: Any) -> Any:
        own = jax.typeof(value).sharding.mesh
        known = not (own.empty or mesh.empty or own == mesh)
        explicit = AxisType.Explicit in (*own.axis_types, *mesh.axis_types)
        return jax.reshard(value, PartitionSpec()) if known and explicit else value

    return tree if mesh.empty else jax.tree.map(brought, tree)
