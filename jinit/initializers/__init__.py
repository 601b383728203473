"""Initializers: factories of functions ``init(key, shape, dtype=float32, out_sharding=None)``.

The names and conventions are those of ``torch.nn.init`` and Flint: a normal is not truncated,
``normal`` has standard deviation 1, ``uniform`` is [0, 1). Every name is a factory, ``zeros`` and
``ones`` too: write ``kernel_init=initializers.zeros()``. Equal arguments make equal, hashable
initializers, so a module that holds one does not retrace.

Kernels are laid out as in JAX, ``(*spatial, in, out)``. Values are drawn in float32 (float64 for
float64) and cast last; where a narrower dtype cannot hold a number it becomes the largest that it
can. With partitionable threefry keys, JAX's default, a value depends on the key and the shape
alone: it is bitwise the same eagerly, under jit, and on any mesh. Keys of ``rbg`` draw as well, but
for them nothing is promised beyond JAX's own word.
"""

from jinit import _known
from jinit.initializers.compose import scaled, with_fan
from jinit.initializers.distributions import constant, normal, ones, uniform, zeros
from jinit.initializers.gains import calculate_gain
from jinit.initializers.haar import delta_orthogonal, orthogonal
from jinit.initializers.identity import dirac, eye, identity
from jinit.initializers.named import (
    glorot_normal,
    glorot_uniform,
    he_normal,
    he_uniform,
    kaiming_normal,
    kaiming_uniform,
    lecun_normal,
    lecun_uniform,
    xavier_normal,
    xavier_uniform,
)
from jinit.initializers.overrides import reinit
from jinit.initializers.products import bilinear
from jinit.initializers.sparsity import sparse
from jinit.initializers.truncated import truncated_normal
from jinit.initializers.variance_scaling import variance_scaling

__all__ = [
    "bilinear",
    "calculate_gain",
    "constant",
    "delta_orthogonal",
    "dirac",
    "eye",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "identity",
    "kaiming_normal",
    "kaiming_uniform",
    "lecun_normal",
    "lecun_uniform",
    "normal",
    "ones",
    "orthogonal",
    "reinit",
    "scaled",
    "sparse",
    "truncated_normal",
    "uniform",
    "variance_scaling",
    "with_fan",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]

__getattr__ = _known.known_names(__name__, __all__)


def __dir__() -> list[str]:
    return sorted(__all__)
