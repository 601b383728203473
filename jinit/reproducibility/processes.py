"""Which process of the run this is, and a key of its own."""

import sys
from typing import TYPE_CHECKING

from jinit._jax_private import backend_is_up
from jinit._kinds import is_key

if TYPE_CHECKING:
    import jax

__all__ = ["fold_in_process", "process_count", "process_index"]


def process_count() -> int:
    """The number of processes of the run; starts no backend where there is only one."""
    if not _jax_knows():
        return 1
    import jax

    return jax.process_count()


def process_index() -> int:
    """This process's number in the run; starts no backend where there is only one."""
    if not _jax_knows():
        return 0
    import jax

    return jax.process_index()


def fold_in_process(key: "jax.Array") -> "jax.Array":
    """Makes this process's key from the key that all processes share.

    ``key_k = jax.random.fold_in(key, k)`` for process ``k``: for what must differ between the
    processes, such as the augmentation of each one's own data. Parameters and dropout of a
    sharded model keep the shared key.

    Args:
        key: A typed scalar key or a legacy uint32 key, the same on all processes; traced ones
            too. ``jax.vmap`` maps it over an array of keys.

    Returns:
        A key of the same kind; process 0's differs from ``key`` too.

    Raises:
        TypeError: It is not a key.

    Example:
        >>> import jax
        >>> key = jax.random.key(42)
        >>> bool(fold_in_process(key) == jax.random.fold_in(key, 0))
        True

    Source:
        ``composer.Trainer``, whose ``seed + rank`` overflows and makes neighbouring seeds share
        their streams.
    """
    if not is_key(key):
        raise TypeError(f"The key must be one such as jax.random.key(0), not {key!r}.")
    import jax

    return jax.random.fold_in(key, jax.process_index())


def _jax_knows() -> bool:
    if "jax" not in sys.modules:
        return False
    import jax

    return backend_is_up() or jax.distributed.is_initialized()
