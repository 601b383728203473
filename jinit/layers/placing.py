"""Where the slices of a leaf lie: numbers of its slots, laid along the axes that scans read."""

from collections.abc import Sequence
from typing import Any

__all__ = ["gathered", "leading", "placed"]


def placed(values: Any, places: Sequence[int]) -> Any:
    """Lays one number a slot along a leaf's axes; others before them get a length of 1.

    Args:
        values: An array with an axis for every place.
        places: The leaf's axes, in the order of the array's.

    Example:
        >>> import numpy as np
        >>> placed(np.ones((2, 3)), (0, 1)).shape, placed(np.ones((2, 3)), (2, 0)).shape
        ((2, 3), (3, 1, 2))
    """
    shape = [1] * (max(places, default=-1) + 1)
    for axis, size in zip(places, values.shape, strict=True):
        shape[axis] = size
    return values.transpose(_order(places)).reshape(shape)


def gathered(array: Any, places: Sequence[int]) -> Any:
    """Reads one number a slot back: the first entry along all other axes."""
    if not places:
        return array[(0,) * array.ndim]
    entries = array[tuple(_index(axis, places) for axis in range(array.ndim))]
    ranks = sorted(places)  # the axes that are left, in the order of the leaf's
    return entries.transpose([ranks.index(place) for place in places])


def leading(array: Any, places: Sequence[int]) -> Any:
    """Moves the axes of the slots to the front, in their order."""
    others = [axis for axis in range(array.ndim) if axis not in places]
    return array.transpose([*places, *others]) if places else array


def _index(axis: int, places: Sequence[int]) -> Any:
    return slice(None) if axis in places else 0


def _order(places: Sequence[int]) -> list[int]:
    return sorted(range(len(places)), key=places.__getitem__)
