"""What lets layers look for the active table, wherever they run."""

import threading
import weakref

from flax import nnx

from jinit.defaults.linen import METHODS, intercepted
from jinit.defaults.nnx import constructors
from jinit.defaults.passed import initializations
from jinit.defaults.patches import Patches
from jinit.defaults.table import LayerTable
from jinit.defaults.tasks import TASKS, synced

__all__ = ["hooks_of"]

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
            TASKS: synced,
            **initializations(of_linen),
            **constructors(of_nnx),
        }
    )
