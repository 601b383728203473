"""Applies the active table to the layers of ``flax.linen``, while their methods run."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn

from jinit.defaults import lost_at_apply
from jinit.defaults.active import active_table, innermost
from jinit.defaults.observer import tell
from jinit.defaults.tables.layer_table import Derived, LayerTable, Row

__all__ = ["METHODS", "intercepted", "is_left_alone", "replaced"]

Context = nn.module.InterceptorContext


METHODS = nn.Module, "_call_wrapped_method"
"""What every method of a module goes through, in any thread, and where interceptors are run."""


class _Thread(threading.local):
    intercepts = False


_thread = _Thread()


def intercepted(_: type, original: Callable) -> Callable:
    """Returns what calls a module's methods, and looks at the active table before."""

    @functools.wraps(original)
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with contextlib.nullcontext() if _thread.intercepts else _intercepting():
            return original(self, *args, **kwargs)

    return call


@contextlib.contextmanager
def _intercepting() -> Iterator[None]:
    """Puts the interceptor around those of the user, who sees the values of the table then."""
    # Not for as long as a context is active, as Flax's own intercept_methods would: tasks of one
    # thread leave theirs in any order, and its stack knows one order only.
    stack = nn.module._global_interceptor_stack._storage
    stack.insert(0, _intercept)
    _thread.intercepts = True
    try:
        yield
    finally:
        _thread.intercepts = False
        stack.remove(_intercept)


def _intercept(next_fun: Callable, args: tuple, kwargs: dict, context: Context) -> Any:
    table = active_table()
    if table is None:
        return next_fun(*args, **kwargs)
    rows = _rows_left_alone(table, context)
    entry = innermost()
    lost_at_apply.look(context.module, rows, table, entry and entry.watch)
    if not rows:
        return next_fun(*args, **kwargs)
    values = {row.field: _value(row, context.module, args, kwargs) for row in rows}
    tell(context.module, values, {})
    with replaced(context.module, values):
        return next_fun(*args, **kwargs)


def _rows_left_alone(table: LayerTable, context: Context) -> list[Row]:
    """Returns the rows of the fields that the layer's user left alone, one for each."""
    rows: dict[str, Row] = {}
    for row in table.rows_of(type(context.module)):
        if row.field not in rows and _concerns(row, context):
            rows[row.field] = row
    return list(rows.values())


def _concerns(row: Row, context: Context) -> bool:
    module = context.module
    return (
        is_left_alone(row, module)
        and (row.role is None or row.role.played_by(module))
        and (not isinstance(row.value, Derived) or _is_call_of(row.layer, context))
    )


def is_left_alone(row: Row, module: nn.Module) -> bool:
    """Returns whether a layer's user passed nothing for the field of a row."""
    # Identity, not equality: a user's own 1e-6 or lecun_normal() is another object.
    untouched = module.__dict__.get(row.field) is row.library_default
    return untouched and not _is_declared_anew(type(module), row)


@functools.lru_cache(maxsize=1024)
def _is_declared_anew(cls: type, row: Row) -> bool:
    """Returns whether a subclass of the user gives the field a default, be it the same object."""
    above = cls.__mro__[: cls.__mro__.index(row.layer)]
    return any(row.field in c.__dict__ for c in above if c.__module__.partition(".")[0] != "flax")


def _is_call_of(layer: type, context: Context) -> bool:
    # A subclass may take other arguments; those of the library's own method are known.
    method = context.orig_method
    function = method.func if isinstance(method, functools.partial) else method
    return function.__qualname__ == layer.__call__.__qualname__


def _value(row: Row, module: nn.Module, args: tuple, kwargs: dict) -> Any:
    value = row.value
    return value.derive(module, *args, **kwargs) if isinstance(value, Derived) else value


@contextlib.contextmanager
def replaced(module: nn.Module, values: Mapping[str, Any]) -> Iterator[None]:
    """Sets fields of a layer, and sets them back."""
    before = {name: module.__dict__[name] for name in values}
    # object's own setattr, for a module refuses: a clone would break lifted transformations.
    for name, value in values.items():
        object.__setattr__(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            object.__setattr__(module, name, value)
