"""Applies the table in force to the layers of ``flax.nnx``, while they are constructed."""

import contextlib
import functools
import inspect
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from flax import nnx

from jinit.defaults.in_force import table_in_force
from jinit.defaults.observed import tell
from jinit.defaults.table import Derived, LayerTable

__all__ = ["constructing"]

_lock = threading.RLock()
_users: Counter[type] = Counter()
_own: dict[type, Any] = {}  # the constructor that a class defines itself, or None


@contextlib.contextmanager
def constructing(table: LayerTable) -> Iterator[None]:
    """Lets layers that are constructed meanwhile look at the table in force.

    NNX calls constructors and nothing else, so those of the table's classes are exchanged, until
    no thread needs them; in a thread without a table they do what they always did.
    """
    layers = [layer for layer in table.layers if issubclass(layer, nnx.Module)]
    with _lock:
        for layer in layers:
            _exchange(layer)
    try:
        yield
    finally:
        with _lock:
            for layer in layers:
                _restore(layer)


def _exchange(layer: type) -> None:
    _users[layer] += 1
    if _users[layer] == 1:
        _own[layer] = layer.__dict__.get("__init__")
        layer.__init__ = _constructor(layer, _own[layer])


def _restore(layer: type) -> None:
    _users[layer] -= 1
    if _users[layer] == 0:
        own = _own.pop(layer)
        if own is None:
            del layer.__init__
        else:
            layer.__init__ = own


def _constructor(layer: type, own: Callable | None) -> Callable:
    """Returns a constructor that adds the arguments which the table has for the class."""
    signature = inspect.signature(layer.__init__)

    @functools.wraps(layer.__init__)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        # A class without a constructor leaves the arguments to its base's, exchanged or not.
        construct = own.__get__(self) if own else super(layer, self).__init__
        table = table_in_force()
        if table is not None:
            values = _values(table, layer, signature, (self, *args), kwargs)
            tell(self, values, table)
            kwargs = {**kwargs, **values}
        construct(*args, **kwargs)

    return __init__


def _values(
    table: LayerTable, layer: type, signature: inspect.Signature, args: tuple, kwargs: dict
) -> dict[str, Any]:
    """Returns the arguments of the constructor that its caller left out."""
    try:
        arguments = signature.bind(*args, **kwargs)
    except TypeError:
        return {}  # the constructor says it better
    rows = [r for r in table if r.layer is layer and r.field not in arguments.arguments]
    arguments.apply_defaults()
    everything = SimpleNamespace(**arguments.arguments)
    return {
        row.field: row.value.derive(everything) if isinstance(row.value, Derived) else row.value
        for row in rows
    }
