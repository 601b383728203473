"""Warns where epsilon or momentum would be forgotten between ``init`` and ``apply``."""

import contextlib
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass

import flax.linen as nn

from jinit.defaults.tables.layer_table import LayerTable, Row

__all__ = ["LostAtApplyWarning", "Watch", "look", "nothing_is_lost"]


class LostAtApplyWarning(UserWarning):
    """A norm layer was initialized with an epsilon or momentum that ends with the context."""


@dataclass
class Watch:
    """What was seen since a context was entered.

    Attributes:
        lasting: Whether the defaults hold at apply anyway.
        whole: Whether a whole model is running, and not only part of one.
    """

    lasting: bool = True
    whole: bool = False


_silent: ContextVar[bool] = ContextVar("jinit_nothing_is_lost", default=False)
_warned: weakref.WeakSet[type] = weakref.WeakSet()


@contextlib.contextmanager
def nothing_is_lost() -> Iterator[None]:
    """Keeps silent about models that run to be looked at only."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)


def look(module: nn.Module, rows: Sequence[Row], table: LayerTable, watching: Watch | None) -> None:
    """Warns, once per class of model, if one of the rows of a layer is lost at apply."""
    if watching is None or watching.lasting or _silent.get() or module.scope is None:
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
        f"{values} from {table.system}_defaults() only while they are active. If apply runs "
        f"outside, use {table.system}_defaults(...).wrap(model), or pass None for what Flax's "
        "own value should be",
        LostAtApplyWarning,
        stacklevel=2,
    )


def _root(module: nn.Module) -> nn.Module:
    while isinstance(module.parent, nn.Module):
        module = module.parent
    return module
