"""Initializers that place numbers: eye, dirac and sparse, against what they are to do."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jinit.initializers import dirac, eye, identity, sparse
from tests.initializers.statistics import follows, normal_cdf

pytestmark = pytest.mark.usefixtures("compile_fast")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn", "int32", "complex64"])
@pytest.mark.parametrize("shape", [(3, 3), (2, 4), (4, 2), (0, 3)])
def test_eye(shape, dtype):
    sample = eye(2.0)(None, shape, dtype)
    assert sample.dtype == dtype
    np.testing.assert_array_equal(np.asarray(sample), (2 * np.eye(*shape)).astype(dtype))
    assert identity is eye


def test_a_stack_of_eyes():
    sample = eye(batch_axis=1)(None, (2, 5, 3))
    np.testing.assert_array_equal(sample, np.tile(np.eye(2, 3)[:, None], (1, 5, 1)))


@pytest.mark.cases
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("rank", [1, 2])
def test_a_dirac_convolution_passes_its_input_through(rank, size):
    conv = nn.Conv(6, (size,) * rank, use_bias=False, kernel_init=dirac())
    x = jax.random.normal(jax.random.key(0), (2, *(7,) * rank, 4))
    y, _ = conv.init_with_output(jax.random.key(1), x)
    np.testing.assert_array_equal(y[..., :4], x)
    np.testing.assert_array_equal(y[..., 4:], 0)


@pytest.mark.parametrize(("outputs", "copies"), [(6, 1), (12, 2)])
def test_groups_of_a_dirac_convolution_pass_theirs_through(outputs, copies):
    conv = nn.Conv(outputs, (3,), feature_group_count=3, use_bias=False, kernel_init=dirac(3))
    x = jax.random.normal(jax.random.key(0), (2, 7, 6))
    y, _ = conv.init_with_output(jax.random.key(1), x)
    for group in range(3):
        out = y[..., group * 2 * copies : (group + 1) * 2 * copies]
        np.testing.assert_array_equal(out[..., :2], x[..., group * 2 : group * 2 + 2])
        np.testing.assert_array_equal(out[..., 2:], 0)


def torch_dirac(shape, groups):
    """What torch documents, for its kernels (out, in / groups, *spatial) of odd sizes."""
    kernel = np.zeros(shape)
    per_group = shape[0] // groups
    for group in range(groups):
        for channel in range(min(per_group, shape[1])):
            kernel[(group * per_group + channel, channel, *(s // 2 for s in shape[2:]))] = 1
    return kernel


@pytest.mark.parametrize(
    ("shape", "groups"), [((4, 4, 3), 1), ((6, 2, 3, 5), 3), ((6, 4, 1, 3, 3), 2)]
)
def test_torchs_dirac_on_its_layout(shape, groups):
    sample = dirac(groups, in_axis=1, out_axis=0)(None, shape)
    np.testing.assert_array_equal(sample, torch_dirac(shape, groups))


@pytest.mark.cases
@pytest.mark.parametrize(
    ("sparsity", "zeros", "dtype"),
    [
        (0.0, 0, "float32"),
        (0.1, 20, "float32"),
        (0.55, 110, "float32"),
        (0.7001, 141, "float32"),
        (1.0, 200, "float32"),
        (0.55, 110, "bfloat16"),
        (0.55, 110, "float8_e5m2"),
        (0.55, 110, "complex64"),
    ],
)
def test_sparse_counts_its_zeros(sparsity, zeros, dtype):
    sample = np.asarray(sparse(sparsity, std=1.0)(jax.random.key(0), (200, 50), dtype))
    assert sample.dtype == dtype
    # the normal itself makes no zero in 1e4 numbers
    assert (np.count_nonzero(sample == 0, axis=0) == zeros).all()


def test_sparse_draws_the_others_from_a_normal():
    sample = np.asarray(sparse(0.9, std=0.3)(jax.random.key(0), (1000, 500)))
    assert follows(sample[sample != 0], normal_cdf(0, 0.3))


def test_sparse_zeros_are_anywhere_and_independent():
    # Rows of zeros: of 2000 columns each is binomial, and five standard deviations are 112.
    zero = np.asarray(sparse(0.5)(jax.random.key(0), (40, 2000))) == 0
    assert abs(zero.sum(1) - 1000).max() < 112
    # Two rows are zero together with probability 20/40 * 19/39; four standard errors for 780 pairs.
    together = zero.astype(float) @ zero.T / 2000
    pairs = together[np.triu_indices(40, 1)]
    assert abs(pairs.mean() - 20 / 40 * 19 / 39) < 1e-9
    assert abs(pairs - 0.2436).max() < 5.5 * np.sqrt(0.2436 * 0.7564 / 2000)


def test_sparse_has_torchs_columns_by_an_argument():
    sample = np.asarray(sparse(0.75, out_axis=-2)(jax.random.key(0), (6, 8)))
    assert (np.count_nonzero(sample, axis=1) == 2).all()


def test_sparse_convolutions():
    sample = np.asarray(sparse(0.75)(jax.random.key(0), (2, 2, 4, 5)))
    assert (np.count_nonzero(sample.reshape(16, 5), axis=0) == 4).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: eye()(None, (3,)),
            "eye(gain=1.0) needs a shape of two axes beside the batch_axis, got (3,); "
            "for a convolution there is dirac",
        ),
        (
            lambda: dirac()(None, (3, 4)),
            "shape (3, 4) has no spatial axis beside in_axis=-2, out_axis=-1 and batch_axis=(); "
            "for a matrix there is eye",
        ),
        (
            lambda: dirac(3)(None, (3, 2, 4)),
            "groups=3 does not divide the 4 outputs of shape (3, 2, 4)",
        ),
        (lambda: dirac(0), "groups must be positive, got 0"),
        (lambda: sparse(1.5), "sparsity must lie in [0, 1], got 1.5"),
        (lambda: sparse(0.5, -1), "std must not be negative, got -1.0"),
        (
            lambda: sparse(0.5)(jax.random.key(0), (4,)),
            "shape (4,) holds no matrix: it needs an axis beside out_axis=-1 and batch_axis=()",
        ),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call()


def test_no_memory_is_kept_for_a_large_identity():
    """The program computes the kernel; a constant of its size would stay in it."""
    lowered = jax.jit(lambda: dirac()(None, (3, 3, 256, 256), jnp.bfloat16)).lower()
    assert len(lowered.as_text()) < 20_000
