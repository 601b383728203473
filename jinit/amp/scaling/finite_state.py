"""What a forward pass returns beside the loss, kept as it was where the step is skipped."""

from typing import Any

import jax
import jax.numpy as jnp

from jinit._trees import leaf_paths
from jinit.amp.scaling.scaled_gradients import UnscaledGrads, all_finite
from jinit.typing import PyTree

__all__ = ["where_finite"]


def where_finite(grads: PyTree, new: PyTree, old: PyTree) -> PyTree:
    """Returns the new state where gradients are finite, and the old one where they are not.

    A step with gradients that overflowed is skipped by the optimizer, which leaves its own state
    and the parameters as they were. What the forward pass moved is not the optimizer's: batch
    statistics would keep what overflowed for ever. With f = "every gradient is finite"::

        state = where(f, new, old)         leaf by leaf

    ``value_and_grad`` does this by itself for the objects of NNX that it is given.

    Args:
        grads: What ``value_and_grad`` or ``unscale`` returned, or any tree of gradients.
        new: A tree of arrays, such as the collections that ``apply(..., mutable=...)`` returns.
        old: The tree before the step, of the same structure and shapes.

    Returns:
        A tree of that structure.

    Raises:
        ValueError: ``new`` and ``old`` are not of one structure; the leaves that only one of them
            has are named.

    Example:
        >>> grads = UnscaledGrads({"w": jnp.array([jnp.inf])}, {0: jnp.float32(1)})
        >>> where_finite(grads, {"mean": jnp.array([jnp.nan])}, {"mean": jnp.array([0.5])})
        {'mean': Array([0.5], dtype=float32)}

    Source:
        What Flax's ``DynamicScale`` asks its users to write with ``is_fin``.
    """
    finite = grads.finite if isinstance(grads, UnscaledGrads) else all_finite(grads)
    if jax.tree.structure(new) != jax.tree.structure(old):
        raise ValueError(
            f"new and old must be trees of one structure, but {_difference(new, old)}; pass of "
            "both what the step before had"
        )

    def chosen(new: Any, old: Any) -> Any:
        return new if new is old else jnp.where(finite, new, old)

    return jax.tree.map(chosen, new, old)


def _difference(new: PyTree, old: PyTree) -> str:
    paths = {"new": set(leaf_paths(new)), "old": set(leaf_paths(old))}
    only = {name: sorted(paths[name] - paths[other]) for name, other in _PAIRS}
    said = [f"only {name} has {', '.join(found[:5])}" for name, found in only.items() if found]
    return " and ".join(said) or f"one is {type(new).__name__}, the other {type(old).__name__}"


_PAIRS = (("new", "old"), ("old", "new"))
