"""Tells JAX, before asyncio runs a task, which table is active in it."""

import asyncio
import functools
from collections.abc import Callable
from typing import Any

from jinit.defaults.active import entered, sync

__all__ = ["TASKS", "synced"]

TASKS = asyncio.Handle, "_run"
"""What asyncio's event loops run, each with the context variables of its task."""


def synced(_: type, run: Callable) -> Callable:
    """Returns what runs a handle under the table of its task, and leaves that of the loop."""

    @functools.wraps(run)
    def _run(self: Any) -> Any:
        sync(self._context.get(entered, ()))
        try:
            return run(self)
        finally:
            sync()

    return _run
