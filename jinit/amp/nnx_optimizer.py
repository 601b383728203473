"""An ``nnx.Optimizer`` with another transformation, for another copy of its module."""

from typing import Any

import jax
import optax

from jinit._trees import is_framework_type

__all__ = ["is_nnx_optimizer", "optimizer_at"]


def is_nnx_optimizer(value: Any) -> bool:
    """Returns whether a value is an ``nnx.Optimizer``."""
    return is_framework_type(value, "flax.nnx", "Optimizer")


def optimizer_at(optimizer: Any, tx: optax.GradientTransformation, module: Any) -> Any:
    """Returns an optimizer of a module that goes on where another one stands.

    Args:
        optimizer: The other one, which is left as it is.
        tx: What wraps its transformation.
        module: The module that it is to step.

    Raises:
        ValueError: It has taken steps, and its state does not fit the module's parameters.
    """
    from flax import nnx

    made = nnx.Optimizer(module, tx, wrt=optimizer.wrt, graph=optimizer.graph)
    if not int(optimizer.step[...]):
        return made
    old, new = nnx.as_pure(optimizer.opt_state), nnx.as_pure(_inner(made.opt_state))
    if jax.tree.map(_kind, old) != jax.tree.map(_kind, new):
        raise ValueError(
            f"the nnx.Optimizer has taken {int(optimizer.step[...])} steps with a state that does "
            "not fit parameters stored in half: make a new one, or pass a level that stores "
            "float32, 'O0' to 'O2'"
        )
    nnx.update(_inner(made.opt_state), nnx.state(old))
    made.step[...] = optimizer.step[...]
    return made


def _inner(state: Any) -> Any:
    """Returns the state of the transformation that loss scaling and masters wrap."""
    while hasattr(state, "inner_state") and hasattr(state, "_fields"):
        wraps = {"loss_scale", "master_params"} & set(state._fields)
        if not wraps:
            return state
        state = state.inner_state
    return state


def _kind(leaf: Any) -> Any:
    return jax.numpy.shape(leaf), jax.numpy.result_type(leaf)
