"""All or nothing: what was changed on the way to an error is changed back."""

import contextlib
from collections.abc import Callable, Iterator

__all__ = ["all_or_nothing", "on_failure"]

_UNDO: list[Callable[[], object]] = []


def on_failure(undo: Callable[[], object]) -> None:
    """Registers how to take back a change that is about to be made."""
    _UNDO.append(undo)


@contextlib.contextmanager
def all_or_nothing() -> Iterator[None]:
    """Takes back, last first, every change registered in the block if the block raises."""
    _UNDO.clear()
    try:
        yield
    except BaseException:
        for undo in reversed(_UNDO):
            undo()
        raise
    finally:
        _UNDO.clear()
