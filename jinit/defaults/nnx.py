"""Applies the active table to the layers of ``flax.nnx``, while they are constructed."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

from jinit.defaults.active import active_table
from jinit.defaults.observer import tell, tell_built
from jinit.defaults.patches import Make, Target
from jinit.defaults.tables.layer_table import Derived, LayerTable

__all__ = ["constructors"]


def constructors(layers: Iterable[type]) -> dict[Target, Make]:
    """Returns the patches that let layers look at the active table while they are constructed.

    NNX calls constructors and nothing else; in a task without a table they do what they always did.
    """
    return {(layer, "__init__"): _constructor for layer in layers}


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
            construct(*args, **kwargs)  # it says better what is wrong
            return
        values = _values(active_table(), layer, given)
        tell(self, values, {**given.arguments, **values})
        construct(*args, **kwargs, **values)
        tell_built(self)

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
