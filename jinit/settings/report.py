"""What a start decided, as a table for people and as plain data for programs."""

import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from jinit._plain import PlainData
from jinit._tables import format_table, printable
from jinit.settings.environment import related_variables
from jinit.settings.flags.plan import FlagOutcome
from jinit.settings.setting import Origin, Status

__all__ = ["Outcome", "StartupReport", "make_report"]

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
_PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin", "jax-rocm7-plugin", "libtpu")
_MEMORY = ("bytes_limit", "bytes_in_use", "peak_bytes_in_use")


@dataclass(frozen=True)
class Outcome:
    """What became of one setting.

    Attributes:
        value: The active value; None is JAX's own choice.
        requested: The value asked for; None where nothing was.
        origin: Where ``value`` comes from; of what came too late, where ``requested`` does.
        source: The argument or variable that is the origin, empty for a default.
        status: Whether the call changed the setting, and why where it did not.
    """

    value: Any
    requested: Any
    origin: Origin
    source: str
    status: Status


@dataclass(frozen=True, repr=False)
class StartupReport(PlainData):
    """The settings that the last ``startup`` made active, and what they apply to.

    Printed, it is a table to read or to paste into a bug report.

    Attributes:
        settings: The ``Outcome`` of each setting by name.
        flags: The ``FlagOutcome`` of each XLA flag by name, those in the environment included.
        compiler_options: The flags that came too late, as ``jax.jit(compiler_options=...)`` takes
            them; each was tried.
        versions: Python, the operating system, and the packages by name.
        backend: ``cpu``, ``gpu`` or ``tpu``.
        devices: The number of devices of each kind, over all processes.
        memory: The bytes of this process's devices by name, as far as the backend counts them,
            and of the host. Of a GPU whose allocator counts nothing it is empty, and of one that
            counts no limit ``bytes_limit`` is missing.
        process_count: The number of processes of the run.
        process_index: This process's number among them.
        environment: The variables that JAX, XLA and jinit read, as they are now.

    Example:
        >>> import jinit
        >>> key = jinit.startup(seed=42)
        >>> jinit.startup_report().to_dict()["settings"]["seed"]["value"]
        42
    """

    settings: Mapping[str, Outcome]
    flags: Mapping[str, FlagOutcome]
    compiler_options: Mapping[str, str | bool | None]
    versions: Mapping[str, str]
    backend: str
    devices: Mapping[str, int]
    memory: Mapping[str, Mapping[str, int]]
    process_count: int
    process_index: int
    environment: Mapping[str, str]

    def __str__(self) -> str:
        rows = [(name, found, _value_text(found)) for name, found in self.settings.items()]
        tables = [_outcome_table("setting", rows)]
        if self.flags:
            flags = [(name, found, _flag_text(found)) for name, found in self.flags.items()]
            tables.append(_outcome_table("XLA flag", flags))
        if self.compiler_options:
            tables.append(f"  for jax.jit: compiler_options={dict(self.compiler_options)}")
        tables.append(format_table(["running on", ""], self._place().items()))
        if self.environment:
            tables.append(format_table(["environment", ""], self.environment.items()))
        return printable("\n".join(tables))

    __repr__ = __str__

    def _place(self) -> dict[str, str]:
        devices = ", ".join(f"{count} x {kind}" for kind, count in self.devices.items())
        memory = {f"memory of {name}": _memory_text(name, of) for name, of in self.memory.items()}
        return {
            **self.versions,
            "backend": self.backend,
            "devices": devices,
            **memory,
            "process": f"{self.process_index} of {self.process_count}",
        }


def make_report(
    settings: Mapping[str, Outcome],
    flags: Mapping[str, FlagOutcome],
    compiler_options: Mapping[str, str | bool | None],
) -> StartupReport:
    """Adds what the settings apply to."""
    import jax

    return StartupReport(
        settings=dict(settings),
        flags=dict(flags),
        compiler_options=dict(compiler_options),
        versions=_versions(),
        backend=jax.default_backend(),
        devices=dict(Counter(device.device_kind for device in jax.devices())),
        memory=_memory(),
        process_count=jax.process_count(),
        process_index=jax.process_index(),
        environment=related_variables(),
    )


def _versions() -> dict[str, str]:
    """The versions of Python, the operating system and the packages, without importing these."""
    from jinit import __version__

    found = {name: _version(name) for name in (*_PACKAGES, *_PLUGINS)}
    packages = {name: version for name, version in found.items() if version}
    here = {"python": platform.python_version(), "platform": platform.platform()}
    return {**here, "jinit": __version__, **packages}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _memory() -> dict[str, dict[str, int]]:
    import jax

    counted = {device: device.memory_stats() or {} for device in jax.local_devices()}
    devices = {
        str(device): {key: int(stats[key]) for key in _MEMORY if _is_counted(key, stats)}
        for device, stats in counted.items()
        if stats or device.platform != "cpu"  # whose memory is the host's
    }
    return {**devices, "host": _host_memory()}


def _is_counted(key: str, stats: Mapping[str, int]) -> bool:
    """Whether a number says something: a limit of 0 is that of an allocator without one."""
    return key in stats and (key != "bytes_limit" or stats[key] > 0)


def _host_memory() -> dict[str, int]:
    try:
        return {"bytes_limit": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")}
    except (AttributeError, ValueError, OSError):  # not on every system
        return {}


def _memory_text(name: str, of: Mapping[str, int]) -> str:
    if not of:
        return "not known" if name == "host" else "not counted by this allocator"
    texts = [f"{_label(key)} {count / 2**30:.2f} GiB" for key, count in of.items()]
    return ", ".join(texts if "bytes_limit" in of else ["no limit counted", *texts])


def _label(key: str) -> str:
    return (
        key.removesuffix("_in_use")
        .replace("bytes_", "")
        .replace("bytes", "in use")
        .replace("_", " ")
    )


def _outcome_table(head: str, rows: Sequence[tuple[str, Any, str]]) -> str:
    cells = [[name, value, _origin_text(found), found.status] for name, found, value in rows]
    return format_table([head, "value", "origin", "status"], cells)


def _value_text(found: Outcome) -> str:
    value = "-" if found.value is None else str(found.value)
    kept = found.requested is None or found.requested == found.value
    return value if kept else f"{value} (asked for {found.requested})"


def _flag_text(found: FlagOutcome) -> str:
    value = _value_text(Outcome(found.value, found.requested, found.origin, "", found.status))
    return f"{value}: {found.note}" if found.note else value


def _origin_text(found: Outcome | FlagOutcome) -> str:
    return f"{found.origin} ({found.source})" if found.source else found.origin
