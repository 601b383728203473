"""The initializer of bilinear layers, whose outputs sum products of two inputs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from jinit._known import known_arguments
from jinit.initializers.base import RARE
from jinit.initializers.fans import Axes, axis_roles
from jinit.initializers.variance_scaling import Scaling, VarianceScaling

__all__ = ["bilinear"]


@known_arguments
@dataclass(frozen=True, repr=False)
class bilinear(VarianceScaling):
    r"""Draws a kernel for :math:`y_k = \sum_{ij} x_i W_{ijk} z_j` from :math:`U(-l, l)`.

    With Keras's convention, Glorot's, :math:`l = \sqrt{6 / (\text{fan\_in} + \text{fan\_out})}`,
    where an output sums :math:`\text{fan\_in} = m n` products of m and n inputs. An input of the
    first kind reaches :math:`n \cdot \text{out}` products, one of the second
    :math:`m \cdot \text{out}`; fan_out is their average over all inputs,
    :math:`2 m n \cdot \text{out} / (m + n)`. With torch's convention :math:`l = 1 / \sqrt m`, for
    the bias as well. Flax has no such layer.

    Args:
        convention: ``keras`` or ``torch``.
        in_axis: The axes of the two inputs, ``(-3, -2)`` by default; torch's kernels are
            ``(out, m, n)``, with ``in_axis=(-2, -1), out_axis=-3``. Keyword-only.
        out_axis, batch_axis, fans: Where the fans come from, see ``VarianceScaling``;
            keyword-only.

    Returns:
        An initializer for floating-point and complex dtypes.

    Raises:
        ValueError: If an argument is out of range, or when called with a shape without the axes.

    Example:
        >>> round(bilinear().resolve((20, 30, 40)).high, 5)
        0.06202
        >>> bilinear("torch").resolve((16, 30, 40)).high
        0.25

    Source:
        ``torch.nn.Bilinear``; Keras has no such layer.
    """

    convention: Literal["keras", "torch"] = "keras"
    in_axis: Axes = field(default=(-3, -2), kw_only=True, metadata=RARE)

    def __post_init__(self) -> None:
        if self.convention not in ("keras", "torch"):
            raise ValueError(f"convention must be 'keras' or 'torch', got {self.convention!r}")
        super().__post_init__()
        if isinstance(self.in_axis, int) or len(self.in_axis) != 2:
            raise ValueError(f"in_axis must be the axes of two inputs, got {self.in_axis}")

    def scaling(self) -> Scaling:
        """Returns Glorot's scaling, or torch's."""
        if self.convention == "torch":
            return Scaling(1 / math.sqrt(3), "fan_in", "uniform")
        return Scaling(1.0, "fan_avg", "uniform")

    def shape_fans(self, shape: Sequence[int]) -> tuple[float, float]:
        """Returns the fans that the axes of a shape give."""
        products, outputs = super().shape_fans(shape)
        roles = axis_roles(shape, self.in_axis, self.out_axis, self.batch_axis)
        first, second = (shape[axis] for axis in roles.inputs)
        if self.convention == "torch":
            return first, outputs
        return products, outputs * 2 * first * second / ((first + second) or 1)
