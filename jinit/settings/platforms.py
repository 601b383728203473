"""The platforms that JAX has here, without registering the plugins of those that are installed.

A plugin reads the variables of a GPU's memory and ``jax_platforms`` when JAX registers it, once in
a process: whoever only asks for a platform must not bring that about. Until then it is the names
of the installed plugins that tell what they will bring.
"""

import os
import pkgutil
import re
from collections.abc import Iterator
from importlib.metadata import entry_points

from jinit._jax_private import plugins_are_registered, registered_platforms, skipped_platforms

__all__ = ["known_platforms", "others_may_come", "unskipped", "written_out"]

_GPUS = ("cuda", "rocm", "oneapi")
"""What ``gpu`` stands for."""

# JAX's own plugins, such as jax_plugins.xla_cuda12; each brings the platform in its name.
_PLUGIN = re.compile(rf"(?:.*\.)?(?:xla_)?({'|'.join(_GPUS)})\d*")


def known_platforms() -> list[str]:
    """The platforms that JAX has, or will have as far as the names of its plugins tell."""
    found = registered_platforms()
    if plugins_are_registered():
        return found
    coming = [match[1] for match in map(_PLUGIN.fullmatch, _plugin_modules()) if match]
    return list(dict.fromkeys([*found, *coming, *_plugins_in_variable()]))


def others_may_come() -> bool:
    """Whether a plugin is installed of which only JAX will know what it brings."""
    if plugins_are_registered():
        return False
    return not all(map(_PLUGIN.fullmatch, _plugin_modules()))


def _plugin_modules() -> Iterator[str]:
    """The modules that JAX will import and register, found as JAX finds them."""
    try:
        import jax_plugins  # pyright: ignore[reportMissingImports]
    except ImportError:
        pass
    else:
        yield from (module.name for module in pkgutil.iter_modules(jax_plugins.__path__))
    yield from (entry.value for entry in entry_points(group="jax_plugins"))


def _plugins_in_variable() -> list[str]:
    """The platforms of ``PJRT_NAMES_AND_LIBRARY_PATHS``: pairs of a name and a file."""
    pairs = os.environ.get("PJRT_NAMES_AND_LIBRARY_PATHS", "").split(",")
    return [pair.partition(os.pathsep)[0] for pair in pairs if os.pathsep in pair]


def written_out(platforms: str) -> str:
    """Puts those that are installed in the place of ``gpu``, which JAX takes for all there are.

    Where no plugin of a GPU is installed and no GPU is there, ``gpu`` before others is passed
    over, as JAX does with ``cuda``.
    """
    names = platforms.split(",")
    if "gpu" not in names:
        return platforms
    known = known_platforms()
    installed = [gpu for gpu in _GPUS if gpu in known]
    gpus = ",".join(installed or ([] if len(names) == 1 else skipped_platforms())) or "gpu"
    return ",".join(gpus if name == "gpu" else name for name in names)


def unskipped(platforms: str) -> list[str]:
    """The platforms of a list that JAX will start, in their order."""
    skipped = skipped_platforms()
    return [name for name in written_out(platforms).split(",") if name not in skipped]
