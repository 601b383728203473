"""What a value of an initialization is known to be, before anything large is computed.

``Known``      small: computed on the host, as keys and counters are
``Drawn``      number after number, each of the bits at its own place and of a few numbers:
               every element of the array is one and the same ``Node``
``Given``      an array that the function got or closed over
``Computed``   anything else: the result of an equation of such values
"""

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jax.extend import core as jex

__all__ = [
    "Bits",
    "Computed",
    "Drawn",
    "Equation",
    "Given",
    "Keys",
    "Known",
    "Node",
    "Number",
    "Op",
    "Value",
    "fill_of",
]


@dataclass(frozen=True, eq=False)
class Known:
    """An array on the host."""

    array: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.array.shape


@dataclass(frozen=True, eq=False)
class Keys:
    """Keys of threefry on the host: their words, ``uint32[*shape, 2]``."""

    words: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Their shape."""
        return self.words.shape[:-1]


@dataclass(frozen=True, eq=False)
class Number:
    """One number for all elements, an array of no axes."""

    value: np.ndarray
    random = False


@dataclass(frozen=True, eq=False)
class Bits:
    """The bits that a key draws at an element's place."""

    key: tuple[int, int]
    width: int
    random = True


@dataclass(frozen=True, eq=False)
class Op:
    """An elementwise operation.

    Attributes:
        primitive: The primitive.
        params: Its parameters, hashable.
        operands: What it is applied to.
        random: Whether it depends on bits; if not, it is one number for all elements.
    """

    primitive: jex.Primitive
    params: tuple[tuple[str, Any], ...]
    operands: tuple["Node", ...]
    random: bool


Node: TypeAlias = Number | Bits | Op


@dataclass(frozen=True, eq=False)
class Drawn:
    """An array every element of which is computed alike.

    Attributes:
        segments: What the elements are: of the first part of the flat array, of the second, and so
            on, in equal parts.
        shape: The shape.
        dtype: The dtype.
    """

    segments: tuple[Node, ...]
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def random(self) -> bool:
        """Whether it depends on bits."""
        return any(node.random for node in self.segments)

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class Given:
    """An array from outside: an argument, or one that the function closed over."""

    array: Any


@dataclass(frozen=True, eq=False)
class Equation:
    """An equation that is run by the ordinary path."""

    equation: jex.JaxprEqn
    operands: tuple["Value", ...]


@dataclass(frozen=True, eq=False)
class Computed:
    """One result of such an equation."""

    source: Equation
    index: int


Value: TypeAlias = Known | Keys | Drawn | Given | Computed


def fill_of(value: Value) -> np.ndarray | None:
    """Returns the number that an array holds everywhere, if it is known and one."""
    if not isinstance(value, Drawn) or len(value.segments) != 1:
        return None
    node = value.segments[0]
    return node.value if isinstance(node, Number) else None
