"""Reports as plain data."""

import json
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["PlainData"]


@dataclass(frozen=True, repr=False)
class PlainData:
    """A dataclass that can be had as dicts, lists, strings and numbers."""

    def to_dict(self) -> dict[str, Any]:
        """Returns it as plain data: dicts, strings, numbers and None."""
        return asdict(self)

    def to_json(self) -> str:
        """Returns it as indented JSON."""
        return json.dumps(self.to_dict(), indent=2)
