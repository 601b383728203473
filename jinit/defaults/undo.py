"""Changes of the whole process that can be taken back."""

from collections.abc import Callable
from typing import Self

__all__ = ["Undo"]


class Undo:
    """Takes a change back, once: call it, or leave its ``with`` block.

    Example:
        >>> undo = Undo(lambda: print("undone"))
        >>> undo()
        undone
        >>> undo()
    """

    def __init__(self, undo: Callable[[], None]) -> None:
        self._undo: Callable[[], None] | None = undo

    def __call__(self) -> None:
        """Takes the change back; later calls do nothing."""
        undo, self._undo = self._undo, None
        if undo is not None:
            undo()

    def __repr__(self) -> str:
        return "Undo(done)" if self._undo is None else "Undo(call it to take the change back)"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self()
