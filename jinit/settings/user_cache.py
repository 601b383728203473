"""Folders of the user's own, which nobody else can write to.

What JAX reads from its compilation cache it runs: who can write there can run code as the user.
"""

import os
import stat
from pathlib import Path

__all__ = ["private_directory", "private_path", "writable_by_others"]


def private_directory(name: str) -> Path:
    """Makes a folder in the user's cache, or checks the one that is there.

    Args:
        name: The folder's name below ``jinit`` in ``XDG_CACHE_HOME``, by default ``~/.cache``.

    Raises:
        PermissionError: Others than the user can write there.
        OSError: It cannot be made.
    """
    path = private_path(name)
    path.parent.parent.mkdir(parents=True, exist_ok=True)
    for folder in (path.parent, path):
        folder.mkdir(mode=0o700, exist_ok=True)
    culprit = writable_by_others(path)
    if culprit:
        raise PermissionError(
            f"Others than you can write to {str(culprit)!r}, and what is cached there is run: "
            f"run chmod go-w on it, or name another folder."
        )
    return path


def private_path(name: str) -> Path:
    """Where ``private_directory`` makes the folder of this name.

    Raises:
        OSError: The user has no home, and XDG_CACHE_HOME does not name another place.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    try:
        return base.expanduser().absolute() / "jinit" / name
    except RuntimeError as error:
        raise OSError(
            f"There is no folder for a cache: {error} Set HOME or XDG_CACHE_HOME."
        ) from None


def writable_by_others(path: Path) -> Path | None:
    """The first folder from ``path`` upwards in which somebody else could put other files.

    A group is trusted with the folders above, whose group is often the user's own; root is
    trusted everywhere, and so are the folders with the sticky bit, where nobody can replace what
    another made.
    """
    if not hasattr(os, "getuid"):  # Windows guards a user's folders by other means
        return None
    path = path.resolve()
    for folder, forbidden in [(path, 0o022), *((parent, 0o002) for parent in path.parents)]:
        found = folder.stat()
        shared = found.st_mode & forbidden and not found.st_mode & stat.S_ISVTX
        if shared or found.st_uid not in (0, os.getuid()):
            return folder
    return None
