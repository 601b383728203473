"""Tracing: from a function of pytrees to a jaxpr of flat arrays."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend import core as jex

__all__ = ["TracedFunction", "trace"]


@dataclass(frozen=True)
class TracedFunction:
    """A function traced at the shapes and dtypes of its arguments.

    Attributes:
        jaxpr: The open jaxpr, whose inputs are the arguments' leaves in order.
        consts: The arrays the function closed over.
        in_avals: Shape and dtype of each input.
        out_avals: Shape and dtype of each output.
        out_tree: The structure of the result.
    """

    jaxpr: jex.Jaxpr
    consts: Sequence[Any]
    in_avals: Sequence[Any]
    out_avals: Sequence[Any]
    out_tree: Any

    def unflatten(self, leaves: Sequence[Any]) -> Any:
        """Builds the result from its leaves."""
        return jax.tree.unflatten(self.out_tree, leaves)


def trace(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> TracedFunction:
    """Traces ``fn`` without running it.

    Args:
        fn: A function of pytrees of arrays.
        *args: Its arguments; arrays or ``jax.ShapeDtypeStruct``.
        **kwargs: Its keyword arguments, likewise.

    Returns:
        The traced function, whose inputs are ``jax.tree.leaves((args, kwargs))``.

    Example:
        >>> import jax.numpy as jnp
        >>> traced = trace(lambda p, x: x @ p["w"], {"w": jnp.ones((3, 2))}, jnp.ones((4, 3)))
        >>> [eqn.primitive.name for eqn in traced.jaxpr.eqns]
        ['dot_general']
    """
    closed, shape = jax.make_jaxpr(fn, return_shape=True)(*args, **kwargs)
    out_tree = jax.tree.structure(shape)
    return TracedFunction(closed.jaxpr, closed.consts, closed.in_avals, closed.out_avals, out_tree)
