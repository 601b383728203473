"""Lets a reader of a model learn which layers ran, and which values the defaults gave them."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

__all__ = ["Built", "Observer", "observing", "tell", "tell_built"]

Observer = Callable[[Any, Mapping[str, Any], Mapping[str, Any]], None]
"""Takes a layer, the values that the active table gave it, and an NNX layer's arguments."""


Built = Callable[[Any], None]
"""Takes an NNX layer whose constructor has run."""


class _Current(threading.local):
    observer: Observer | None = None
    built: Built | None = None


_current = _Current()


@contextlib.contextmanager
def observing(observer: Observer, built: Built | None = None) -> Iterator[None]:
    """Tells an observer of the layers of this thread, and another of NNX layers once built."""
    before = _current.observer, _current.built
    _current.observer, _current.built = observer, built
    try:
        yield
    finally:
        _current.observer, _current.built = before


def tell(layer: Any, values: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Tells the observer, if there is one."""
    if _current.observer is not None:
        _current.observer(layer, values, arguments)


def tell_built(layer: Any) -> None:
    """Tells the observer of built layers, if there is one."""
    if _current.built is not None:
        _current.built(layer)
