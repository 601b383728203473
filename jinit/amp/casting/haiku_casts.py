"""How the norms of Haiku hand on what a half function declares: half, where given half.

As those of NNX they promote what they are given; a convolution, which takes operands of one dtype,
could not follow one.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from jinit.amp.casting.dtypes import cast_floating
from jinit.amp.casting.linen_casts import is_norm

__all__ = ["cast_after_haiku_norms"]


def cast_after_haiku_norms(fn: Callable[..., Any], half: np.dtype) -> Callable[..., Any]:
    """Returns a function that may apply what Haiku transformed, with norms that return half.

    Args:
        fn: The function.
        half: The half dtype.
    """
    haiku: Any = sys.modules.get("haiku")  # where it is not imported, the function has none of it
    if haiku is None:
        return fn

    def narrowed(method: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        outputs = method(*args, **kwargs)
        norm = context.method_name == "__call__" and is_norm(type(context.module))
        given = getattr(args[0], "dtype", None) if norm and args else None
        return cast_floating(outputs, half) if given == half else outputs

    @functools.wraps(fn)
    def cast_fn(*args: Any, **kwargs: Any) -> Any:
        with haiku.intercept_methods(narrowed):
            return fn(*args, **kwargs)

    return cast_fn
