"""The first step of an optimizer, at a learning rate of 1 and up to its sign."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jinit._arithmetic import is_float, merge
from jinit.empirical.optimizers import applied, first_moves, like
from jinit.tracing import Rolled

if TYPE_CHECKING:
    from jinit.empirical.job import Job

__all__ = ["first_moves_of", "first_step"]

_DIRECTIONS = {"sgd": lambda g: g, "adam": jnp.sign}


def first_step(
    job: "Job", rolled: Rolled, tree: Any, moves: Sequence[int], gradients: Sequence[Any],
    leaves: Sequence[Any],
) -> list[Any]:  # fmt: skip
    """Returns the first step that an optimizer takes, if the gradient stays, and that is not zero.

    What it is given of a complex leaf is the direction of steepest ascent: the conjugate of what
    ``jax.grad`` returns.

    Args:
        job: Names the optimizer, and the leaves that are parameters.
        rolled: How leaves are stacked.
        tree: The structure of the variables.
        moves: What ``first_moves_of`` returned.
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
            _transformed(job, tree, moves, rolled.unstack(gradients), rolled.unstack(leaves))
        )
    moving = [job.trainable[group[0]] for group in rolled.groups]
    return [
        step if flag and is_float(leaf) else jnp.zeros_like(leaf)
        for step, leaf, flag in zip(steps, leaves, moving, strict=True)
    ]


def first_moves_of(job: "Job", params: Any) -> tuple[int, ...]:
    """Returns the number of the first step of every parameter that is not zero.

    Raises:
        ValueError: The optimizer never moves, or cannot be followed.
    """
    if isinstance(job.optimizer, str):
        return ()
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, params))
    return first_moves(job.optimizer, _parameters(job, shapes))


def _parameters(job: "Job", tree: Any) -> Any:
    """Returns what an optimizer sees of a tree like the variables."""
    inner = tree if job.collection is None else tree[job.collection]
    return jax.tree.map(lambda leaf: leaf if is_float(leaf) else None, inner)


def _transformed(
    job: "Job", tree: Any, moves: Sequence[int], gradients: list[Any], leaves: list[Any]
) -> list[Any]:
    """Applies an optax transformation, which sees the parameters alone."""
    slopes, params = (
        _parameters(job, jax.tree.unflatten(tree, part)) for part in (gradients, leaves)
    )
    state = job.optimizer.init(params)
    updates, new = applied(job.optimizer, slopes, state, params)
    steps = jax.tree.leaves(updates)
    if max(moves, default=1) > 1:
        steps = _followed(job, moves, slopes, params, (steps, like(new, state)))
    moving = [flag and is_float(leaf) for leaf, flag in zip(leaves, job.trainable, strict=True)]
    return merge(leaves, steps, moving)


def _followed(job: "Job", moves: Sequence[int], slopes: Any, params: Any, first: Any) -> list[Any]:
    """Takes further steps, and returns that of every leaf in which it first moves."""

    def step(number: Any, carry: Any) -> Any:
        chosen, state = carry
        updates, new = applied(job.optimizer, slopes, state, params)
        pairs = zip(moves, jax.tree.leaves(updates), chosen, strict=True)
        chosen = [jnp.where(number == move, u, old) for move, u, old in pairs]
        return chosen, like(new, state)

    return jax.lax.fori_loop(2, max(moves) + 1, step, first)[0]
