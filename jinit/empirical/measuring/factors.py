"""Factors that are given, and factors that are left to what is measured on the way."""

from typing import Any, NamedTuple

import numpy as np

from jinit._arithmetic import namespace

__all__ = ["Factors"]


class Factors(NamedTuple):
    """Factors of outputs, gradients or leaves; some of them left open.

    A measurement runs through all layers at once: the factor that brings a layer's output to its
    target is known only when the pass has reached it. Of two layers, ``Factors([2.0, 1.0],
    [False, True])`` multiplies the first one's output by 2, and the second's by what it takes.

    Attributes:
        value: The factors; where one is left open, any number.
        own: Of each whether it is left to the layer's own.
    """

    value: Any
    own: Any

    @classmethod
    def given(cls, value: Any) -> "Factors":
        """Leaves none open."""
        return cls(value, np.zeros(np.shape(value), bool))

    @classmethod
    def left_open(cls, own: np.ndarray) -> "Factors":
        """Leaves those open that are flagged; the others are 1."""
        return cls(np.ones(own.shape, np.float32), own)

    def resolved(self, measured: Any) -> Any:
        """Returns the factors, the layer's own where one was left open."""
        return namespace(measured, self.value).where(self.own, measured, self.value)
