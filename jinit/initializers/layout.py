"""Kernels as stacks of matrices: which axes are rows and columns, and the way back."""

import math
from abc import abstractmethod
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jinit.initializers.base import Unit, holds_zero
from jinit.initializers.fans import Axes, Roles, axis_roles
from jinit.typing import Key

__all__ = ["KernelDistribution", "centred", "matrix_roles", "sizes", "spatial_roles", "unstack"]


class KernelDistribution(Unit):
    """An initializer for which the axes of a shape have roles."""

    @abstractmethod
    def roles(self, shape: tuple[int, ...]) -> Roles:
        """Returns the roles of the axes; raises ValueError if an axis is missing."""

    def check(self, key: Key | None, shape: tuple[int, ...], dtype: jnp.dtype) -> None:
        """Raises for shapes without the axes too."""
        super().check(key, shape, dtype)
        if not holds_zero(dtype):
            raise TypeError(f"{self!r} needs a zero, which {dtype} does not hold")
        self.roles(shape)


def matrix_roles(shape: Sequence[int], out_axis: Axes, batch_axis: Axes) -> Roles:
    """Takes a kernel as matrices: whatever is neither an output nor a stack is an input.

    Args:
        shape: The shape of the kernel.
        out_axis: The axis or axes of the outputs, the columns.
        batch_axis: The axis or axes along which matrices are stacked.

    Returns:
        The axes, no receptive field among them.

    Raises:
        ValueError: If no axis remains for the rows.

    Example:
        >>> matrix_roles((3, 3, 32, 64), -1, ())
        Roles(inputs=(0, 1, 2), outputs=(3,), batch=(), field=())
    """
    roles = axis_roles(shape, (), out_axis, batch_axis)
    if not roles.field:
        raise ValueError(
            f"shape {tuple(shape)} holds no matrix: it needs an axis beside out_axis={out_axis} "
            f"and batch_axis={batch_axis}"
        )
    return roles._replace(inputs=roles.field, field=())


def spatial_roles(
    shape: Sequence[int], in_axis: Axes, out_axis: Axes, batch_axis: Axes, matrix: str
) -> Roles:
    """Takes a kernel as that of a convolution.

    Args:
        shape: The shape of the kernel.
        in_axis: The axis or axes of the inputs.
        out_axis: The axis or axes of the outputs.
        batch_axis: The axis or axes along which kernels are stacked.
        matrix: The initializer that an error recommends for a matrix.

    Returns:
        The axes, a receptive field among them.

    Raises:
        ValueError: If there is no spatial axis.

    Example:
        >>> spatial_roles((3, 32, 64), -2, -1, (), "eye")
        Roles(inputs=(1,), outputs=(2,), batch=(), field=(0,))
    """
    roles = axis_roles(shape, in_axis, out_axis, batch_axis)
    if not roles.field:
        raise ValueError(
            f"shape {tuple(shape)} has no spatial axis beside in_axis={in_axis}, "
            f"out_axis={out_axis} and batch_axis={batch_axis}; for a matrix there is {matrix}"
        )
    return roles


def sizes(shape: Sequence[int], roles: Roles) -> tuple[int, int, int]:
    """Returns how many matrices there are, and their rows and columns."""
    inputs, outputs, batch = (math.prod(shape[axis] for axis in role) for role in roles[:3])
    return batch, inputs, outputs


def unstack(matrices: jax.Array, shape: Sequence[int], roles: Roles) -> jax.Array:
    """Lays out matrices, or kernels with a field between the stack and them, as an array.

    Args:
        matrices: An array of ``(batch, *field, inputs, outputs)``, each role in one axis.
        shape: The shape of the result.
        roles: Which of its axes are what.

    Returns:
        The array.
    """
    order = (*roles.batch, *roles.field, *roles.inputs, *roles.outputs)
    kernel = jnp.reshape(matrices, [shape[axis] for axis in order])
    return jnp.transpose(kernel, np.argsort(order).tolist())


def centred(matrices: jax.Array, shape: Sequence[int], roles: Roles) -> jax.Array:
    """Lays out matrices at the centre of a receptive field that is zero elsewhere.

    The centre of k positions is ``(k - 1) // 2``, the one that convolutions with ``SAME`` padding
    multiply with the pixel itself.

    Args:
        matrices: An array of ``(batch, inputs, outputs)``.
        shape: The shape of the result.
        roles: Which of its axes are what.

    Returns:
        The array.
    """
    if 0 in shape:
        return jnp.zeros(shape, matrices.dtype)
    field = [shape[axis] for axis in roles.field]
    batch, *matrix = matrices.shape
    kernel = jnp.zeros([batch, *field, *matrix], matrices.dtype)
    centre = tuple((size - 1) // 2 for size in field)
    return unstack(kernel.at[:, *centre].set(matrices), shape, roles)
