"""Which table is in force, in a thread or in the whole process."""

import jax

from jinit.defaults.table import LayerTable

__all__ = ["TABLE", "table_in_force"]

TABLE = jax.make_user_context(None)
"""The table. jit's caches are keyed by it, so nothing traced under one, or none, is used again."""


def table_in_force() -> LayerTable | None:
    """Returns the table of the current thread, or else that of the process, or None."""
    return TABLE.value
