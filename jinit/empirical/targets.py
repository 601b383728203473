"""The RMS that each layer's output is brought to."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jinit._kinds import is_number

__all__ = ["LayerInfo", "check_target", "target_of"]


@dataclass(frozen=True)
class LayerInfo:
    """A layer, as a function given as ``target`` sees it.

    Attributes:
        path: The path of the leaf that carries its scale, such as ``params/Dense_0/kernel``.
        kind: ``linear`` or ``embedding``.
        fan_in: The number of inputs that one output sums over; 1 for an embedding.
        fan_out: The number of outputs that one input feeds.
        index: Its iteration of each loop around it; ``()`` outside loops.
        number: Its place in the order of evaluation, from 0.
        count: The number of layers that are tuned.
    """

    path: str
    kind: str
    fan_in: int
    fan_out: int
    index: tuple[int, ...]
    number: int
    count: int


def check_target(value: Any, where: str = "") -> float:
    """Returns a target as a number.

    Raises:
        ValueError: It is not a positive finite number.
    """
    size = float(value) if is_number(value) else math.nan
    if not (math.isfinite(size) and size > 0):
        raise ValueError(
            f"target must be a positive number, but is {value!r}{where}; "
            "it is the RMS that a layer's output is brought to"
        )
    return size


def target_of(target: float | Callable[[LayerInfo], float], layer: LayerInfo) -> float:
    """Returns the RMS that a layer is to have."""
    return check_target(target(layer), f" for {layer.path}") if callable(target) else target
