"""Functions as keys of the compilation cache."""

import functools
from collections.abc import Callable
from typing import Any

__all__ = ["CachedFunction"]


class CachedFunction:
    """A function as a key of the compilation cache.

    Methods of equal modules are equal, though Python compares them by identity; what cannot be
    hashed, such as a module with a list field, counts as itself.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        functools.update_wrapper(self, fn, updated=())
        self.fn = fn
        self.parts = tuple(
            _key(part) for part in (getattr(fn, "__self__", None), getattr(fn, "__func__", fn))
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function."""
        return self.fn(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CachedFunction) and self.parts == other.parts

    def __hash__(self) -> int:
        return hash(self.parts)


def _key(part: Any) -> Any:
    try:
        hash(part)
    except TypeError:
        return id(part)
    return part
