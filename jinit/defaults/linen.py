"""Applies a table of defaults to the layers of ``flax.linen``, while their methods run."""

import contextlib
import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax

from jinit.defaults.table import Derived, LayerTable, Row

__all__ = ["applied", "wrapped_class"]

# The table in force. jit's caches are keyed by it, so nothing traced under one table, or under
# none, is reused under another. Like Flax's interceptors it belongs to the current thread.
_TABLE = jax.make_user_context(None)

_ENTRY_POINTS = ("apply", "init", "init_with_output", "lazy_init")


@contextlib.contextmanager
def applied(table: LayerTable) -> Iterator[None]:
    """Puts a table in force; an outer one is out of force meanwhile."""
    # One interceptor serves all nested contexts: it looks the table up.
    installed = _TABLE.value is not None
    with (
        contextlib.nullcontext() if installed else nn.intercept_methods(_intercept),
        _TABLE(table),
    ):
        yield


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
        with applied(table):
            return method(*args, **kwargs)

    return inside


def _entry_point(entry: Callable, table: LayerTable) -> Callable:
    """Puts the table in force for a function passed as ``method=``: it is no method of ours."""

    @nn.nowrap  # it is not a method that Flax has to manage
    @functools.wraps(entry)
    def call(*args: Any, **kwargs: Any) -> Any:
        foreign = callable(kwargs.get("method"))
        with applied(table) if foreign else contextlib.nullcontext():
            return entry(*args, **kwargs)

    return call


def _intercept(
    next_fun: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext
) -> Any:
    values = _values(_TABLE.value, context, args, kwargs)
    if not values:
        return next_fun(*args, **kwargs)
    with _replaced(context.module, values):
        return next_fun(*args, **kwargs)


def _values(
    table: LayerTable, context: nn.module.InterceptorContext, args: tuple, kwargs: dict
) -> dict[str, Any]:
    """Returns the fields of the layer that its user left alone, with their values."""
    values = {}
    for row in table.rows_of(type(context.module)):
        if not _left_alone(context.module, row):
            continue
        if not isinstance(row.value, Derived):
            values[row.field] = row.value
        elif _is_call_of(row.layer, context):
            values[row.field] = row.value.derive(context.module, *args, **kwargs)
    return values


def _left_alone(module: nn.Module, row: Row) -> bool:
    # Identity, not equality: a user's own 1e-6 or lecun_normal() is another object, and so is
    # the default of a subclass that declares the field anew.
    return module.__dict__.get(row.field) is row.library_default


def _is_call_of(layer: type, context: nn.module.InterceptorContext) -> bool:
    # A subclass may take other arguments; those of the library's own method are known.
    method = context.orig_method
    function = method.func if isinstance(method, functools.partial) else method
    return function.__qualname__ == layer.__call__.__qualname__


@contextlib.contextmanager
def _replaced(module: nn.Module, values: Mapping[str, Any]) -> Iterator[None]:
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
