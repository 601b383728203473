"""The first step of an optimizer, at a learning rate of 1 and up to its sign."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jinit.empirical.numbers import is_float, merge
from jinit.tracing import Rolled

if TYPE_CHECKING:
    from jinit.empirical.job import Job

__all__ = ["check_optimizer", "first_step"]

_DIRECTIONS = {"sgd": lambda g: g, "adam": jnp.sign}


def check_optimizer(optimizer: Any) -> None:
    """Raises ValueError unless ``first_step`` can use the optimizer."""
    known = isinstance(optimizer, str) and optimizer in _DIRECTIONS
    if not known and not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise ValueError(
            f"optimizer={optimizer!r} is not known; pass 'adam', 'sgd' or an optax transformation"
        )


def first_step(
    job: "Job", rolled: Rolled, tree: Any, gradients: Sequence[Any], leaves: Sequence[Any]
) -> list[Any]:
    """Returns the first step an optimizer takes.

    What it is given of a complex leaf is the direction of steepest ascent: the conjugate of what
    ``jax.grad`` returns.

    Args:
        job: Names the optimizer, and the leaves that are parameters.
        rolled: How leaves are stacked.
        tree: The structure of the variables.
        gradients: The gradients of the stacked leaves.
        leaves: The stacked leaves.

    Returns:
        The step of every stacked leaf; zeros for those that are no parameters.
    """
    gradients = [jnp.conj(g) if is_float(g) else g for g in gradients]
    if isinstance(job.optimizer, str):
        steps = [_DIRECTIONS[job.optimizer](g) if is_float(g) else g for g in gradients]
    else:
        steps = rolled.stack(
            _transformed(job, tree, rolled.unstack(gradients), rolled.unstack(leaves))
        )
    moving = [job.trainable[group[0]] for group in rolled.groups]
    return [
        step if flag and is_float(leaf) else jnp.zeros_like(leaf)
        for step, leaf, flag in zip(steps, leaves, moving, strict=True)
    ]


def _transformed(job: "Job", tree: Any, gradients: list[Any], leaves: list[Any]) -> list[Any]:
    """Applies an optax transformation, which sees the parameters alone."""
    slopes, params = jax.tree.unflatten(tree, gradients), jax.tree.unflatten(tree, leaves)
    if job.collection is not None:
        slopes, params = slopes[job.collection], params[job.collection]
    slopes, params = jax.tree.map(lambda leaf: leaf if is_float(leaf) else None, (slopes, params))
    updates, _ = job.optimizer.update(slopes, job.optimizer.init(params), params)
    moving = [flag and is_float(leaf) for leaf, flag in zip(leaves, job.trainable, strict=True)]
    return merge(leaves, jax.tree.leaves(updates), moving)
