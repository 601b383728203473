"""What was found out about flags, kept in the user's cache by version of the library."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jinit.settings.user_cache import private_directory

__all__ = ["remembered"]

_REMEMBERED = 100


@contextmanager
def remembered(package: str) -> Iterator[dict[str, dict[str, str]]]:
    """The answers of earlier runs, to read and to add to; empty where none can be kept."""
    path = None
    with suppress(OSError, PackageNotFoundError):
        path = private_directory("xla_flags") / f"{package}-{version(package)}.json"
    memory = _read_memory(path) if path else {}
    before = dict(memory)
    yield memory
    if path and memory != before:
        with suppress(OSError):
            _write_memory(path, memory)


def _read_memory(path: Path) -> dict[str, dict[str, str]]:
    with suppress(OSError, ValueError):
        memory = json.loads(path.read_text("utf-8"))
        if _is_memory(memory):
            return memory
    return {}


def _is_memory(memory: Any) -> bool:
    answers = memory.values() if isinstance(memory, dict) else [None]
    return all(isinstance(each, dict) and all(map(_is_text, each.values())) for each in answers)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _write_memory(path: Path, memory: Mapping[str, dict[str, str]]) -> None:
    """Replaces the file at once, so that a process that reads it never sees a part."""
    last = dict(list(memory.items())[-_REMEMBERED:])
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        json.dump(last, file)
    os.replace(file.name, path)
