"""The text of XLA_FLAGS: read as XLA reads it, written so that XLA reads it back."""

import itertools
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "Tokens",
    "format_flags",
    "full_text",
    "read_flags",
    "read_variable",
    "same_value",
    "split_flags",
]

_SPACE = " \t\r\n"
_NAME = re.compile(r"-[A-Za-z0-9_-]*", re.ASCII)
_PLAIN = re.compile(rf"[^{_SPACE}]*")
_SINGLE = re.compile(r"='([^']*)'?")
_DOUBLE = re.compile(r'="((?:\\.|[^"\\])*\\?)"?', re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


class Tokens(NamedTuple):
    """What a text of flags holds.

    Attributes:
        flags: Each flag's value by its name without ``--``; of two the last wins, as in XLA.
            None is a flag without ``=value``.
        ignored: The part that XLA does not read: it stops at the first word without a dash.
    """

    flags: dict[str, str | None]
    ignored: str


def split_flags(text: str) -> Tokens:
    """Splits a text of flags by XLA's rules for white space, quotes and backslashes."""
    flags: dict[str, str | None] = {}
    rest = text.lstrip(_SPACE)
    while rest.startswith("-"):
        name, value, rest = _first_flag(rest)
        flags.pop(name, None)
        flags[name] = value
        rest = rest.lstrip(_SPACE)
    return Tokens(flags, rest)


def _first_flag(text: str) -> tuple[str, str | None, str]:
    match = _NAME.match(text)
    end = match.end() if match else 0
    for quoted in (_SINGLE, _DOUBLE):
        if found := quoted.match(text, end):
            value = found[1] if quoted is _SINGLE else _ESCAPED.sub(r"\1", found[1])
            return text[:end].removeprefix("--"), value, text[found.end() :]
    plain = _PLAIN.match(text)
    word = plain[0] if plain else ""
    name, equals, value = word.partition("=")
    return name.removeprefix("--"), value if equals else None, text[len(word) :]


def full_text(value: str | None) -> str:
    """The value in full: a flag without one is a boolean."""
    return "true" if value is None else value


def same_value(one: str | None, other: str | None) -> bool:
    """Whether two texts mean the same: XLA takes 1 and 0 for booleans too."""
    numbers = {"true": "1", "false": "0"}
    first, second = full_text(one), full_text(other)
    return numbers.get(first, first) == numbers.get(second, second)


def format_flags(flags: Mapping[str, str | None]) -> str:
    """Writes flags as one text, each once and quoted where it must be."""
    return " ".join(itertools.starmap(_format_flag, flags.items()))


def _format_flag(name: str, value: str | None) -> str:
    if value is None:
        return f"--{name}"
    if value[:1] in ("'", '"') or any(space in value for space in _SPACE):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'--{name}="{escaped}"'
    return f"--{name}={value}"


def read_variable(name: str) -> Tokens:
    """The flags that XLA takes from a variable."""
    return read_flags(os.environ.get(name, ""))


def read_flags(text: str) -> Tokens:
    """The flags that XLA takes from a variable's text, or from the file that it names.

    A file that cannot be read, for which XLA would end the process, counts as ignored.
    """
    if not text or text.lstrip(_SPACE).startswith("-"):
        return split_flags(text)
    with suppress(OSError, ValueError):
        path = Path(text)
        if path.is_file():  # not a pipe, which would keep the process waiting
            return split_flags(path.read_text("utf-8", errors="surrogateescape"))
    return Tokens({}, text)
