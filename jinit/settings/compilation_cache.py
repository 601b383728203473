"""Where compiled programs are kept from one run to the next."""

import os
from pathlib import Path

from jinit.settings.jax_options import option, set_option
from jinit.settings.parsing import refusal
from jinit.settings.setting import Setting, Source
from jinit.settings.user_cache import private_directory, writable_by_others

__all__ = ["COMPILATION_CACHE"]

_OPTION = "jax_compilation_cache_dir"
_LEAST_SECONDS = "jax_persistent_cache_min_compile_time_secs"
_OFF = "off"


def _parse(name: str, value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return str(private_directory("compilation")) if value else _OFF
    if isinstance(value, (str, os.PathLike)) and (text := os.fspath(value)) and "\0" not in text:
        return text if "://" in text else str(Path(text).expanduser().absolute())
    legal = "True (a folder of your own), False or a folder"
    raise ValueError(refusal(name, value, legal))


def _parse_text(name: str, text: str) -> str | None:
    if text not in ("0", "1") and "/" not in text and os.sep not in text:
        # true or on would be a folder of that name, wherever the program runs.
        raise ValueError(refusal(name, text, "0, 1 or the path of a folder, with a /"))
    return _parse(name, {"0": False, "1": True}.get(text, text))


def _current() -> str:
    return option(_OPTION) or _OFF


def _apply(folder: str) -> None:
    set_option(_OPTION, None if folder == _OFF else folder)
    # By default a program is kept only if it took a second to compile, and most take less.
    if not os.environ.get(_LEAST_SECONDS.upper()) and option(_LEAST_SECONDS) == 1.0:
        set_option(_LEAST_SECONDS, 0.0)


def _advice(folder: str) -> str:
    path = Path(folder)
    while not path.exists():
        path = path.parent
    culprit = None if folder == _OFF or "://" in folder else writable_by_others(path)
    if not culprit:
        return ""
    return f"others can write to {str(culprit)!r}, and what is in compilation_cache is run"


COMPILATION_CACHE = Setting(
    name="compilation_cache",
    variables=(Source("JINIT_COMPILATION_CACHE", _parse_text),),
    arguments=(Source("compilation_cache", _parse),),
    apply=_apply,
    current=_current,
    native=(_OPTION.upper(),),
    native_values=lambda folder: (folder,),
    advice=_advice,
)
