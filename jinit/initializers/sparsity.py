"""Matrices most of whose entries are zero."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Self

import jax
import jax.numpy as jnp

from jinit._known import known_arguments
from jinit.initializers.base import RARE, Affine, RandomDistribution, set_floats, set_tuples
from jinit.initializers.distributions import normal
from jinit.initializers.fans import Axes, Roles
from jinit.initializers.layout import KernelDistribution, matrix_roles, sizes, unstack
from jinit.typing import Key

__all__ = ["sparse"]


@known_arguments
@dataclass(frozen=True, repr=False)
class sparse(KernelDistribution, RandomDistribution):
    r"""Draws from :math:`N(0, \text{std}^2)` and sets a fixed fraction of every column to zero.

    Each column has :math:`\lceil \text{sparsity} \cdot \text{rows} \rceil` zeros, at random and
    independently. In JAX's layout a column is one output's weights, so all outputs have the same
    number of connections, as in the paper; torch's kernels have the output first, and there the
    columns are those of the inputs: ``out_axis=-2`` selects it.

    Args:
        sparsity: The fraction of zeros, in [0, 1].
        std: The standard deviation of the other entries, not negative.
        out_axis: The axis or axes of the columns; keyword-only. All others are rows.
        batch_axis: The axis or axes along which independent matrices are stacked; keyword-only.

    Returns:
        An initializer for floating-point and complex dtypes.

    Raises:
        ValueError: If an argument is out of range, or when called with a shape that holds no
            matrix.

    Example:
        >>> sample = sparse(0.75)(jax.random.key(0), (8, 5))
        >>> jnp.count_nonzero(sample, axis=0)
        Array([2, 2, 2, 2, 2], dtype=int32)

    Source:
        Martens, Deep learning via Hessian-free optimization, 2010; ``torch.nn.init.sparse_``.
    """

    sparsity: float
    std: float = 0.01
    out_axis: Axes = field(default=-1, kw_only=True, metadata=RARE)
    batch_axis: Axes = field(default=(), kw_only=True, metadata=RARE)

    def __post_init__(self) -> None:
        set_floats(self, "sparsity", "std")
        set_tuples(self, "out_axis", "batch_axis")
        if not 0 <= self.sparsity <= 1:
            raise ValueError(f"sparsity must lie in [0, 1], got {self.sparsity}")
        if self.std < 0:
            raise ValueError(f"std must not be negative, got {self.std}")

    def roles(self, shape: tuple[int, ...]) -> Roles:
        """Returns which axes are rows and columns."""
        return matrix_roles(shape, self.out_axis, self.batch_axis)

    def unit(self) -> Self:
        """Returns the initializer with standard deviation 1."""
        return dataclasses.replace(self, std=1.0)

    def affine(self, dtype: jnp.dtype) -> Affine:
        """Returns the factor of the normal distribution."""
        return normal(std=self.std).affine(dtype)

    def sample(self, key: Key, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        """Draws from the unit of the normal distribution, with zeros."""
        values, order = jax.random.split(key)
        roles = self.roles(shape)
        stack = sizes(shape, roles)
        # Rounded: 0.55 of 100 rows is 55.000000000000007 in floating point, not 56.
        zeros = math.ceil(round(self.sparsity * stack[1], 6))
        ranks = jax.random.bits(order, stack, jnp.uint32)  # the default depends on 64-bit mode
        permutations = jnp.argsort(ranks, axis=1)
        matrices = jnp.where(permutations < zeros, 0, normal().sample(values, stack, dtype))
        return unstack(matrices, shape, roles)
