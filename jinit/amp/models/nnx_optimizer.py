"""An ``nnx.Optimizer`` with another transformation, for another copy of its module."""

from typing import Any

import optax

from jinit.modules.kinds import is_framework_type

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
        TypeError: It is of a subclass, which may step otherwise.
    """
    from flax import nnx

    if type(optimizer) is not nnx.Optimizer:
        name = type(optimizer).__name__
        raise TypeError(
            f"amp.initialize makes an nnx.Optimizer of another one, not {name}: write "
            f"model, tx = amp.initialize(model, optimizer.tx, ...), and {name}(model, tx, ...)"
        )

    made = nnx.Optimizer(module, tx, wrt=optimizer.wrt, graph=optimizer.graph)
    if not int(optimizer.step[...]):
        return made
    # Wrappers hand on float32 whatever is stored, so that the inner state has the same dtypes.
    nnx.update(_inner(made.opt_state), nnx.state(optimizer.opt_state))
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
