"""The flags of XLA that the user asks for."""

import os
import re
from collections.abc import Mapping
from typing import Any

from jinit._parsing import refusal
from jinit.settings.flags.text import format_flags, split_flags
from jinit.settings.setting import Setting, Source

__all__ = ["XLA_FLAGS"]

_LEGAL = (
    "a dict such as {'xla_dump_to': 'dumps'}, a list such as ['--xla_dump_to=dumps'] or a text "
    "of such flags"
)
_NAME = re.compile(r"(--)?[A-Za-z0-9_]+", re.ASCII)


def _parse(name: str, value: Any) -> Mapping[str, str | None] | None:
    if value is None:
        return None
    try:
        flags = _flags_of(value)
        text = format_flags(flags)
        os.fsencode(text)
        # Beyond this length no program can be started with it in its environment.
        legal = all(map(_NAME.fullmatch, flags)) and "\0" not in text and len(text) < 100_000
    except (TypeError, ValueError):
        legal, flags = False, {}
    names = {flag.removeprefix("--"): text for flag, text in flags.items()}
    if not legal or len(names) < len(flags):
        raise ValueError(refusal(name, value, _LEGAL))
    return names


def _flags_of(value: Any) -> dict[str, str | None]:
    if isinstance(value, Mapping):
        return {flag: _text_of(given) for flag, given in value.items()}
    if isinstance(value, str):
        tokens = split_flags(value)
        if tokens.ignored:
            raise ValueError
        return tokens.flags
    return dict(_one_flag(text) for text in value)


def _text_of(value: object) -> str:
    if not isinstance(value, (bool, int, float, str)):
        raise TypeError
    return str(value).lower() if isinstance(value, bool) else str(value)


def _one_flag(text: object) -> tuple[str, str | None]:
    """Splits an item of a list, which is a flag as a whole: a blank in it is its value's."""
    if not isinstance(text, str):
        raise TypeError
    name, equals, value = text.partition("=")
    return name, value if equals else None


XLA_FLAGS = Setting(
    name="xla_flags",
    variables=(Source("JINIT_XLA_FLAGS", _parse),),
    arguments=(Source("xla_flags", _parse),),
    apply=lambda flags: None,
    flags=lambda flags: flags,
)
