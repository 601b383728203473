"""Puts a table in force: in a thread, in a module's methods, in the whole process."""

import contextlib
import functools
import inspect
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn

from jinit.defaults import lasting
from jinit.defaults.in_force import TABLE
from jinit.defaults.linen import intercepting, intercepting_everywhere
from jinit.defaults.nnx import constructing
from jinit.defaults.table import LayerTable
from jinit.defaults.undo import Undo

__all__ = ["applied", "applied_everywhere", "wrapped_class"]

_ENTRY_POINTS = ("apply", "init", "init_with_output", "lazy_init")


@contextlib.contextmanager
def applied(table: LayerTable, *, lasts: bool) -> Iterator[None]:
    """Puts a table in force in this thread; an outer one is out of force meanwhile.

    Args:
        table: The table.
        lasts: Whether it is sure to be in force when what is initialised inside is applied.
    """
    with intercepting(), constructing(table.layers), lasting.begin(lasts), TABLE(table):
        yield


_lock = threading.Lock()
_everywhere: list[LayerTable] = []
_hooks = contextlib.ExitStack()


def applied_everywhere(table: LayerTable) -> Undo:
    """Puts a table in force in all threads, where they have none of their own."""
    stack = contextlib.ExitStack()
    stack.enter_context(constructing(table.layers))
    with _lock:
        if not _everywhere:
            _hooks.enter_context(intercepting_everywhere())
        _everywhere.append(table)
        TABLE.set_global(table)
    return Undo(functools.partial(_end, table, stack))


def _end(table: LayerTable, stack: contextlib.ExitStack) -> None:
    with _lock:
        # Whatever the order in which they are undone, the newest of the others counts.
        newest = len(_everywhere) - 1 - _everywhere[::-1].index(table)
        del _everywhere[newest]
        TABLE.set_global(_everywhere[-1] if _everywhere else None)
        if not _everywhere:
            _hooks.close()
    stack.close()


@functools.cache
def wrapped_class(cls: type[nn.Module], table: LayerTable) -> type[nn.Module]:
    """Returns a subclass of the same name whose every method runs with the table in force."""
    # Flax marks the methods it manages; a transformed class hands its calls to the class below,
    # so the table must be in force before any of them begins.
    body: dict[str, Any] = {
        name: _inside(method, table)
        for name, method in inspect.getmembers(cls, inspect.isfunction)
        if hasattr(method, "method_handler_wrapped")
    }
    body.update({name: _entry_point(getattr(cls, name), table) for name in _ENTRY_POINTS})
    for name in ("__module__", "__qualname__", "__doc__"):
        body[name] = getattr(cls, name)
    return types.new_class(cls.__name__, (cls,), exec_body=lambda namespace: namespace.update(body))


def _inside(method: Callable, table: LayerTable) -> Callable:
    @functools.wraps(method)
    def inside(*args: Any, **kwargs: Any) -> Any:
        with applied(table, lasts=True):
            return method(*args, **kwargs)

    return inside


def _entry_point(entry: Callable, table: LayerTable) -> Callable:
    """Puts the table in force for a function passed as ``method=``: it is no method of ours."""

    @nn.nowrap  # it is not a method that Flax has to manage
    @functools.wraps(entry)
    def call(*args: Any, **kwargs: Any) -> Any:
        foreign = callable(kwargs.get("method"))
        with applied(table, lasts=True) if foreign else contextlib.nullcontext():
            return entry(*args, **kwargs)

    return call
