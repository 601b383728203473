"""Warns where epsilon or momentum would be forgotten between ``init`` and ``apply``."""

import contextlib
import threading
import warnings
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import flax.linen as nn

from jinit.defaults.table import LayerTable, Row

__all__ = ["LostAtApplyWarning", "begin", "watch"]


class LostAtApplyWarning(UserWarning):
    """A norm layer was initialised with an epsilon or momentum that ends with the context."""


@dataclass
class _Watch:
    """What was seen since a context was entered.

    Attributes:
        lasting: Whether the defaults hold at apply anyway.
        whole: Whether a whole model is running, and not only part of one.
    """

    lasting: bool = True
    whole: bool = False


class _Current(threading.local):
    def __init__(self) -> None:
        self.watch = _Watch()


_current = _Current()
_warned: weakref.WeakSet[type] = weakref.WeakSet()


@contextlib.contextmanager
def begin(lasts: bool) -> Iterator[None]:
    """Begins to watch the models that run, unless the defaults last."""
    before, _current.watch = _current.watch, _Watch(lasts)
    try:
        yield
    finally:
        _current.watch = before


def watch(module: nn.Module, rows: Sequence[Row], table: LayerTable) -> None:
    """Warns, once per class of model, if one of the rows of a layer is lost at apply."""
    watching = _current.watch
    if watching.lasting or module.scope is None:
        return
    # A context that a model opens itself is there at apply too: then its top has not been seen.
    watching.whole = watching.whole or not module.scope.path
    lost = [row for row in rows if row.at_apply and row.value != row.library_default]
    if lost and watching.whole and module.is_initializing():
        _warn(module, lost, table)


def _warn(module: nn.Module, lost: Sequence[Row], table: LayerTable) -> None:
    model = _root(module)
    if type(model) in _warned:
        return
    _warned.add(type(model))
    values = " and ".join(f"{row.field}={row.value}" for row in lost)
    warnings.warn(
        f"{type(model).__name__}: the {type(module).__name__} at {'/'.join(module.path)!r} takes "
        f"{values} from {table.system}_defaults() only while they are in force. If apply runs "
        f"outside, use {table.system}_defaults(...).wrap(model), or pass None for what Flax's "
        "own value should be",
        LostAtApplyWarning,
        stacklevel=2,
    )


def _root(module: nn.Module) -> nn.Module:
    while isinstance(module.parent, nn.Module):
        module = module.parent
    return module
