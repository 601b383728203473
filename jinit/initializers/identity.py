"""Matrices and convolutions that pass their input through."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from jinit._known import known_arguments
from jinit.initializers.base import RARE, as_integer, set_floats, set_tuples
from jinit.initializers.fans import Axes, Roles, axis_roles
from jinit.initializers.layout import (
    KernelDistribution,
    centred,
    matrix_roles,
    sizes,
    spatial_roles,
    unstack,
)
from jinit.typing import Key

__all__ = ["dirac", "eye", "identity"]


@known_arguments
@dataclass(frozen=True, repr=False)
class eye(KernelDistribution):
    """Fills a matrix with the identity times the gain: ones on the diagonal, where it has one.

    Args:
        gain: What stands on the diagonal.
        batch_axis: The axis or axes along which matrices are stacked; keyword-only.

    Returns:
        An initializer for any dtype; its key is not used and may be None.

    Raises:
        ValueError: If the gain is not finite, or when called with a shape that is not a matrix.

    Example:
        >>> eye(2.0)(None, (2, 3))
        Array([[2., 0., 0.],
               [0., 2., 0.]], dtype=float32)

    Source:
        ``torch.nn.init.eye_``; Keras's ``Identity``.
    """

    gain: float = 1.0
    batch_axis: Axes = field(default=(), kw_only=True, metadata=RARE)

    def __post_init__(self) -> None:
        set_floats(self, "gain")
        set_tuples(self, "batch_axis")

    def roles(self, shape: tuple[int, ...]) -> Roles:
        """Returns which of the two axes beside those of the stack are rows and columns."""
        matrix = axis_roles(shape, (), (), self.batch_axis).field
        if len(matrix) != 2:
            raise ValueError(
                f"{self!r} needs a shape of two axes beside the batch_axis, got {shape}; "
                "for a convolution there is dirac"
            )
        return matrix_roles(shape, matrix[1], self.batch_axis)

    def sample(self, key: Key, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        """Fills the array."""
        roles = self.roles(shape)
        batch, *matrix = sizes(shape, roles)
        value = jnp.asarray(self.gain, dtype) * jnp.eye(*matrix, dtype=dtype)
        return unstack(jnp.broadcast_to(value, (batch, *matrix)), shape, roles)


identity = eye


@known_arguments
@dataclass(frozen=True, repr=False)
class dirac(KernelDistribution):
    """Fills a convolution kernel so that it passes its input channels through unchanged.

    Output i of each group is input i, as far as there are both; other outputs are 0. The centre
    is that of ``SAME`` padding, ``(k - 1) // 2``; torch's is ``k // 2``, which differs for an even
    kernel size.

    Args:
        groups: The number of groups of the convolution, Flax's ``feature_group_count``; it divides
            the number of outputs.
        in_axis: The axis or axes of the inputs of one group; keyword-only.
        out_axis: The axis or axes of the outputs of all groups; keyword-only.
        batch_axis: The axis or axes along which kernels are stacked; keyword-only.

    Returns:
        An initializer for any dtype; its key is not used and may be None.

    Raises:
        ValueError: If ``groups`` is not positive, or when called with a shape without spatial
            axes, or whose outputs it does not divide.

    Example:
        >>> dirac()(None, (3, 1, 2))
        Array([[[0., 0.]],
        <BLANKLINE>
               [[1., 0.]],
        <BLANKLINE>
               [[0., 0.]]], dtype=float32)

    Source:
        ``torch.nn.init.dirac_``.
    """

    groups: int = 1
    in_axis: Axes = field(default=-2, kw_only=True, metadata=RARE)
    out_axis: Axes = field(default=-1, kw_only=True, metadata=RARE)
    batch_axis: Axes = field(default=(), kw_only=True, metadata=RARE)

    def __post_init__(self) -> None:
        set_tuples(self, "in_axis", "out_axis", "batch_axis")
        object.__setattr__(self, "groups", as_integer("groups", self.groups))
        if self.groups < 1:
            raise ValueError(f"groups must be positive, got {self.groups}")

    def roles(self, shape: tuple[int, ...]) -> Roles:
        """Returns which axes are inputs, outputs and the receptive field."""
        axes = self.in_axis, self.out_axis, self.batch_axis
        roles = spatial_roles(shape, *axes, matrix="eye")
        outputs = sizes(shape, roles)[2]
        if outputs % self.groups:
            raise ValueError(
                f"groups={self.groups} does not divide the {outputs} outputs of shape {shape}"
            )
        return roles

    def sample(self, key: Key, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        """Fills the array."""
        roles = self.roles(shape)
        batch, inputs, outputs = sizes(shape, roles)
        group = jnp.eye(inputs, outputs // self.groups, dtype=dtype)
        matrix = jnp.tile(group, (1, self.groups))
        return centred(jnp.broadcast_to(matrix, (batch, *matrix.shape)), shape, roles)
