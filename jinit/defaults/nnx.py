"""Applies the table in force to the layers of ``flax.nnx``, while they are constructed."""

import contextlib
import functools
import inspect
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
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
def constructing(classes: Iterable[type]) -> Iterator[None]:
    """Lets layers that are constructed meanwhile look at the table in force.

    NNX calls constructors and nothing else, so those of the NNX classes are exchanged, until no
    thread needs them; in a thread without a table they do what they always did.
    """
    layers = [layer for layer in classes if issubclass(layer, nnx.Module)]
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


@functools.lru_cache
def _constructor(layer: type, own: Callable | None) -> Callable:
    """Returns a constructor that adds the arguments which the table has for the class."""
    signature = inspect.signature(layer.__init__)

    @functools.wraps(layer.__init__)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        # A class without a constructor leaves the arguments to its base's, exchanged or not.
        construct = own.__get__(self) if own else super(layer, self).__init__
        try:
            given = signature.bind(self, *args, **kwargs)
        except TypeError:
            return construct(*args, **kwargs)  # it says better what is wrong
        values = _values(table_in_force(), layer, given)
        tell(self, values, {**given.arguments, **values})
        return construct(*args, **kwargs, **values)

    return __init__


def _values(
    table: LayerTable | None, layer: type, given: inspect.BoundArguments
) -> Mapping[str, Any]:
    """Returns the arguments of the constructor that its caller left out; fills in the others."""
    rows = [r for r in table or () if r.layer is layer and r.field not in given.arguments]
    given.apply_defaults()
    arguments = SimpleNamespace(**given.arguments)
    return {
        row.field: row.value.derive(arguments) if isinstance(row.value, Derived) else row.value
        for row in rows
    }
