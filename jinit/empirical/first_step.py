"""The first step of an optimizer that is not zero, at a learning rate of 1 and up to its sign."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jinit._arithmetic import is_float, merge
from jinit.empirical.optimizers import Optimizer, applied, like
from jinit.empirical.request import Request
from jinit.modules.roles import optimized
from jinit.tracing import Rolled
from jinit.typing import PyTree

__all__ = ["FirstStep", "first_moves", "first_step"]

_FOLLOWED = 1000  # steps of a small copy of the model


@dataclass(frozen=True, eq=False)
class FirstStep:
    """The first step that an optimizer takes, if the gradient stays, and that is not zero.

    Attributes:
        optimizer: The optimizer.
        rolled: How the leaves of the variables are stacked.
        tree: The structure of the variables.
        collection: The top-level entry of them that holds the parameters; None for all.
        trainable: For every leaf whether it is a parameter.
        moves: For every parameter, the number of the step that first moves it.
    """

    optimizer: Optimizer
    rolled: Rolled
    tree: Any
    collection: str | None
    trainable: tuple[bool, ...]
    moves: tuple[int, ...]

    def __call__(self, gradients: Sequence[Any], leaves: Sequence[Any]) -> list[Any]:
        """Returns the step of every stacked leaf; zeros for those that are no parameters.

        What the optimizer is given of a complex leaf is the direction of steepest ascent: the
        conjugate of what ``jax.grad`` returns.

        Args:
            gradients: The gradients of the stacked leaves.
            leaves: The stacked leaves.
        """
        gradients = [jnp.conj(g) if is_float(g) else g for g in gradients]
        direction, rolled = self.optimizer.direction, self.rolled
        if direction is not None:
            steps = [direction(g) if is_float(g) else g for g in gradients]
        else:
            steps = rolled.stack(self._asked(rolled.unstack(gradients), rolled.unstack(leaves)))
        moving = [self.trainable[group[0]] for group in rolled.groups]
        return [
            step if flag and is_float(leaf) else jnp.zeros_like(leaf)
            for step, leaf, flag in zip(steps, leaves, moving, strict=True)
        ]

    def _asked(self, gradients: list[Any], leaves: list[Any]) -> list[Any]:
        """Asks an optax transformation, which sees the parameters alone."""
        slopes, params = (
            optimized(jax.tree.unflatten(self.tree, part), self.trainable, self.collection)
            for part in (gradients, leaves)
        )
        state = self.optimizer.given.init(params)
        updates, new = applied(self.optimizer.given, slopes, state, params)
        steps = jax.tree.leaves(updates)
        if max(self.moves, default=1) > 1:
            steps = self._followed(slopes, params, (steps, like(new, state)))
        moving = [
            flag and is_float(leaf) for leaf, flag in zip(leaves, self.trainable, strict=True)
        ]
        return merge(leaves, steps, moving)

    def _followed(self, slopes: PyTree, params: PyTree, first: Any) -> list[Any]:
        """Takes further steps, and returns that of every leaf in which it first moves."""

        def step(number: Any, carry: Any) -> Any:
            chosen, state = carry
            updates, new = applied(self.optimizer.given, slopes, state, params)
            pairs = zip(self.moves, jax.tree.leaves(updates), chosen, strict=True)
            chosen = [jnp.where(number == move, u, old) for move, u, old in pairs]
            return chosen, like(new, state)

        return jax.lax.fori_loop(2, max(self.moves) + 1, step, first)[0]


def first_step(request: Request, rolled: Rolled, params: PyTree) -> FirstStep:
    """Returns the first step that is not zero of the optimizer that was asked for.

    Args:
        request: What is asked for.
        rolled: How the leaves of the variables are stacked.
        params: The variables, as arrays or their shapes.
    """
    return FirstStep(
        request.optimizer,
        rolled,
        jax.tree.structure(params),
        request.collection,
        request.trainable,
        first_moves(request.optimizer, optimized(params, request.trainable, request.collection)),
    )


def first_moves(optimizer: Optimizer, params: PyTree) -> tuple[int, ...]:
    """Finds which step of an optimizer is the first that moves each parameter.

    It is followed on a copy of the parameters with two entries an axis, at one gradient. An
    optimizer that accumulates gradients, or whose learning rate starts at 0, does not move at
    once.

    Args:
        optimizer: The optimizer.
        params: What it sees, as arrays or their shapes.

    Returns:
        The number of the step, from 1, for every leaf; 1 for those that never move, or where
        the optimizer does not take such a copy.

    Raises:
        ValueError: None moves within the steps that are followed, or the optimizer asks for
            more than gradients and parameters.
    """
    if optimizer.direction is not None:
        return (1,) * len(jax.tree.leaves(params))
    draw = np.random.default_rng(0)
    small = [_drawn(draw, leaf) for leaf in jax.tree.leaves(params)]
    slopes = [_drawn(draw, leaf) for leaf in jax.tree.leaves(params)]
    follow = functools.partial(_follow, optimizer.given, jax.tree.structure(params))
    try:
        with jax.ensure_compile_time_eval(), jax.debug_nans(False):
            found = [int(number) for number in jax.device_get(jax.jit(follow)(slopes, small))]
    except ValueError as error:
        if "asks for more than" in str(error):
            raise
        return (1,) * len(small)
    except Exception:  # what only arrays of the true shapes, or values of the caller's, satisfy
        return (1,) * len(small)
    if found and not any(found):
        raise ValueError(
            f"optimizer={optimizer.given!r} changes nothing in its first {_FOLLOWED} steps; pass "
            "it without the schedule or the wrapper that holds it back, such as optax.adam(1.0)"
        )
    return tuple(max(number, 1) for number in found)


def _drawn(draw: np.random.Generator, leaf: Any) -> np.ndarray:
    shape = [min(size, 2) for size in np.shape(leaf)]
    return np.asarray(1 + draw.random(shape), jnp.result_type(leaf))


def _follow(optimizer: Any, tree: Any, slopes: Sequence[Any], params: Sequence[Any]) -> Any:
    gradients, variables = jax.tree.unflatten(tree, slopes), jax.tree.unflatten(tree, params)

    def waits(carry: Any) -> Any:
        number, _, found = carry
        return (number < _FOLLOWED) & (jnp.stack(found) == 0).any()

    def step(carry: Any) -> Any:
        number, state, found = carry
        updates, new = applied(optimizer, gradients, state, variables)
        moves = [(update != 0).any() for update in jax.tree.leaves(updates)]
        numbers = [
            jnp.where((first == 0) & move, number + 1, first)
            for first, move in zip(found, moves, strict=True)
        ]
        return number + 1, like(new, state), numbers

    state = jax.tree.map(jnp.asarray, optimizer.init(variables))
    start = jnp.int32(0), state, [jnp.int32(0)] * len(params)
    return jax.lax.while_loop(waits, step, start)[2]
