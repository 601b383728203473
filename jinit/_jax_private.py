"""The only file outside of tracing that reads what JAX and XLA do not publish.

JAX has no public question whether a backend is up, and asking ``jax.devices()`` starts one; none
whether its plugins are registered, and for the platforms that could be started; and XLA has none
for the flags that it has read and for the size of its CPU thread pool. The answers decide what a
report may claim.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = [
    "active_flags",
    "backend_is_up",
    "cpu_pool_size",
    "gpu_options",
    "plugins_are_registered",
    "register_plugins",
    "registered_platforms",
    "skipped_platforms",
]


def backend_is_up() -> bool:
    """Whether a JAX backend has started in this process."""
    from jax._src import xla_bridge

    return xla_bridge.backends_are_initialized()


def plugins_are_registered() -> bool:
    """Whether JAX has registered its plugins, which it does once, before a backend starts."""
    from jax._src import xla_bridge

    return xla_bridge._plugins_registered


def register_plugins() -> None:
    """Lets JAX register its plugins now; it cannot be taken back."""
    from jax._src import xla_bridge

    xla_bridge._discover_and_register_pjrt_plugins()


def registered_platforms() -> list[str]:
    """The platforms for which JAX has a backend; those of plugins only once it registered them."""
    from jax._src import xla_bridge

    return list(xla_bridge._backend_factories)


def gpu_options() -> Mapping[str, Any] | None:
    """What a GPU's plugin has read about memory when it was registered, None where none was.

    It has an ``allocator``, and what was set of ``preallocate`` and ``memory_fraction``.
    """
    from jax._src import xla_bridge

    for registration in xla_bridge._backend_factories.values():
        options = getattr(registration.factory, "keywords", {}).get("options")
        if isinstance(options, Mapping) and "allocator" in options:
            return options
    return None


def skipped_platforms() -> list[str]:
    """The platforms that JAX passes over where they are asked for: CUDA's, where no GPU is."""
    from jax._src import hardware_utils

    return [] if hardware_utils.has_visible_nvidia_gpu() else ["cuda"]


def active_flags() -> dict[str, str]:
    """The flags that XLA has read and whose values are not zero; to ask before it has reads them.

    They are the fields of the options that every program is compiled with: flags under other
    names than their field's are missing.
    """
    from jaxlib import xla_client

    options = xla_client._xla.CompileOptions()  # pyright: ignore[reportPrivateImportUsage]
    text = str(options.executable_build_options.debug_options)
    fields = re.findall(r"^(\w+): (.*)$", text, re.MULTILINE)
    return {name: value.strip('"') for name, value in fields}


def cpu_pool_size() -> int | None:
    """Counts the running threads of XLA's CPU pool, None where that cannot be seen."""
    names = [_thread_name(task) for task in Path("/proc/self/task").glob("*/comm")]
    return names.count("tf_XLAEigen") or None


def _thread_name(comm: Path) -> str:
    try:
        return comm.read_text().strip()
    except OSError:  # the thread ended while its siblings were listed
        return ""
