"""The orthogonal family: orthonormality, and that the matrices are uniformly distributed.

The distributional tests compare with exact laws of Haar matrices over independent matrices, by the
distance that a correct sampler exceeds with probability ALPHA, or five standard errors. The last
test shows that they see the QR whose signs are left as LAPACK leaves them.
"""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jinit.initializers import delta_orthogonal, orthogonal
from tests.initializers.statistics import follows, uniform_cdf

pytestmark = pytest.mark.usefixtures("compile_fast")
COUNT = 4000
DTYPES = {"float32": 2e-6, "float64": 1e-14, "complex64": 2e-6, "complex128": 1e-14}
NARROW = {"bfloat16": 2**-8, "float16": 2**-11, "float8_e4m3fn": 2**-4, "float8_e5m2": 2**-3}


def draw(init, shape, dtype="float32", seed=0):
    with jax.enable_x64(dtype in ("float64", "complex128")):
        sample = np.asarray(init(jax.random.key(seed), shape, dtype))
    assert (sample.shape, sample.dtype) == (shape, dtype)
    return sample


def error(matrix):
    """How far the columns, or rows where these are fewer, are from orthonormal."""
    rows, columns = matrix.shape
    wide = matrix.astype(np.complex128 if np.iscomplexobj(matrix) else np.float64)
    tall = wide if rows >= columns else wide.T
    return np.abs(tall.conj().T @ tall - np.eye(min(rows, columns))).max()


@pytest.mark.cases
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *((shape, dtype) for shape in [(60, 20), (20, 60)] for dtype in DTYPES),
        *((shape, "float32") for shape in [(40, 40), (7, 1), (1, 7), (1, 1)]),
    ],
)
def test_orthonormal(shape, dtype):
    assert error(draw(orthogonal(), shape, dtype)) < DTYPES[dtype]


def test_large_matrices_are_orthonormal_in_float32():
    assert error(draw(orthogonal(), (700, 500))) < 1e-5


@pytest.mark.parametrize("dtype", NARROW)
def test_narrow_dtypes_are_the_rounded_float32(dtype):
    wide, narrow = (draw(orthogonal(), (40, 40), d) for d in ("float32", dtype))
    np.testing.assert_array_equal(narrow, wide.astype(dtype))
    # each rounding adds at most half a unit in the last place, relative to its entry
    assert error(narrow.astype(np.float64)) < 4 * NARROW[dtype]


def test_the_gain_is_a_factor():
    np.testing.assert_array_equal(draw(orthogonal(-2.0), (6, 4)), -2 * draw(orthogonal(), (6, 4)))


@pytest.mark.parametrize(
    ("shape", "init", "order", "matrix"),
    [
        ((3, 2, 4, 5), orthogonal(), (0, 1, 2, 3), (24, 5)),
        ((6, 2, 4), orthogonal(out_axis=(-2, -1)), (0, 1, 2), (6, 8)),
        ((5, 3, 2, 4), orthogonal(out_axis=0), (1, 2, 3, 0), (24, 5)),
    ],
)
def test_the_axes_of_a_kernel(shape, init, order, matrix):
    assert error(np.transpose(draw(init, shape), order).reshape(matrix)) < 2e-6


def test_stacked_matrices_are_independent():
    stack = draw(orthogonal(batch_axis=1), (30, 4, 20))
    for gate in range(4):
        assert error(stack[:, gate]) < 2e-6
    overlaps = np.einsum("iaj,ibj->ab", stack, stack) / 20
    assert abs(overlaps - np.eye(4)).max() < 0.25


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (2, 0, 3)])
def test_an_empty_matrix_is_empty(shape):
    assert orthogonal()(jax.random.key(0), shape).shape == shape


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_delta_orthogonal_keeps_the_norm_of_what_it_convolves(k):
    kernel = draw(delta_orthogonal(), (k, k, 3, 6))
    x = jax.random.normal(jax.random.key(1), (1, 8, 8, 3))
    y = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(np.sum(y**2, -1), np.sum(x**2, -1), rtol=1e-5)


@pytest.mark.parametrize("shape", [(3, 4, 4), (3, 3, 4, 8), (3, 2, 3, 2, 5)])
def test_delta_orthogonal_is_a_matrix_at_the_centre(shape):
    kernel = draw(delta_orthogonal(), shape)
    centre = kernel[tuple((size - 1) // 2 for size in shape[:-2])]
    np.testing.assert_allclose(centre @ centre.T, np.eye(shape[-2]), atol=1e-6)
    assert np.count_nonzero(kernel) == np.count_nonzero(centre)


def test_delta_orthogonal_takes_axes():
    kernel = draw(delta_orthogonal(in_axis=1, out_axis=0), (8, 4, 3, 3))
    centre = kernel[:, :, 1, 1]
    np.testing.assert_allclose(centre.T @ centre, np.eye(4), atol=1e-6)


@pytest.mark.parametrize(
    ("init", "shape", "message"),
    [
        (
            orthogonal(),
            (3,),
            "shape (3,) holds no matrix: it needs an axis beside out_axis=-1 and batch_axis=()",
        ),
        (orthogonal(), (), "shape () has no axis -1"),
        (
            delta_orthogonal(),
            (4, 4),
            "shape (4, 4) has no spatial axis beside in_axis=-2, out_axis=-1 and batch_axis=(); "
            "for a matrix there is orthogonal",
        ),
        (
            delta_orthogonal(),
            (3, 8, 4),
            "delta_orthogonal(gain=1.0) needs at least as many outputs as inputs, to keep their "
            "norm, got 8 inputs and 4 outputs of shape (3, 8, 4)",
        ),
    ],
)
def test_shapes_that_are_refused(init, shape, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        init(jax.random.key(0), shape)


# Haar's measure -----------------------------------------------------------------------------------


def matrices(n, dtype="float32", seed=1):
    return draw(orthogonal(batch_axis=0), (COUNT, n, n), dtype, seed)


def near(values, mean):
    """Whether the mean of independent numbers lies within five standard errors."""
    return abs(np.mean(values) - mean) < 5 * np.std(values) / math.sqrt(len(values))


@pytest.mark.parametrize("n", [2, 3, 8])
def test_moments_of_the_entries(n):
    # Means over a matrix are independent between matrices; E q^2 is 1/n in each exactly.
    q = matrices(n).astype(np.float64)
    assert near(q.mean((1, 2)), 0)
    np.testing.assert_allclose((q**2).mean((1, 2)), 1 / n, rtol=1e-5)
    assert near((q**4).mean((1, 2)), 3 / (n * (n + 2)))
    assert near(q[:, 0, 0] ** 2 * q[:, 1, 1] ** 2, (n + 1) / ((n - 1) * n * (n + 2)))


@pytest.mark.parametrize("n", [2, 3, 8])
def test_the_law_of_every_entry(n):
    q = matrices(n)
    for i, j in [(0, 0), (0, n - 1), (n - 1, 0), (n - 1, n - 1)]:
        assert follows(q[:, i, j] ** 2, stats.beta(0.5, (n - 1) / 2).cdf)
        assert near(np.sign(q[:, i, j]), 0)


def test_determinants_are_half_and_half():
    assert near(np.linalg.det(matrices(8)), 0)
    phases = np.angle(np.linalg.det(matrices(4, "complex64")))
    assert follows(phases, uniform_cdf(-np.pi, np.pi))


def test_traces_of_powers():
    # Diaconis and Shahshahani 1994: exact for n = 8 and these powers
    q = matrices(8).astype(np.float64)
    first, second = (np.trace(p, axis1=1, axis2=2) for p in (q, q @ q))
    assert near(first, 0)
    assert near(first**2, 1)
    assert near(first**4, 3)
    assert near(second, 1)
    assert near((second - 1) ** 2, 2)


def eigenphases(u):
    """One eigenvalue's phase a matrix, chosen by lot: those of one matrix repel each other."""
    chosen = np.random.default_rng(0).integers(u.shape[1], size=len(u))
    return np.angle(np.linalg.eigvals(u)[np.arange(len(u)), chosen])


def test_eigenvalue_phases_of_unitary_matrices():
    u = matrices(4, "complex64")
    assert follows(eigenphases(u), uniform_cdf(-np.pi, np.pi))
    assert near(abs(u[:, 0, 0]) ** 4, 2 / (4 * 5))


def test_rotations_of_the_plane_turn_by_a_uniform_angle():
    q = matrices(2)
    turns = q[np.linalg.det(q) > 0]
    assert follows(np.arctan2(turns[:, 1, 0], turns[:, 0, 0]), uniform_cdf(-np.pi, np.pi))


def test_a_fixed_rotation_changes_no_law():
    q = matrices(8).astype(np.float64)
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(8, 8)))[0]
    for turned in (turn @ q, q @ turn):
        assert follows(turned[:, 2, 5] ** 2, stats.beta(0.5, 3.5).cdf)


def test_the_tests_can_fail():
    gaussian = jax.random.normal(jax.random.key(0), (COUNT, 8, 8))
    raw = np.asarray(jnp.linalg.qr(gaussian)[0])
    assert not near(np.sign(raw[:, 0, 0]), 0)
    assert not near(np.trace(raw, axis1=1, axis2=2), 0)
    complex_raw = np.linalg.qr(gaussian[:, :4, :4] + 1j * gaussian[:, 4:, 4:])[0]
    assert not follows(eigenphases(complex_raw), uniform_cdf(-np.pi, np.pi))
