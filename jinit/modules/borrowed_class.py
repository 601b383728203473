"""Another class for a module: one of the same fields, which calls in another way."""

import contextlib
from collections.abc import Iterator
from typing import Any

__all__ = ["being", "set_class"]


@contextlib.contextmanager
def being(module: Any, cls: type) -> Iterator[None]:
    """Gives a module another class for a while; it is one that was made for this call."""
    given = type(module)
    set_class(module, cls)
    try:
        yield
    finally:
        set_class(module, given)


def set_class(module: Any, cls: type) -> None:
    """Gives a module another class, past what its framework makes of setting attributes."""
    object.__setattr__(module, "__class__", cls)
