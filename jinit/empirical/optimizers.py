"""What a user may pass as an optimizer, resolved to what a calibration must know of it."""

import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["Optimizer", "applied", "like", "resolve_optimizer"]


@dataclass(frozen=True)
class Optimizer:
    """An optimizer, as its first step shows it.

    Attributes:
        given: What the user passed: a name, or an optax transformation.
        direction: The step at a learning rate of 1 and up to its sign, of a gradient and entry
            by entry; None where the transformation must be asked.
        degree: The step is homogeneous of this degree in the gradient: 1 where it is as large, 0
            where its size does not count. None where it must be measured.
    """

    given: Any
    direction: Callable[[jax.Array], jax.Array] | None = None
    degree: int | None = None


def _itself(gradient: jax.Array) -> jax.Array:
    return gradient


_KNOWN = {
    "adam": Optimizer("adam", jnp.sign, degree=0),
    "sgd": Optimizer("sgd", _itself, degree=1),
}


def resolve_optimizer(optimizer: Any) -> Optimizer:
    """Returns what is known of an optimizer.

    Raises:
        ValueError: It is neither a known name nor an optax transformation.
    """
    if isinstance(optimizer, str) and optimizer in _KNOWN:
        return _KNOWN[optimizer]
    transforms = hasattr(optimizer, "init") and hasattr(optimizer, "update")
    if transforms and not isinstance(optimizer, type) and not hasattr(optimizer, "tx"):
        _check_hash(optimizer)
        return Optimizer(optimizer)
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
        if known in _KNOWN:
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


def like(tree: Any, other: Any) -> Any:
    """Keeps the dtypes of an optimizer's state, which some promote in their first update."""
    return jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), tree, other)
