"""Fans: how many numbers one output sums, and how many outputs one input reaches."""

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType
from typing import Literal, NamedTuple, Protocol

__all__ = ["MODES", "Axes", "Fans", "Mode", "Roles", "axis_roles", "compute_fans"]

Axes = int | tuple[int, ...]
"""One axis of a shape, or several; negative ones count from the end."""

Mode = Literal["fan_in", "fan_out", "fan_avg", "fan_geo_avg"]


class Fans(Protocol):
    """The fans of a kernel; a mode reads only those that it needs."""

    @property
    def fan_in(self) -> float:
        """How many numbers one output sums."""
        ...

    @property
    def fan_out(self) -> float:
        """How many outputs one input reaches."""
        ...


MODES: Mapping[Mode, Callable[[Fans], float]] = MappingProxyType(
    {
        "fan_in": lambda fans: fans.fan_in,
        "fan_out": lambda fans: fans.fan_out,
        "fan_avg": lambda fans: (fans.fan_in + fans.fan_out) / 2,
        "fan_geo_avg": lambda fans: math.sqrt(fans.fan_in * fans.fan_out),
    }
)
"""What an initializer divides its variance by, from the two fans."""


class Roles(NamedTuple):
    """The axes of a kernel by what they are, counted from the front.

    Attributes:
        inputs: Those of the inputs.
        outputs: Those of the outputs.
        batch: Those along which kernels are stacked.
        field: All others, the receptive field of a convolution.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    batch: tuple[int, ...]
    field: tuple[int, ...]


_HINT = (
    ", so its fans are unknown: give in_axis and out_axis (for a vector in_axis=(), out_axis=-1), "
    "or the fans themselves"
)


def compute_fans(
    shape: Sequence[int], in_axis: Axes = -2, out_axis: Axes = -1, batch_axis: Axes = ()
) -> tuple[float, float]:
    r"""Computes the fans of a kernel.

    Axes that are named nowhere are the receptive field of a convolution:
    :math:`\text{fan\_in} = \prod \text{in} \cdot \prod \text{field}` and
    :math:`\text{fan\_out} = \prod \text{out} \cdot \prod \text{field}`. An axis may be named more
    than once: ``in_axis`` and ``out_axis`` of Flax's embeddings are both the first of a matrix.
    Then the field is what is left of the size, as in JAX, so that
    :math:`\text{fan\_in} = \prod \text{shape} / (\prod \text{out} \cdot \prod \text{batch})`.

    Args:
        shape: The shape of the kernel, ``(*spatial, in, out)`` by default.
        in_axis: The axis or axes of the inputs. ``()`` says that there are none.
        out_axis: The axis or axes of the outputs.
        batch_axis: The axis or axes along which kernels are stacked; they count in neither fan.

    Returns:
        ``fan_in`` and ``fan_out``, integers unless an axis is named more than once; 0 where an
        axis they count is empty.

    Raises:
        ValueError: If the shape lacks an axis. A vector has no default fans: JAX and torch refuse
            it, Keras takes its length for both (``fans=(n, n)``).

    Example:
        >>> compute_fans((3, 3, 32, 64))
        (288, 576)
        >>> compute_fans((10,), in_axis=(), out_axis=-1)
        (1, 10)
        >>> compute_fans((50, 32), out_axis=0)
        (32, 32)
    """
    inputs, outputs, batch = (
        _resolve(axis, shape, _HINT) for axis in (in_axis, out_axis, batch_axis)
    )
    return _size_without(shape, outputs + batch), _size_without(shape, inputs + batch)


def _size_without(shape: Sequence[int], axes: tuple[int, ...]) -> float:
    """Returns the product of a shape over that of the axes, which may repeat.

    As a product of powers: an axis that is left out once has the power 0, whatever its size.
    """
    powers = [1 - axes.count(axis) for axis in range(len(shape))]
    if any(size == 0 != power for size, power in zip(shape, powers, strict=True)):
        return 0
    size = math.prod(Fraction(size) ** power for size, power in zip(shape, powers, strict=True))
    return int(size) if size == int(size) else float(size)


def axis_roles(
    shape: Sequence[int], in_axis: Axes, out_axis: Axes, batch_axis: Axes, hint: str = ""
) -> Roles:
    """Finds out which axes of a kernel are what.

    Args:
        shape: The shape of the kernel.
        in_axis: The axis or axes of the inputs.
        out_axis: The axis or axes of the outputs.
        batch_axis: The axis or axes along which kernels are stacked.
        hint: What the error about a shape without an axis says to do.

    Returns:
        The axes, each in one role.

    Raises:
        ValueError: If the shape lacks an axis, or an axis is named twice.

    Example:
        >>> axis_roles((3, 3, 32, 64), -2, -1, ())
        Roles(inputs=(2,), outputs=(3,), batch=(), field=(0, 1))
    """
    roles = [_resolve(axis, shape, hint) for axis in (in_axis, out_axis, batch_axis)]
    named = [axis for role in roles for axis in role]
    if len(set(named)) < len(named):
        raise ValueError(
            f"in_axis={in_axis}, out_axis={out_axis} and batch_axis={batch_axis} name an axis "
            f"of shape {tuple(shape)} more than once"
        )
    field = tuple(axis for axis in range(len(shape)) if axis not in named)
    return Roles(roles[0], roles[1], roles[2], field)


def _resolve(axes: Axes, shape: Sequence[int], hint: str) -> tuple[int, ...]:
    """Counts axes from the front."""
    axes = (axes,) if isinstance(axes, int) else axes
    for axis in axes:
        if not -len(shape) <= axis < len(shape):
            raise ValueError(f"shape {tuple(shape)} has no axis {axis}{hint}")
    return tuple(axis % len(shape) for axis in axes)
