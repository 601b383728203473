"""Flags that come too late for the process can still be given to one program."""

from collections.abc import Mapping
from typing import Any

__all__ = ["compiler_options"]


def compiler_options(flags: Mapping[str, str | None]) -> dict[str, Any]:
    """Finds the flags that the running backend takes for a single program.

    Args:
        flags: The text of each flag by its name, as XLA_FLAGS would have it.

    Returns:
        The ``compiler_options`` to pass to ``jax.jit``; each was tried on a small program.
    """
    taken = {
        name: [value for value in _spellings(text) if _compiles({name: value})][:1]
        for name, text in flags.items()
    }
    return {name: value for name, values in taken.items() for value in values}


def _spellings(text: str | None) -> list[Any]:
    """A boolean must be one here, where XLA_FLAGS takes a text for it."""
    booleans = {"true": True, "false": False, "1": True, "0": False}
    return [text, *([booleans[text]] if text in booleans else [])]


def _compiles(options: dict[str, Any]) -> bool:
    import jax

    try:
        jax.jit(lambda: 0).lower().compile(compiler_options=options)
    except Exception:
        return False
    return True
