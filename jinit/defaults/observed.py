"""Lets a reader of a model learn which values the defaults gave to which layer."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jinit.defaults.table import LayerTable

__all__ = ["observing", "tell"]

Observer = Callable[[Any, Mapping[str, Any], LayerTable], None]
"""Takes a layer, the values of its fields and the table they are from."""


class _Current(threading.local):
    observer: Observer | None = None


_current = _Current()


@contextlib.contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Tells an observer of every value that is given in this thread."""
    before, _current.observer = _current.observer, observer
    try:
        yield
    finally:
        _current.observer = before


def tell(layer: Any, values: Mapping[str, Any], table: LayerTable) -> None:
    """Tells the observer, if there is one."""
    if _current.observer is not None:
        _current.observer(layer, values, table)
