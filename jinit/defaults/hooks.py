"""What lets layers look for the active table, wherever they run."""

import asyncio
import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any

from flax import nnx

from jinit.defaults.active import entered, sync
from jinit.defaults.linen import METHODS, intercepted
from jinit.defaults.nnx import constructors
from jinit.defaults.passed import initializations
from jinit.defaults.patches import Patches
from jinit.defaults.tables.layer_table import LayerTable

__all__ = ["hooks_of"]

_TASKS = asyncio.Handle, "_run"
"""What asyncio's event loops run, each with the context variables of its task."""

_lock = threading.RLock()
_living: weakref.WeakValueDictionary[LayerTable, Patches] = weakref.WeakValueDictionary()


def hooks_of(table: LayerTable) -> Patches:
    """Returns the hooks that a table needs: they are there as long as the object is kept."""
    with _lock:
        found = _living.get(table)
        if found is None:
            found = _living[table] = _hooks(table)
    return found


def _hooks(table: LayerTable) -> Patches:
    of_nnx = [layer for layer in table.layers if issubclass(layer, nnx.Module)]
    of_linen = [layer for layer in table.layers if not issubclass(layer, nnx.Module)]
    return Patches(
        {
            METHODS: intercepted,
            _TASKS: _synced,
            **initializations(of_linen),
            **constructors(of_nnx),
        }
    )


def _synced(_: type, run: Callable) -> Callable:
    """Returns what runs a handle under the table of its task, and leaves that of the loop."""

    @functools.wraps(run)
    def _run(self: Any) -> Any:
        sync(self._context.get(entered, ()))
        try:
            return run(self)
        finally:
            sync()

    return _run
