"""How the norms of NNX modules hand on what a half function declares: half, where given half.

A norm with float32 statistics promotes what it is given, and declares a float32 result. Its dtype
is chosen anew afterwards, in the traced program; but a loop of NNX compares what is declared, and
there a half carry may not come back as float32.
"""

import contextlib
import functools
import types
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jinit.amp.casting.dtypes import cast_floating, holds_float32
from jinit.amp.casting.linen_casts import is_norm
from jinit.modules.borrowed_class import being
from jinit.modules.kinds import is_nnx_module

__all__ = ["cast_after_norms"]


def cast_after_norms(fn: Callable[..., Any], half: np.dtype) -> Callable[..., Any]:
    """Returns a function of NNX modules, which are made for each call, with norms that return half.

    Args:
        fn: The function.
        half: The half dtype.
    """

    @functools.wraps(fn)
    def cast_fn(*args: Any, **kwargs: Any) -> Any:
        with contextlib.ExitStack() as stack:
            for norm in _norms((args, kwargs)):
                stack.enter_context(being(norm, _narrowing(type(norm), half)))
            return fn(*args, **kwargs)

    return cast_fn


def _norms(tree: Any) -> list[Any]:
    """Lists the norms among a tree's NNX modules that hold float32."""

    def is_module(node: Any) -> bool:
        return is_nnx_module(node)

    modules = [node for node in jax.tree.leaves(tree, is_leaf=is_module) if is_module(node)]
    if not modules:
        return []
    from flax import nnx

    parts = {id(part): part for module in modules for _, part in nnx.iter_modules(module)}
    return [
        part
        for part in parts.values()
        if is_norm(type(part)) and holds_float32(nnx.to_pure_dict(nnx.state(part)))
    ]


@functools.cache
def _narrowing(cls: type, half: np.dtype) -> type:
    """Returns a norm's class that returns half where it is given half."""

    def __call__(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = cls.__call__(self, x, *args, **kwargs)
        return cast_floating(outputs, half) if getattr(x, "dtype", None) == half else outputs

    names = {"__call__": __call__, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return types.new_class(cls.__name__, (cls,), {}, lambda namespace: namespace.update(names))
