"""Lets a reader of a model learn which layers ran, and which values the defaults gave them."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

__all__ = ["Observer", "observing", "tell"]

Observer = Callable[[Any, Mapping[str, Any], Mapping[str, Any]], None]
"""Takes a layer, the values that the active table gave it, and an NNX layer's arguments."""


class _Current(threading.local):
    observer: Observer | None = None


_current = _Current()


@contextlib.contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Tells an observer of the layers of this thread."""
    before, _current.observer = _current.observer, observer
    try:
        yield
    finally:
        _current.observer = before


def tell(layer: Any, values: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Tells the observer, if there is one."""
    if _current.observer is not None:
        _current.observer(layer, values, arguments)
