"""Environment variables: which are the user's, which are ours, and which are misspelt."""

import difflib
import json
import os
from collections.abc import Iterable

from jinit.settings.flags.text import format_flags, full_text, read_flags, split_flags
from jinit.settings.undo import on_failure

__all__ = [
    "FLAG_VARIABLES",
    "inherited",
    "misspelt",
    "related_variables",
    "set_variable",
    "user_value",
    "written",
    "wrote_flag",
]

FLAG_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
"""The variables in which flags of the user's stand beside jinit's."""

PREFIX = "JINIT_"
_MARK = "_JINIT_WRITTEN"
_RELATED = (
    *("JINIT_", "JAX_", "XLA_", "PJRT_", "NPROC", "LIBTPU_INIT_ARGS"),
    *("CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_DEVICES"),
)


def inherited(name: str) -> bool:
    """Whether a variable is as a startup in the process which started this one has left it."""
    return name in _FROM_PARENT and os.environ.get(name) == _FROM_PARENT[name]


def written() -> dict[str, str]:
    """What jinit set, here or in the process that started this one.

    A child process inherits the variables, so it must inherit the knowledge of who set them: the
    record is itself a variable. With ``XLA_FLAGS="--a=1 --b=2"`` and the record
    ``{"XLA_FLAGS": "--b=2"}`` it is the user who set a.
    """
    try:
        record = json.loads(os.environ.get(_MARK, "{}"))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


_FROM_PARENT = {name: os.environ.get(name) for name, ours in written().items() if ours}


def set_variable(name: str, text: str, ours: str | None = None) -> None:
    """Sets a variable and remembers that the user did not.

    Args:
        name: The variable.
        text: Its new text; where that is empty, the variable is removed.
        ours: The part of ``text`` that is jinit's, where the user's stands beside it.
    """
    if os.environ.get(name, "") != text:
        _put(name, text or None)
        _put(_MARK, json.dumps({**written(), name: text if ours is None else ours}))


def _put(name: str, text: str | None) -> None:
    before = os.environ.get(name)
    on_failure(lambda: _restore(name, before))
    _restore(name, text)


def _restore(name: str, text: str | None) -> None:
    if text is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = text


def user_value(name: str) -> str | None:
    """What the user set a variable to, None where it is empty, unset or set by jinit.

    Of a variable of flags it is the user's part: jinit's flags stand in the same text.
    """
    text, ours = os.environ.get(name) or None, written().get(name)
    if text is None or text == ours:
        return None
    return _without_ours(name, text) if ours and name in FLAG_VARIABLES else text


def _without_ours(variable: str, text: str) -> str | None:
    flags = read_flags(text).flags.items()
    users = {name: value for name, value in flags if not wrote_flag(variable, name, value)}
    return format_flags(users) or None


def wrote_flag(variable: str, name: str, value: str | None) -> bool:
    """Whether jinit put a flag there, in this process or in the one that started it."""
    ours = split_flags(written().get(variable, "")).flags
    return name in ours and full_text(ours[name]) == full_text(value)


def misspelt(known: Iterable[str]) -> dict[str, str]:
    """Maps each ``JINIT_*`` variable that is set but not known to the nearest known name."""
    names = sorted(known)
    unknown = [name for name in os.environ if name.startswith(PREFIX) and name not in names]
    return {name: difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0] for name in unknown}


def related_variables() -> dict[str, str]:
    """The variables that JAX, XLA and jinit read, as they are now, by name."""
    return {name: os.environ[name] for name in sorted(os.environ) if name.startswith(_RELATED)}
