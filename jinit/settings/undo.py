"""All or nothing: what was changed on the way to an error is changed back."""

import contextlib
import threading
from collections.abc import Callable, Iterator

__all__ = ["all_or_nothing", "on_failure"]

_UNDO: list[Callable[[], object]] = []
_ONE_AT_A_TIME = threading.RLock()  # what is changed here belongs to the process


def on_failure(undo: Callable[[], object]) -> None:
    """Registers how to take back a change that is about to be made."""
    _UNDO.append(undo)


@contextlib.contextmanager
def all_or_nothing() -> Iterator[None]:
    """Takes back, last first, every change registered in the block if the block raises."""
    with _ONE_AT_A_TIME:
        _UNDO.clear()
        try:
            yield
        except BaseException:
            for undo in reversed(_UNDO):
                undo()
            raise
        finally:
            _UNDO.clear()
