"""Arrays on meshes: the mesh in which a model is measured, and where scales are laid."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jinit.tracing import is_tracing

__all__ = ["entered_mesh", "in_its_mesh", "laid_like", "sharded_as"]


def entered_mesh(tree: Any) -> contextlib.AbstractContextManager[Any]:
    """Enters the mesh that arrays are explicitly sharded over, unless one is entered already.

    A program finds it by its operands, but the derivatives by an operand that is on no mesh, such
    as a dummy input, do not.
    """
    if not jax.sharding.get_abstract_mesh().empty:
        return contextlib.nullcontext()
    for leaf in jax.tree.leaves(tree):
        mesh = _mesh_of(leaf)
        if AxisType.Explicit in getattr(mesh, "axis_types", ()):
            if isinstance(mesh, jax.sharding.Mesh) and not is_tracing():
                return jax.set_mesh(mesh)
            abstract: Any = getattr(mesh, "abstract_mesh", mesh)
            return jax.sharding.use_abstract_mesh(abstract)
    return contextlib.nullcontext()


def _mesh_of(leaf: Any) -> Any:
    """Returns the mesh of an array, abstract if it is traced, or None."""
    placed = jax.typeof(leaf) if isinstance(leaf, Tracer) else leaf
    return getattr(getattr(placed, "sharding", None), "mesh", None)


def in_its_mesh(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Lets the backward rule of a custom_vjp run in the mesh of its cotangent, the last argument.

    JAX calls it in that of the caller, which has axes of other types where the forward rule ran
    inside ``jax.sharding.auto_axes``.
    """

    @functools.wraps(backward)
    def run(*args: Any) -> Any:
        mesh, entered = jax.typeof(args[-1]).sharding.mesh, jax.sharding.get_abstract_mesh()
        if mesh.empty or entered.empty or mesh == entered:
            return backward(*args)
        with jax.sharding.use_abstract_mesh(mesh):
            return backward(*args)

    return run


def laid_like(values: Sequence[Any], leaves: Sequence[Any]) -> list[jax.Array]:
    """Lays every leaf's scale, in float32, where the leaf is.

    Args:
        values: Scales of shape (), or with leading axes of their leaf, some of length 1. Traced
            ones are laid out by the program that they belong to.
        leaves: The leaves. A scale is divided over a mesh along the axes that it shares with its
            leaf, and replicated along all others.
    """
    return [_laid_like(value, leaf) for value, leaf in zip(values, leaves, strict=True)]


def _laid_like(value: Any, leaf: Any) -> jax.Array:
    known = isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer) and leaf.committed
    if isinstance(value, Tracer) or not known:
        return jnp.asarray(value, jnp.float32)
    value = np.asarray(value, np.float32)
    sharding = _sharding_of(leaf, value.shape)
    if sharding.is_fully_addressable:
        return jax.device_put(value, sharding)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def _sharding_of(leaf: jax.Array, shape: tuple[int, ...]) -> Any:
    """Returns the sharding of a leaf for a scale of it."""
    if not isinstance(leaf.sharding, NamedSharding):
        return leaf.sharding
    axes = [*leaf.sharding.spec, *[None] * leaf.ndim]
    shared = zip(axes, shape, leaf.shape, strict=False)
    spec = [axis if size == whole else None for axis, size, whole in shared]
    return NamedSharding(leaf.sharding.mesh, PartitionSpec(*spec))


def sharded_as(value: jax.Array, other: Any) -> jax.Array:
    """Returns an array that is sharded over explicit axes as another of its shape is."""
    sharding = jax.typeof(other).sharding
    explicit = AxisType.Explicit in sharding.mesh.axis_types
    return jax.reshard(value, sharding) if explicit else value
