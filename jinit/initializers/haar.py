"""Orthogonal matrices, uniformly distributed, and convolutions made from them."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Self

import jax
import jax.numpy as jnp

from jinit._known import known_arguments
from jinit.initializers.base import RARE, Affine, RandomDistribution, set_floats, set_tuples
from jinit.initializers.distributions import normal
from jinit.initializers.fans import Axes, Roles
from jinit.initializers.layout import (
    KernelDistribution,
    centred,
    matrix_roles,
    sizes,
    spatial_roles,
    unstack,
)
from jinit.typing import Key

__all__ = ["delta_orthogonal", "orthogonal"]


@dataclass(frozen=True, repr=False)
class _Orthogonal(KernelDistribution, RandomDistribution):
    gain: float = 1.0
    out_axis: Axes = field(default=-1, kw_only=True, metadata=RARE)
    batch_axis: Axes = field(default=(), kw_only=True, metadata=RARE)

    def __post_init__(self) -> None:
        set_floats(self, "gain")
        set_tuples(self, "out_axis", "batch_axis")

    def unit(self) -> Self:
        """Returns the initializer with gain 1."""
        return dataclasses.replace(self, gain=1.0)

    def affine(self, dtype: jnp.dtype) -> Affine:
        """Returns the gain."""
        return Affine(self.gain)


@known_arguments
@dataclass(frozen=True, repr=False)
class orthogonal(_Orthogonal):
    r"""Draws a matrix with orthonormal columns, or rows where these are fewer, times the gain.

    The distribution is Haar's, the uniform one: :math:`UQV` is distributed as :math:`Q` for all
    orthogonal (of complex dtypes, unitary) :math:`U, V`. A kernel of more than two axes is taken
    as the matrix ``(all other axes, out_axis)``, as Keras does and JAX, where ``out_axis`` is
    called ``column_axis``; torch's kernels have the output first.

    Args:
        gain: A factor, see ``calculate_gain``.
        out_axis: The axis or axes of the columns; keyword-only.
        batch_axis: The axis or axes along which independent matrices are stacked, as those of a
            recurrent cell's gates; keyword-only.

    Returns:
        An initializer for floating-point and complex dtypes. ``out_sharding`` shards the result;
        each device computes the whole matrix.

    Raises:
        ValueError: If the gain is not finite, or when called with a shape that holds no matrix.

    Example:
        >>> q = orthogonal()(jax.random.key(0), (5, 3))
        >>> bool(jnp.allclose(q.T @ q, jnp.eye(3), atol=1e-6))
        True

    Source:
        Saxe et al., Exact solutions to the nonlinear dynamics of learning in deep linear neural
        networks, 2014; ``torch.nn.init.orthogonal_``.
    """

    def roles(self, shape: tuple[int, ...]) -> Roles:
        """Returns which axes are rows and columns."""
        return matrix_roles(shape, self.out_axis, self.batch_axis)

    def sample(self, key: Key, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        """Draws with gain 1."""
        roles = self.roles(shape)
        return unstack(_haar(key, *sizes(shape, roles), dtype), shape, roles)


@known_arguments
@dataclass(frozen=True, repr=False)
class delta_orthogonal(_Orthogonal):
    r"""Draws a convolution kernel that is an orthogonal matrix at its centre and 0 elsewhere.

    The matrix has orthonormal rows, so a convolution of stride 1 keeps the norm of its input but
    for the factor ``gain``. The centre is that of ``SAME`` padding, ``(k - 1) // 2``.

    Args:
        gain: A factor, see ``calculate_gain``.
        in_axis: The axis or axes of the inputs; keyword-only.
        out_axis: The axis or axes of the outputs; keyword-only.
        batch_axis: The axis or axes along which independent kernels are stacked; keyword-only.

    Returns:
        An initializer for floating-point and complex dtypes.

    Raises:
        ValueError: If the gain is not finite, or when called with a shape without spatial axes,
            or with more inputs than outputs.

    Example:
        >>> kernel = delta_orthogonal()(jax.random.key(0), (3, 3, 4, 8))
        >>> bool(jnp.allclose(kernel[1, 1] @ kernel[1, 1].T, jnp.eye(4), atol=1e-6))
        True

    Source:
        Xiao et al., Dynamical isometry and a mean field theory of CNNs, 2018;
        ``jax.nn.initializers.delta_orthogonal``.
    """

    in_axis: Axes = field(default=-2, kw_only=True, metadata=RARE)

    def __post_init__(self) -> None:
        super().__post_init__()
        set_tuples(self, "in_axis")

    def roles(self, shape: tuple[int, ...]) -> Roles:
        """Returns which axes are inputs, outputs and the receptive field."""
        axes = self.in_axis, self.out_axis, self.batch_axis
        roles = spatial_roles(shape, *axes, matrix="orthogonal")
        _, inputs, outputs = sizes(shape, roles)
        if inputs > outputs:
            raise ValueError(
                f"{self!r} needs at least as many outputs as inputs, to keep their norm, got "
                f"{inputs} inputs and {outputs} outputs of shape {shape}"
            )
        return roles

    def sample(self, key: Key, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        """Draws with gain 1."""
        roles = self.roles(shape)
        return centred(_haar(key, *sizes(shape, roles), dtype), shape, roles)


def _haar(key: Any, batch: int, rows: int, columns: int, dtype: jnp.dtype) -> jax.Array:
    """Draws matrices with orthonormal columns, or rows where these are fewer."""
    if 0 in (batch, rows, columns):
        return jnp.zeros((batch, rows, columns), dtype)
    tall = batch, max(rows, columns), min(rows, columns)
    q, r = jnp.linalg.qr(normal().sample(key, tall, dtype))
    # Q is Haar where R's diagonal is positive, which makes the two unique; LAPACK lets it be
    # negative.
    diagonal = jnp.diagonal(r, axis1=-2, axis2=-1)
    q = q * (diagonal / jnp.abs(diagonal))[:, None]
    return jnp.swapaxes(q, -2, -1) if rows < columns else q
