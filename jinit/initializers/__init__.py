"""Initializers: factories of functions ``init(key, shape, dtype=float32, out_sharding=None)``.

The names and conventions are those of ``torch.nn.init`` and Flint: a normal is not truncated,
``normal`` has standard deviation 1, ``uniform`` is [0, 1). Every name is a factory, ``zeros`` and
``ones`` too: write ``kernel_init=initializers.zeros()``. Equal arguments make equal, hashable
initializers, so a module that holds one does not retrace.

Kernels are laid out as in JAX, ``(*spatial, in, out)``. Values are drawn in float32 (float64 for
float64) and cast last. With partitionable threefry keys, JAX's default, a value depends on the
key and the shape alone: it is bitwise the same eagerly, under jit, and on any mesh.
"""

from jinit.initializers.distributions import constant, normal, ones, uniform, zeros
from jinit.initializers.gains import calculate_gain
from jinit.initializers.variance_scaling import (
    kaiming_normal,
    kaiming_uniform,
    lecun_normal,
    lecun_uniform,
    xavier_normal,
    xavier_uniform,
)

__all__ = [
    "calculate_gain",
    "constant",
    "kaiming_normal",
    "kaiming_uniform",
    "lecun_normal",
    "lecun_uniform",
    "normal",
    "ones",
    "uniform",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]
