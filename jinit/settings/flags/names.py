"""The names of flags as they stand in a compiled library.

XLA has no list of its flags: its usage text is cut off after some eighty of them. A flag's name is
however a text of its own in the library. Other texts look the same, so that a name that is found
may be none, but a name that is not found is none.
"""

import mmap
import re
from importlib.util import find_spec
from pathlib import Path

__all__ = ["flag_names"]

_NAME = re.compile(rb"\0((?:xla|megascale|tpu)_[a-z0-9_]+)(?=\0)")
_LIBRARIES = ("*.so", "*.dylib", "*.pyd", "*.dll")


def flag_names(package: str) -> frozenset[str]:
    """The texts in a package's libraries that may be names of flags; none where it is absent."""
    spec = find_spec(package)
    folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
    paths = [path for folder in folders for kind in _LIBRARIES for path in folder.glob(kind)]
    return frozenset(name for path in paths for name in _names_in(path))


def _names_in(library: Path) -> list[str]:
    with (
        library.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text,
    ):
        return [name.decode() for name in _NAME.findall(text)]
