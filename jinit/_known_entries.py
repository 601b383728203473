"""What is known of a name or an argument of another system."""

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["As", "Instead", "Same"]


class Instead(NamedTuple):
    """Something that jinit lacks.

    Attributes:
        text: What to write in its place.
    """

    text: str


class As(NamedTuple):
    """An argument under another name.

    Attributes:
        name: Its own name; "" for one that changes nothing.
        given: What the other name implies as well.
        unlike: Arguments whose meaning that changes, so that they may not stand beside it.
    """

    name: str
    given: Mapping[str, Any] = {}
    unlike: tuple[str, ...] = ()


class Same(NamedTuple):
    """A function under another name.

    Attributes:
        native: Its own name, in the same module.
        given: The arguments that the other name stands for.
        needs: Arguments, each under any of its names, whose defaults differ among systems.
        differs: Values of arguments that differ among systems, and what to write for them.
        positions: What arguments by position are in the systems that have the other name, where
            the native function reads them otherwise.
    """

    native: str
    given: Mapping[str, Any] = {}
    needs: tuple[tuple[str, ...], ...] = ()
    differs: Mapping[tuple[str, Any], str] = {}
    positions: Mapping[str, tuple[str, ...]] = {}
