"""What initializations are compared by, bit for bit unless a test says how far they may be.

The compiler of the quick suite fuses little, so that products and sums are rounded together in one
program and apart in another: there floats are compared within a few roundings.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np

from jinit import fast_init
from tests.compiler import QUICK

ROUNDINGS = 3
"""Of the largest number of a leaf, in the quick suite."""


def is_quick():
    """Whether the compiler is that of the quick suite."""
    return QUICK in os.environ.get("XLA_FLAGS", "")


def bits_of(leaf):
    """The leaf as an array of NumPy; of keys, their words."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def steps_between(one, other):
    """How many numbers of their dtype lie between two arrays, at the most."""
    width = one.dtype.itemsize
    bits = [array.view(f"i{width}").astype(np.int64) for array in (one, other)]
    smallest = -(2 ** (8 * width - 1))
    first, second = (np.where(b < 0, smallest - b, b) for b in bits)
    return int(np.abs(first - second).max(initial=0))


def distance(one, other):
    """How far two arrays are apart, measured by the largest number; what is infinite is equal."""
    wide = np.dtype("complex128" if one.dtype.kind == "c" else "float64")
    one, other = one.astype(wide), other.astype(wide)
    finite = np.isfinite(other)
    np.testing.assert_array_equal(one[~finite], other[~finite])
    one, other = one[finite], other[finite]
    largest = np.abs(other).max(initial=0)
    return np.abs(one - other).max(initial=0) / largest if largest else np.abs(one).max(initial=0)


def assert_same(found, expected, *, steps=0, relative=0.0):
    """Asserts that two trees are equal: structures, shapes, dtypes, weak types, and values.

    Args:
        found: A tree.
        expected: Another.
        steps: How many units in the last place may lie between two numbers.
        relative: How far they may lie apart, measured by the largest of the leaf.
    """
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    pairs = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True)
    for (path, one), other in pairs:
        name = jax.tree_util.keystr(path)
        assert one.shape == other.shape, name
        assert one.dtype == other.dtype, name
        assert getattr(one, "weak_type", False) == getattr(other, "weak_type", False), name
        one, other = bits_of(one), bits_of(other)
        if not jnp.issubdtype(one.dtype, jnp.inexact):
            np.testing.assert_array_equal(one, other, err_msg=name)
        elif relative or is_quick():
            margin = max(relative, float(is_quick() * ROUNDINGS * jnp.finfo(one.dtype).eps))
            assert distance(one, other) <= margin, name
        elif steps:
            assert steps_between(one, other) <= steps, name
        else:
            np.testing.assert_array_equal(one, other, err_msg=name)


def check(init_fn, *args, out_shardings=None, steps=0, relative=0.0, **kwargs):
    """Asserts that the fast initialization is the ordinary one, and returns it."""
    init = fast_init(init_fn, out_shardings=out_shardings)
    found = init(*args, **kwargs)
    assert_same(found, jax.jit(init_fn)(*args, **kwargs), steps=steps, relative=relative)
    return init


def ways(init):
    """The ways in which leaves were made, each with how many."""
    made = {}
    for row in init.report.rows:
        made[row.way] = made.get(row.way, 0) + len(row.leaves)
    return made
