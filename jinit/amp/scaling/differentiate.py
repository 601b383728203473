"""Differentiation of a loss by what a user holds: arrays, or modules of NNX and Equinox."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jinit.modules.nnx_calls import is_object
from jinit.tracing import ARRAYS

__all__ = ["differentiated"]


def differentiated(
    loss_fn: Callable[..., tuple[jax.Array, Any]], argnums: Any, args: Sequence[Any], kwargs: Any
) -> tuple[Any, Any]:
    """Returns of a loss function of (loss, aux) what it returned, and its gradients.

    - With an object of NNX among the arguments: by ``nnx.value_and_grad``, of its ``nnx.Param``.
    - With leaves that are not arrays among the differentiated, as Equinox has them: of its
      floating arrays, with None in the place of every other leaf.
    - Else by ``jax.value_and_grad``.
    """
    if any(map(is_object, jax.tree.leaves((args, kwargs), is_leaf=is_object))):
        from flax import nnx

        return nnx.value_and_grad(loss_fn, argnums=argnums, has_aux=True)(*args, **kwargs)
    numbers = argnums if isinstance(argnums, tuple | list) else (argnums,)
    chosen = [args[number] for number in numbers if number < len(args)]
    if all(isinstance(leaf, ARRAYS) for leaf in jax.tree.leaves(chosen)):
        return jax.value_and_grad(loss_fn, argnums, has_aux=True)(*args, **kwargs)
    trained = [jax.tree.map(lambda x: x if is_trained(x) else None, arg) for arg in chosen]

    def of_trained(trained: list[Any]) -> tuple[jax.Array, Any]:
        filled = list(args)
        for number, arg, part in zip(numbers, chosen, trained, strict=True):
            filled[number] = combined(part, arg)
        return loss_fn(*filled, **kwargs)

    found, grads = jax.value_and_grad(of_trained, has_aux=True)(trained)
    return found, tuple(grads) if isinstance(argnums, tuple | list) else grads[0]


def is_trained(leaf: Any) -> bool:
    """Returns whether a leaf is an array that gradients are taken of."""
    return isinstance(leaf, ARRAYS) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def combined(part: Any, whole: Any) -> Any:
    """Returns a tree with the leaves of a part of it that are not None in their places."""
    return jax.tree.map(
        lambda new, old: old if new is None else new, part, whole, is_leaf=lambda x: x is None
    )
