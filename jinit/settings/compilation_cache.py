"""Where compiled programs are kept from one run to the next."""

import os
from pathlib import Path

from jinit._parsing import refusal
from jinit.settings.jax_options import option, set_option
from jinit.settings.setting import Choice, Setting, Source
from jinit.settings.undo import on_failure
from jinit.settings.user_cache import private_directory, private_path, writable_by_others

__all__ = ["COMPILATION_CACHE"]

_NAME = "compilation"
_OPTION = "jax_compilation_cache_dir"
_LEAST_SECONDS = "jax_persistent_cache_min_compile_time_secs"
_OFF = "off"
_LEGAL = "True (a folder of your own), False or a folder"


def _parse(name: str, value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return str(private_path(_NAME)) if value else _OFF
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else ""
    if not isinstance(text, str) or not 0 < len(text) < 4096 or "\0" in text:
        raise ValueError(refusal(name, value, _LEGAL))
    try:
        return text if "://" in text else str(Path(text).expanduser().absolute())
    except (RuntimeError, OSError):  # no such user; the working folder is gone
        raise ValueError(refusal(name, value, _LEGAL)) from None


def _parse_text(name: str, text: str) -> str | None:
    if text not in ("0", "1") and "/" not in text and os.sep not in text:
        # true or on would be a folder of that name, wherever the program runs.
        raise ValueError(refusal(name, text, "0, 1 or the path of a folder, with a /"))
    return _parse(name, {"0": False, "1": True}.get(text, text))


def _nearest_there(folder: str) -> Path | None:
    """The folder itself or, as long as it is not made yet, the one that it will be in."""
    if folder == _OFF or "://" in folder:
        return None
    path = Path(folder)
    return next((each for each in (path, *path.parents) if os.path.lexists(each)), None)


def _verify(choice: Choice) -> None:
    there = _nearest_there(choice.value or _OFF)
    mode = os.R_OK if there == Path(choice.value or _OFF) else os.W_OK  # to read, or to make it
    if there and not (there.is_dir() and os.access(there, mode)):
        legal = f"a folder that you can write to, which {str(there)!r} is not"
        raise ValueError(refusal(choice.source, choice.value, legal))


def _apply(folder: str) -> None:
    if folder == str(private_path(_NAME)):
        private_directory(_NAME)
    _forget()
    on_failure(_forget)
    set_option(_OPTION, None if folder == _OFF else folder)
    # By default a program is kept only if it took a second to compile, and most take less.
    if not os.environ.get(_LEAST_SECONDS.upper()) and option(_LEAST_SECONDS) == 1.0:
        set_option(_LEAST_SECONDS, 0.0)


def _forget() -> None:
    """Lets JAX look at its option again: it opens its cache once, with the first program."""
    from jax.experimental.compilation_cache import compilation_cache

    compilation_cache.reset_cache()


def _advice(folder: str) -> str:
    there = _nearest_there(folder)
    culprit = writable_by_others(there) if there else None
    if culprit and folder != str(private_path(_NAME)):
        return f"others can write to {str(culprit)!r}, and what is in compilation_cache is run"
    if there and not os.access(there, os.W_OK):
        return f"you cannot write to {str(there)!r}: programs are taken from there, and none kept"
    return ""


COMPILATION_CACHE = Setting(
    name="compilation_cache",
    variables=(Source("JINIT_COMPILATION_CACHE", _parse_text),),
    arguments=(Source("compilation_cache", _parse),),
    apply=_apply,
    current=lambda: option(_OPTION) or _OFF,
    native=(_OPTION.upper(),),
    native_values=lambda folder: (folder,),
    verify=_verify,
    advice=_advice,
)
