"""Which table is active: in a task of a thread, or in the whole process.

A context variable is the truth, for it follows the tasks of a thread. jit's caches look at a user
context of JAX, which knows threads alone, and is made to agree whenever a task begins to run.
"""

import threading
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import jax

from jinit.defaults.lost_at_apply import Watch
from jinit.defaults.tables.layer_table import LayerTable
from jinit.tracing import is_tracing

__all__ = ["TABLE", "Entry", "active_table", "enter", "entered", "innermost", "leave", "sync"]

TABLE = jax.make_user_context(None)
"""The table. jit's caches are keyed by it, so nothing traced under one, or none, is used again."""


class _Thread(threading.local):
    """What JAX was told in this thread; the object itself is the thread's identity."""

    def __init__(self) -> None:
        self.identity = object()
        self.table: LayerTable | None = None
        self.context: Any = None


_thread = _Thread()


@dataclass(eq=False)
class Entry:
    """A table that was made active.

    Attributes:
        table: The table.
        owner: What it is left by.
        watch: What was seen of models since.
        hooks: What lets layers look for the table; it lives as long as an entry needs it.
        thread: Where it is active: another thread may inherit the context variable, but not what
            JAX's caches look at.
    """

    table: LayerTable
    owner: object
    watch: Watch
    hooks: object
    thread: object = field(default_factory=lambda: _thread.identity)


entered: ContextVar[tuple[Entry, ...]] = ContextVar("jinit_defaults", default=())
"""The entries of a task, the innermost last. A task begins with those of the one it comes from."""


def enter(entry: Entry) -> None:
    """Makes a table active in this task, in front of those that it is in already."""
    entered.set((*entered.get(), entry))
    sync()


def leave(owner: object) -> bool:
    """Removes the innermost entry of an owner, and returns whether there was one."""
    entries = entered.get()
    mine = [i for i, entry in enumerate(entries) if entry.owner is owner]
    if not mine:
        return False
    entered.set(entries[: mine[-1]] + entries[mine[-1] + 1 :])
    sync()
    return True


def innermost(entries: tuple[Entry, ...] | None = None) -> Entry | None:
    """Returns the innermost entry of this thread among those given, or of the task."""
    entries = entered.get() if entries is None else entries
    here = (entry for entry in reversed(entries) if entry.thread is _thread.identity)
    return next(here, None)


def sync(entries: tuple[Entry, ...] | None = None) -> None:
    """Tells JAX which table is active in the task that runs, or in one with given entries."""
    entry = innermost(entries)
    table = entry.table if entry else None
    if table is _thread.table:
        return
    # Never nested: leaving shows the table of the process, if there is one.
    if _thread.context is not None:
        _thread.context.__exit__(None, None, None)
    _thread.context = None if table is None else TABLE(table)
    if _thread.context is not None:
        _thread.context.__enter__()
    _thread.table = table


def active_table() -> LayerTable | None:
    """Returns the table of the task that runs, or else that of the process, or None."""
    entry = innermost()
    table = entry.table if entry else None
    if table is not _thread.table:
        _disagreed()
    return TABLE.get_global() if table is None else table


def _disagreed() -> None:
    """Makes JAX agree after a switch that was not seen, unless a cache is being filled."""
    if is_tracing():
        raise RuntimeError(
            "this task is traced while the defaults of another one are active in its thread, and "
            "jit's caches would mix them up: jinit follows the tasks of asyncio's own event loops "
            "only. Under another loop leave keras_defaults() and the like before an await"
        )
    sync()
