"""Attributes of classes that are exchanged as long as somebody needs it."""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["Make", "Patches", "Target"]

Target = tuple[type, str]
"""A class and the name of its attribute."""

Make = Callable[[type, Any], Any]
"""Takes the class and its own attribute, or None, and returns what stands in its place."""

_MISSING = object()

_lock = threading.Lock()
_users: dict[Target, int] = {}
_own: dict[Target, Any] = {}
_dropped: deque[tuple[Target, ...]] = deque()


class Patches:
    """Exchanges attributes until the object is forgotten; what it exchanges may be shared.

    A task inherits the contexts of the one that made it, and may outlive them: what a context
    needs cannot end with its block, but when nothing refers to it any more.

    Args:
        targets: What makes the new attribute, by class and name.
    """

    def __init__(self, targets: Mapping[Target, Make]) -> None:
        with _lock:
            for target, make in targets.items():
                _exchange(target, make)
        self._finalizer = weakref.finalize(self, _drop, tuple(targets))
        self._finalizer.atexit = False
        _settle()

    def close(self) -> None:
        """Ends the exchange at once, where no task can need it longer."""
        self._finalizer()


def _exchange(target: Target, make: Make) -> None:
    cls, name = target
    _users[target] = _users.get(target, 0) + 1
    if _users[target] == 1:
        _own[target] = cls.__dict__.get(name, _MISSING)
        own = None if _own[target] is _MISSING else _own[target]
        setattr(cls, name, make(cls, own))


def _drop(targets: tuple[Target, ...]) -> None:
    # A finalizer may interrupt the very thread that holds the lock: then that one settles.
    _dropped.append(targets)
    _settle()


def _settle() -> None:
    while _dropped and _lock.acquire(blocking=False):
        try:
            while _dropped:
                for target in _dropped.popleft():
                    _restore(target)
        finally:
            _lock.release()


def _restore(target: Target) -> None:
    cls, name = target
    _users[target] -= 1
    if _users[target]:
        return
    del _users[target]
    own = _own.pop(target)
    if own is _MISSING:
        delattr(cls, name)
    else:
        setattr(cls, name, own)
