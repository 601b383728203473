"""Keras's initializers, as installed, against those that the docstrings say draw the same.

The distance of two samples of 1e5 numbers is exceeded with probability ALPHA if they come from one
distribution; the limit of a uniform one is compared too.
"""

import math
import os

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import numpy as np
import pytest

from jinit.initializers import (
    eye,
    glorot_normal,
    glorot_uniform,
    he_normal,
    he_uniform,
    lecun_normal,
    lecun_uniform,
    normal,
    orthogonal,
    truncated_normal,
    uniform,
    variance_scaling,
)
from tests.initializers.statistics import ALPHA

pytestmark = pytest.mark.usefixtures("compile_fast")
K = keras.initializers
SHAPE = (5, 5, 40, 100)


def distance(a, b):
    """Kolmogorov and Smirnov's, between two samples."""
    a, b = np.sort(a, None), np.sort(b, None)
    both = np.concatenate([a, b])
    steps = [np.searchsorted(x, both, "right") / x.size for x in (a, b)]
    return np.max(np.abs(steps[0] - steps[1]))


CASES = [
    (glorot_uniform(), K.GlorotUniform(1)),
    (glorot_normal(truncated=True), K.GlorotNormal(1)),
    (he_uniform(), K.HeUniform(1)),
    (he_normal(truncated=True), K.HeNormal(1)),
    (lecun_uniform(), K.LecunUniform(1)),
    (lecun_normal(truncated=True), K.LecunNormal(1)),
    (uniform(low=-0.05, high=0.05), K.RandomUniform(seed=1)),
    (normal(std=0.05), K.RandomNormal(seed=1)),
    (truncated_normal(std=0.05, relative=True), K.TruncatedNormal(seed=1)),
    (variance_scaling(), K.VarianceScaling(seed=1)),
    (variance_scaling(2.0, "fan_out", "uniform"), K.VarianceScaling(2.0, "fan_out", "uniform", 1)),
    (
        variance_scaling(2.0, "fan_avg", "normal"),
        K.VarianceScaling(2.0, "fan_avg", "untruncated_normal", 1),
    ),
    (variance_scaling(0.5, "fan_avg"), K.VarianceScaling(0.5, "fan_avg", "normal", 1)),
]


@pytest.mark.cases
@pytest.mark.parametrize(("ours", "theirs"), CASES, ids=[repr(ours) for ours, _ in CASES])
def test_the_distribution_is_keras(ours, theirs):
    a, b = np.asarray(ours(jax.random.key(2), SHAPE)), np.asarray(theirs(SHAPE))
    assert distance(a, b) < math.sqrt(math.log(2 / ALPHA) / a.size)
    assert a.std() == pytest.approx(b.std(), rel=5 * math.sqrt(2 / a.size))
    if "Uniform" in type(theirs).__name__:
        assert abs(a).max() == pytest.approx(abs(b).max(), rel=1e-3)


def test_an_untruncated_normal_is_not_keras():
    a, b = np.asarray(glorot_normal()(jax.random.key(2), SHAPE)), np.asarray(CASES[1][1](SHAPE))
    assert distance(a, b) > math.sqrt(math.log(2 / ALPHA) / a.size)


@pytest.mark.cases
@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (3, 3, 5, 20)])
@pytest.mark.usefixtures("allow_rank_promotion")
def test_orthogonal_is_keras_up_to_the_draw(shape):
    for kernel in (orthogonal(2.0)(jax.random.key(0), shape), K.Orthogonal(2.0, 1)(shape)):
        matrix = np.asarray(kernel, np.float64).reshape(-1, shape[-1])
        tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
        np.testing.assert_allclose(tall.T @ tall, 4 * np.eye(tall.shape[1]), atol=1e-5)


def test_eye_is_keras_identity():
    np.testing.assert_array_equal(eye(2.0)(None, (3, 5)), K.Identity(2.0)((3, 5)))


@pytest.mark.parametrize("shape", [(7,), (4, 9), (3, 4, 9), (2, 3, 4, 9)])
def test_fans_are_keras(shape):
    theirs = K.GlorotUniform(1)(shape)
    fans = (7, 7) if len(shape) == 1 else None  # Keras's rule for a vector, given explicitly
    limit = glorot_uniform(fans=fans).resolve(shape).high
    assert abs(np.asarray(theirs)).max() < limit * (1 + 1e-6)
    fan_in, fan_out = keras.src.initializers.random_initializers.compute_fans(shape)
    assert limit == pytest.approx(math.sqrt(6 / (fan_in + fan_out)))
