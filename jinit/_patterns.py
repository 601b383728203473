"""Patterns over the paths of a tree's leaves, such as ``*/kernel``."""

import difflib
import fnmatch
from collections.abc import Iterable, Sequence

__all__ = ["check_patterns", "fits"]


def fits(path: str, pattern: str) -> bool:
    """Returns whether a pattern fits the whole path; ``*`` is any text, ``/`` included."""
    return fnmatch.fnmatchcase(path, pattern)


def check_patterns(patterns: Iterable[str], paths: Sequence[str]) -> None:
    """Raises ValueError for patterns that fit no path, with the nearest ones."""
    idle = [
        f"{pattern!r}, nearest: {', '.join(_nearest(pattern, paths)) or 'the tree is empty'}"
        for pattern in patterns
        if not any(fits(path, pattern) for path in paths)
    ]
    if idle:
        raise ValueError("patterns that fit no leaf:\n  " + "\n  ".join(idle))


def _nearest(pattern: str, paths: Sequence[str]) -> list[str]:
    return difflib.get_close_matches(pattern, paths, n=3, cutoff=0.0)
