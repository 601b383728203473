"""How half and float32 modules of one linen model hand values to each other."""

from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from jinit.amp.casting.dtypes import FLOAT32, cast_floating
from jinit.amp.casting.module_types import ALONE, ModuleTypes
from jinit.modules.kinds import is_framework_type

__all__ = ["cast_between_modules", "is_linen_apply", "is_norm"]


def is_linen_apply(apply_fn: Callable[..., Any]) -> bool:
    """Returns whether a function is the ``apply`` of a linen module."""
    return is_framework_type(getattr(apply_fn, "__self__", None), "flax.linen", "Module")


def cast_between_modules(
    apply_fn: Callable[..., Any],
    kept: Collection[tuple[str, ...]],
    module_types: ModuleTypes,
    half: np.dtype,
) -> Callable[..., Any]:
    """Returns a linen ``apply`` in which float32 modules leave the others half.

    What goes into a kept module is cast to float32, so that it computes in it. What a kept norm
    returns is cast to half; so is what goes into every other layer, since a kept layer that is not
    a norm, such as the last one, returns float32.

    Args:
        apply_fn: The ``apply`` of a linen module.
        kept: The paths of the modules with float32 parameters.
        module_types: The type of the module at each path.
        half: The half dtype.
    """
    parents = {path[:depth] for path in module_types for depth in range(len(path))}
    norms = {path for path in kept if path in module_types and is_norm(module_types[path])}
    key = frozenset(kept), frozenset(module_types.items()), half

    def cast(method: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        path = context.module.path
        if context.method_name != "__call__" or (path in parents and path not in kept):
            return method(*args, **kwargs)
        args, kwargs = cast_floating((args, kwargs), FLOAT32 if path in kept else half)
        outputs = method(*args, **kwargs)
        return cast_floating(outputs, half) if path in norms else outputs

    def cast_apply(*args: Any, **kwargs: Any) -> Any:
        from flax import linen as nn

        with nn.intercept_methods(cast), ALONE(key):
            return apply_fn(*args, **kwargs)

    return cast_apply


def is_norm(module_type: type) -> bool:
    """Returns whether a type of modules, or one that it derives from, is called a norm."""
    return any("norm" in base.__name__.lower() for base in module_type.__mro__)
