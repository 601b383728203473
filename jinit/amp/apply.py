"""Applying a function under a policy: casts on the way in and on the way out."""

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any

from jinit.amp.autocast import autocast
from jinit.amp.policy import Policy, cast_floating

__all__ = ["MixedPrecisionApply", "find_apply_fn"]


class MixedPrecisionApply:
    """Calls an apply function under a policy.

    Two are equal, and hash alike, if their functions and policies are: passed to ``jax.jit`` as
    a static argument, the second compiles nothing.

    Args:
        apply_fn: ``apply_fn(variables, *inputs, **kwargs)``.
        policy: What is cast.
    """

    def __init__(self, apply_fn: Callable[..., Any], policy: Policy):
        self.apply_fn = apply_fn
        self.policy = policy
        functools.update_wrapper(self, apply_fn, updated=())

    def __call__(self, variables: Any, *inputs: Any, **kwargs: Any) -> Any:
        """Casts variables and inputs, applies the function and casts its outputs.

        Args:
            variables: The parameters, or a mapping of collections with ``"params"`` among them.
            *inputs: The function's inputs, arrays or trees.
            **kwargs: Its keywords. With Flax's ``mutable=`` the function returns a pair, of which
                the second, the updated variables, keeps its dtypes.

        Returns:
            What the function returns, in the policy's output dtype.
        """
        return self.run(self.function_for(variables), variables, inputs, kwargs)

    def run(self, function: Callable[..., Any], variables: Any, inputs: Any, kwargs: Any) -> Any:
        """Calls a function on cast variables and inputs, and casts its outputs."""
        variables = self.policy.cast_to_compute(variables)
        if self.policy.cast_model_type is not None:
            inputs, kwargs = cast_floating((inputs, kwargs), self.policy.cast_model_type)
        outputs = function(variables, *inputs, **kwargs)
        if kwargs.get("mutable", False) is False:
            return self.policy.cast_to_output(outputs)
        outputs, updated = outputs
        return self.policy.cast_to_output(outputs), updated

    def function_for(self, variables: Any) -> Callable[..., Any]:
        """Returns the function as it is, or under autocast where operations are to be cast."""
        if not self.policy.patch_functions and not self.policy.keeps_any(variables):
            return self.apply_fn
        return self._autocast

    @functools.cached_property
    def _autocast(self) -> Callable[..., Any]:
        # Behind a parameter that stays float32, products would become float32 as well.
        ops = self.policy.ops
        if not self.policy.patch_functions:
            ops = dataclasses.replace(ops, float32=frozenset())
        return autocast(self.apply_fn, self.policy, ops=ops)

    def __reduce__(self) -> Any:
        return type(self), (self.apply_fn, self.policy)  # without what was compiled

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MixedPrecisionApply):
            return NotImplemented
        return (self.apply_fn, self.policy) == (other.apply_fn, other.policy)

    def __hash__(self) -> int:
        return hash((self.apply_fn, self.policy))

    def __repr__(self) -> str:
        owner = getattr(self.apply_fn, "__self__", None)
        name = getattr(self.apply_fn, "__qualname__", type(self.apply_fn).__qualname__)
        if owner is not None:
            name = f"{type(owner).__qualname__}.{self.apply_fn.__name__}"
        return f"<{name} at {self.policy.opt_level} with {self.policy.half_dtype}>"


def find_apply_fn(model: Any) -> Callable[..., Any]:
    """Finds the apply function of a model.

    Args:
        model: An ``apply_fn(variables, *inputs, **kwargs)``, or a linen module.

    Returns:
        The function, or the module's ``apply``.

    Raises:
        TypeError: If the model is neither.
        ValueError: If it went through ``initialize`` before.
    """
    if isinstance(model, MixedPrecisionApply):
        raise ValueError(f"the model {model!r} was initialized twice")
    if _is_instance(model, "flax.linen"):
        return model.apply
    if not callable(model) or _is_instance(model, "flax.nnx"):
        raise TypeError(
            "a model must be an apply_fn(variables, *inputs) or a linen module, "
            f"not {type(model).__name__} (split an NNX module, and apply its graph definition)"
        )
    return model


def _is_instance(model: Any, framework: str) -> bool:
    """Tells a framework's modules without importing it: they exist only where it is imported."""
    module = sys.modules.get(framework)
    return module is not None and isinstance(model, module.Module)
