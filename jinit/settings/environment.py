"""Environment variables: which are the user's, which are ours, and which are misspelt."""

import difflib
import os
from collections.abc import Iterable

__all__ = ["misspelt", "set_variable", "user_value"]

PREFIX = "JINIT_"

_WRITTEN: dict[str, str] = {}


def set_variable(name: str, text: str) -> None:
    """Sets a variable and remembers that the user did not."""
    if os.environ.get(name) != text:
        os.environ[name] = _WRITTEN[name] = text


def user_value(name: str) -> str | None:
    """What the user set a variable to, None where it is empty, unset or set by jinit."""
    text = os.environ.get(name) or None
    return None if text == _WRITTEN.get(name) else text


def misspelt(known: Iterable[str]) -> dict[str, str]:
    """Maps each ``JINIT_*`` variable that is set but not known to the nearest known name."""
    names = sorted(known)
    unknown = [name for name in os.environ if name.startswith(PREFIX) and name not in names]
    return {name: difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0] for name in unknown}
