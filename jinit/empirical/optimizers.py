"""What a user may pass as an optimizer, and which of its steps is the first that is not zero."""

import functools
import numbers
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["NAMES", "applied", "check_optimizer", "first_moves", "like"]

NAMES = ("adam", "sgd")
_FOLLOWED = 1000  # steps of a small copy of the model


def check_optimizer(optimizer: Any) -> None:
    """Raises ValueError unless it is one of ``NAMES`` or an optax transformation."""
    if isinstance(optimizer, str) and optimizer in NAMES:
        return
    transforms = hasattr(optimizer, "init") and hasattr(optimizer, "update")
    if transforms and not isinstance(optimizer, type) and not hasattr(optimizer, "tx"):
        _check_hash(optimizer)
        return
    raise ValueError(f"optimizer={optimizer!r} is not known; {_remedy(optimizer)}")


def _check_hash(optimizer: Any) -> None:
    try:
        hash(optimizer)
    except TypeError as error:
        raise ValueError(
            f"optimizer={optimizer!r} cannot be hashed, so no program can be compiled for it; "
            "pass optax.GradientTransformation(optimizer.init, optimizer.update)"
        ) from error


def _remedy(optimizer: Any) -> str:
    name = getattr(optimizer, "__name__", type(optimizer).__name__)
    if isinstance(optimizer, str):
        known = optimizer.lower().strip().replace("optax.", "")
        if known in NAMES:
            return f"pass {known!r}"
        return f"pass 'adam', 'sgd' or an optax transformation, such as optax.{_adamw(known)}(1.0)"
    if hasattr(optimizer, "tx") and not isinstance(optimizer, type):
        return f"it is a {name} that holds one: pass its .tx, without the learning rate"
    if isinstance(optimizer, numbers.Number):
        return "a learning rate is no part of it: pass 'adam', 'sgd' or an optax transformation"
    if callable(optimizer):
        return (
            f"call it, as in optimizer={name}(1.0): pass 'adam', 'sgd' or an optax transformation"
        )
    return "pass 'adam', 'sgd' or an optax transformation"


def _adamw(name: str) -> str:
    """Returns a name that optax has, or adamw."""
    import optax

    return name if name.isidentifier() and hasattr(optax, name) else "adamw"


def applied(optimizer: Any, slopes: Any, state: Any, params: Any) -> tuple[Any, Any]:
    """Returns an optimizer's step and new state.

    Raises:
        ValueError: It asks for more than gradients and parameters.
    """
    try:
        return optimizer.update(slopes, state, params)
    except TypeError as error:
        if "required keyword-only argument" not in str(error):
            raise
        raise ValueError(
            f"optimizer={optimizer!r} asks for more than gradients and parameters, such as the "
            f"loss ({error}); pass it without its line search, for example "
            "optax.lbfgs(1.0, linesearch=None) or optax.scale_by_lbfgs()"
        ) from error


def first_moves(optimizer: Any, params: Any) -> tuple[int, ...]:
    """Finds which step of an optimizer is the first that moves each parameter.

    It is followed on a copy of the parameters with two entries an axis, at one gradient. An
    optimizer that accumulates gradients, or whose learning rate starts at 0, does not move at
    once.

    Args:
        optimizer: An optax transformation.
        params: What it sees, as arrays or their shapes.

    Returns:
        The number of the step, from 1, for every leaf; 1 for those that never move, or where
        the optimizer does not take such a copy.

    Raises:
        ValueError: None moves within the steps that are followed, or the optimizer asks for
            more than gradients and parameters.
    """
    draw = np.random.default_rng(0)
    small = [_drawn(draw, leaf) for leaf in jax.tree.leaves(params)]
    slopes = [_drawn(draw, leaf) for leaf in jax.tree.leaves(params)]
    follow = functools.partial(_follow, optimizer, jax.tree.structure(params))
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
            f"optimizer={optimizer!r} changes nothing in its first {_FOLLOWED} steps; pass it "
            "without the schedule or the wrapper that holds it back, such as optax.adam(1.0)"
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


def like(tree: Any, other: Any) -> Any:
    """Keeps the dtypes of an optimizer's state, which some promote in their first update."""
    return jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), tree, other)
