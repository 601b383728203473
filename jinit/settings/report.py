"""What a start decided, as a table for people and as plain data for programs."""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from jinit._tables import format_table
from jinit.settings.setting import Origin, Status

__all__ = ["Outcome", "StartupReport", "versions"]


@dataclass(frozen=True)
class Outcome:
    """What became of one setting.

    Attributes:
        value: The value in force; None is JAX's own choice.
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


@dataclass(frozen=True)
class StartupReport:
    """The settings in force since the last ``startup``, and what they are in force on.

    Attributes:
        settings: The ``Outcome`` of each setting by name.
        versions: Python, the operating system, and the packages by name.
        backend: ``cpu``, ``gpu`` or ``tpu``.
        devices: The number of devices of each kind, over all processes.
        process_count: The number of processes of the run.

    Example:
        >>> import jinit
        >>> key = jinit.startup(seed=42)
        >>> jinit.startup_report().to_dict()["settings"]["seed"]["value"]
        42
    """

    settings: Mapping[str, Outcome]
    versions: Mapping[str, str]
    backend: str
    devices: Mapping[str, int]
    process_count: int

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as plain data: dicts, strings, integers and None."""
        return asdict(self)

    def to_json(self) -> str:
        """Returns the report as indented JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        devices = ", ".join(f"{count} x {kind}" for kind, count in self.devices.items())
        where = {
            **self.versions,
            "backend": self.backend,
            "devices": devices,
            "processes": str(self.process_count),
        }
        return "\n".join(
            (
                format_table(["setting", "value", "origin", "status"], self._rows()),
                format_table(["running on", ""], where.items()),
            )
        )

    def _rows(self) -> list[list[str]]:
        return [
            [name, _value_text(found), _origin_text(found), found.status]
            for name, found in self.settings.items()
        ]


def versions() -> dict[str, str]:
    """The versions of Python, the operating system and the packages, without importing these."""
    from jinit import __version__

    packages = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy")}
    here = {"python": platform.python_version(), "platform": platform.platform()}
    return {**here, "jinit": __version__, **packages}


def _value_text(found: Outcome) -> str:
    value = "-" if found.value is None else str(found.value)
    kept = found.requested is None or found.requested == found.value
    return value if kept else f"{value} (asked for {found.requested})"


def _origin_text(found: Outcome) -> str:
    return f"{found.origin} ({found.source})" if found.source else found.origin
