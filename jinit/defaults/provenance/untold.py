"""Finds layers of which nobody can tell whether a default was passed to them."""

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax

from jinit.defaults.active import active_table
from jinit.defaults.linen import is_left_alone
from jinit.defaults.passed import is_noticed

__all__ = ["untold"]

# What Flax's other defaults are made by returns a new object at every call.
_SHARED = (jax.nn.initializers.zeros, jax.nn.initializers.ones)


def untold(model: nn.Module) -> str | None:
    """Returns a note about the layers of a model that were constructed outside, or None.

    Layers that the model makes itself, while it runs, are constructed inside.
    """
    table = active_table() or getattr(type(model), "defaults_table", None)
    if table is None:
        return None
    found = [
        f"{path}{row.field}"
        for path, layer in _layers(model, "")
        for row in table.rows_of(type(layer))
        if row.library_default in _SHARED
        and is_left_alone(row, layer)
        and not is_noticed(layer)
        and getattr(layer, "use_bias", True)
    ]
    if not found:
        return None
    return (
        f"default, or passed as the same object: {', '.join(found)}. Of a layer constructed "
        f"outside {table.system}_defaults() nobody can tell, and it counts as left alone; "
        "construct it inside, or pass jinit.initializers.zeros()"
    )


def _layers(value: Any, path: str) -> Iterator[tuple[str, nn.Module]]:
    """Yields the modules that a module holds in its fields, and itself, each with its path."""
    if isinstance(value, nn.Module):
        yield path, value
        for name, held in value.__dict__.items():
            if name in value.__dataclass_fields__ and name != "parent":
                yield from _layers(held, f"{path}{name}.")
    elif isinstance(value, list | tuple):
        for i, held in enumerate(value):
            yield from _layers(held, f"{path.removesuffix('.')}[{i}].")
    elif isinstance(value, dict):
        for key, held in value.items():
            yield from _layers(held, f"{path.removesuffix('.')}[{key!r}].")
