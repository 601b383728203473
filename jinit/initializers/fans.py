"""Fans: how many numbers one output sums, and how many outputs one input reaches."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

__all__ = ["MODES", "Axes", "Mode", "compute_fans"]

Axes = int | tuple[int, ...]
"""One axis of a shape, or several; negative ones count from the end."""

Mode = Literal["fan_in", "fan_out", "fan_avg", "fan_geo_avg"]

MODES: Mapping[Mode, Callable[[float, float], float]] = MappingProxyType(
    {
        "fan_in": lambda fan_in, fan_out: fan_in,
        "fan_out": lambda fan_in, fan_out: fan_out,
        "fan_avg": lambda fan_in, fan_out: (fan_in + fan_out) / 2,
        "fan_geo_avg": lambda fan_in, fan_out: math.sqrt(fan_in * fan_out),
    }
)
"""What an initializer divides its variance by, from the two fans."""


def compute_fans(
    shape: Sequence[int], in_axis: Axes = -2, out_axis: Axes = -1, batch_axis: Axes = ()
) -> tuple[int, int]:
    r"""Computes the fans of a kernel.

    Axes that are named nowhere are the receptive field of a convolution:
    :math:`\text{fan\_in} = \prod \text{in} \cdot \prod \text{field}` and
    :math:`\text{fan\_out} = \prod \text{out} \cdot \prod \text{field}`.

    Args:
        shape: The shape of the kernel, ``(*spatial, in, out)`` by default.
        in_axis: The axis or axes of the inputs. ``()`` says that there are none.
        out_axis: The axis or axes of the outputs.
        batch_axis: The axis or axes along which kernels are stacked; they count in neither fan.

    Returns:
        ``fan_in`` and ``fan_out``; 0 where an axis they count is empty.

    Raises:
        ValueError: If the shape lacks an axis, or an axis is named twice. A vector has no default
            fans: JAX and torch refuse it, Keras takes its length for both.

    Example:
        >>> compute_fans((3, 3, 32, 64))
        (288, 576)
        >>> compute_fans((10,), in_axis=(), out_axis=-1)
        (1, 10)
    """
    roles = [_resolve(axis, shape) for axis in (in_axis, out_axis, batch_axis)]
    named = [axis for role in roles for axis in role]
    if len(set(named)) < len(named):
        raise ValueError(
            f"in_axis={in_axis}, out_axis={out_axis} and batch_axis={batch_axis} name an axis "
            f"of shape {tuple(shape)} more than once"
        )
    field = math.prod(size for axis, size in enumerate(shape) if axis not in named)
    fan_in, fan_out = (math.prod(shape[axis] for axis in role) * field for role in roles[:2])
    return fan_in, fan_out


def _resolve(axes: Axes, shape: Sequence[int]) -> list[int]:
    """Counts axes from the front."""
    resolved = []
    for axis in (axes,) if isinstance(axes, int) else axes:
        if not -len(shape) <= axis < len(shape):
            raise ValueError(
                f"shape {tuple(shape)} has no axis {axis}, so its fans are unknown: give in_axis "
                "and out_axis (for a vector in_axis=(), out_axis=-1), or the fans themselves"
            )
        resolved.append(axis % len(shape))
    return resolved
