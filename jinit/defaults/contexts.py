"""Makes a table active: in a task, in a module's methods, in the whole process."""

import contextlib
import functools
import inspect
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
from flax import nnx

from jinit.defaults.active import TABLE, Entry, enter, leave
from jinit.defaults.hooks import hooks_of
from jinit.defaults.lost_at_apply import Watch
from jinit.defaults.tables.layer_table import LayerTable
from jinit.defaults.undo import Undo

__all__ = ["applied_everywhere", "begin", "constructing_class", "wrapped_class"]

_ENTRY_POINTS = ("apply", "init", "init_with_output", "lazy_init")


def begin(table: LayerTable, owner: object, *, lasts: bool) -> None:
    """Makes a table active in this task; an outer one is not while it is.

    Args:
        table: The table.
        owner: What ``leave`` is called with.
        lasts: Whether it is sure to be active when what is initialized inside is applied.
    """
    enter(Entry(table, owner, Watch(lasts), hooks_of(table)))


@contextlib.contextmanager
def applied(table: LayerTable) -> Iterator[None]:
    """Makes a table active in a call."""
    owner = object()
    begin(table, owner, lasts=True)
    try:
        yield
    finally:
        leave(owner)


_lock = threading.Lock()
_everywhere: list[tuple[LayerTable, object]] = []


def applied_everywhere(table: LayerTable) -> Undo:
    """Makes a table active in all threads and tasks, where they have none of their own."""
    with _lock:
        _everywhere.append((table, hooks_of(table)))
        TABLE.set_global(table)
    return Undo(functools.partial(_end, table))


def _end(table: LayerTable) -> None:
    with _lock:
        # Whatever the order in which they are undone, the newest of the others counts.
        tables = [each for each, _ in _everywhere]
        del _everywhere[len(tables) - 1 - tables[::-1].index(table)]
        TABLE.set_global(_everywhere[-1][0] if _everywhere else None)


@functools.cache
def wrapped_class(cls: type[nn.Module], table: LayerTable) -> type[nn.Module]:
    """Returns a subclass of the same name whose every method runs with the table active."""
    # Flax marks the methods it manages; a transformed class hands its calls to the class below,
    # so the table must be active before any of them begins.
    body: dict[str, Any] = {
        name: _inside(method, table)
        for name, method in inspect.getmembers(cls, inspect.isfunction)
        if hasattr(method, "method_handler_wrapped")
    }
    body.update({name: _entry_point(getattr(cls, name), table) for name in _ENTRY_POINTS})
    return _subclass(cls, table, body)


@functools.cache
def constructing_class(cls: type[nnx.Module], table: LayerTable) -> type[nnx.Module]:
    """Returns a subclass of the same name whose constructor runs with the table active."""

    @functools.wraps(cls.__init__)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        with applied(table):
            # Looked up now: contexts exchange the constructors of layers while they last.
            super(made, self).__init__(*args, **kwargs)

    options = {} if _is_pytree(cls) else {"pytree": False}
    made = _subclass(cls, table, {"__init__": __init__}, options)
    return made


def _is_pytree(cls: type) -> bool:
    """Returns whether JAX sees the leaves of a class's modules; a subclass has to say it anew."""
    return getattr(cls, "_pytree__is_pytree", True)


def _subclass(
    cls: type, table: LayerTable, body: Mapping[str, Any], options: dict[str, Any] | None = None
) -> Any:
    names = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    body = {**body, **names, "defaults_table": table}
    return types.new_class(
        cls.__name__, (cls,), options, exec_body=lambda namespace: namespace.update(body)
    )


def _inside(method: Callable, table: LayerTable) -> Callable:
    @functools.wraps(method)
    def inside(*args: Any, **kwargs: Any) -> Any:
        with applied(table):
            return method(*args, **kwargs)

    return inside


def _entry_point(entry: Callable, table: LayerTable) -> Callable:
    """Makes the table active for a function passed as ``method=``: it is no method of ours."""

    @nn.nowrap  # it is not a method that Flax has to manage
    @functools.wraps(entry)
    def call(*args: Any, **kwargs: Any) -> Any:
        foreign = callable(kwargs.get("method"))
        with applied(table) if foreign else contextlib.nullcontext():
            return entry(*args, **kwargs)

    return call
