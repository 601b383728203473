"""What is drawn, against closed forms and against jax's own initializers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jinit.initializers import (
    constant,
    kaiming_normal,
    kaiming_uniform,
    lecun_normal,
    lecun_uniform,
    normal,
    ones,
    uniform,
    xavier_normal,
    xavier_uniform,
    zeros,
)
from jinit.initializers.base import Initializer
from tests.initializers.statistics import (
    follows,
    ks_distance,
    ks_threshold,
    moments_fit,
    normal_cdf,
    uniform_cdf,
)

CONV, FANS = (5, 5, 40, 100), (1000, 2500)
HALF = ["bfloat16", "float16"]
FLOAT8 = ["float8_e4m3fn", "float8_e5m2"]

# initializer, its variance as a function of the fans
NORMALS = [
    (xavier_normal(), lambda i, o: 2 / (i + o)),
    (xavier_normal(gain=2.5), lambda i, o: 2.5**2 * 2 / (i + o)),
    (kaiming_normal(), lambda i, o: 2 / i),
    (kaiming_normal(mode="fan_out"), lambda i, o: 2 / o),
    (kaiming_normal(0.5), lambda i, o: 2 / 1.25 / i),
    (kaiming_normal(mode="fan_geo_avg", nonlinearity="tanh"), lambda i, o: 25 / 9 / (i * o) ** 0.5),
    (lecun_normal(), lambda i, o: 1 / i),
    (lecun_normal(in_axis=-1, out_axis=-2), lambda i, o: 1 / o),
]
UNIFORMS = [
    (xavier_uniform(), lambda i, o: 2 / (i + o)),
    (xavier_uniform(5 / 3), lambda i, o: (5 / 3) ** 2 * 2 / (i + o)),
    (kaiming_uniform(nonlinearity="relu"), lambda i, o: 2 / i),
    (kaiming_uniform(mode="fan_avg", nonlinearity="linear"), lambda i, o: 2 / (i + o)),
    (lecun_uniform(), lambda i, o: 1 / i),
]


def each(cases):
    return pytest.mark.parametrize(("init", "variance"), cases, ids=[repr(c[0]) for c in cases])


@each(NORMALS)
def test_scaled_normals(init, variance):
    std = math.sqrt(variance(*FANS))
    sample = init(jax.random.key(1), CONV)
    assert sample.shape == CONV
    assert sample.dtype == jnp.float32
    assert follows(sample, normal_cdf(0, std))
    assert moments_fit(sample, 0, std, kurtosis=3)
    # Not truncated: of 1e5 normal numbers, four sigma is passed with probability 0.998.
    assert abs(sample).max() > 4 * std


@each(UNIFORMS)
def test_scaled_uniforms(init, variance):
    std = math.sqrt(variance(*FANS))
    limit = math.sqrt(3) * std
    sample = init(jax.random.key(2), CONV)
    assert follows(sample, uniform_cdf(-limit, limit))
    assert moments_fit(sample, 0, std, kurtosis=1.8)
    assert 0.999 * limit < abs(sample).max() <= np.float32(limit)


@pytest.mark.parametrize(
    ("init", "cdf"),
    [
        (normal(), normal_cdf(0, 1)),
        (normal(-3.0, 0.02), normal_cdf(-3, 0.02)),
        (uniform(), uniform_cdf(0, 1)),
        (uniform(-0.05, 0.05), uniform_cdf(-0.05, 0.05)),
        (uniform(-1, 7), uniform_cdf(-1, 7)),
    ],
    ids=lambda value: repr(value) if isinstance(value, Initializer) else "cdf",
)
def test_plain_distributions(init, cdf, make_key):
    assert follows(init(make_key(3), (500, 200)), cdf)


def test_the_test_of_distributions_can_fail():
    truncated = jax.nn.initializers.lecun_normal()(jax.random.key(0), (400, 250))
    assert ks_distance(truncated, normal_cdf(0, 0.05)) > 2 * ks_threshold(truncated.size)
    wider = lecun_uniform()(jax.random.key(0), (400, 250)) * 1.02
    limit = math.sqrt(3) / 20
    assert ks_distance(wider, uniform_cdf(-limit, limit)) > ks_threshold(wider.size)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (normal(std=0.3), jax.nn.initializers.normal(0.3)),
        (uniform(0, 0.2), jax.nn.initializers.uniform(0.2)),
        (xavier_uniform(), jax.nn.initializers.glorot_uniform()),
        (kaiming_uniform(), jax.nn.initializers.he_uniform()),
        (lecun_uniform(), jax.nn.initializers.lecun_uniform()),
        (
            xavier_normal(),
            jax.nn.initializers.variance_scaling(1.0, "fan_avg", "normal"),
        ),
        (
            kaiming_normal(mode="fan_out"),
            jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        ),
        (lecun_normal(), jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")),
    ],
    ids=lambda init: repr(init) if isinstance(init, Initializer) else "jax",
)
def test_jaxs_numbers_where_the_conventions_coincide(ours, theirs):
    key = jax.random.key(7)
    np.testing.assert_allclose(ours(key, (9, 8, 7)), theirs(key, (9, 8, 7)), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "bool", "complex64"])
def test_constants(dtype):
    for init, value in [(zeros(), 0), (ones(), 1), (constant(1.0), 1)]:
        sample = init(None, (2, 3), dtype)
        assert sample.dtype == dtype
        np.testing.assert_array_equal(np.asarray(sample), np.full((2, 3), value, dtype))


def test_a_constant_broadcasts():
    np.testing.assert_array_equal(
        constant(np.arange(3))(None, (2, 3)), np.tile(np.arange(3, dtype=np.float32), (2, 1))
    )


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_is_the_rounded_float32(dtype):
    key = jax.random.key(4)
    for init in (normal(), xavier_uniform()):
        half = init(key, (400, 250), dtype)
        assert half.dtype == dtype
        np.testing.assert_array_equal(half, init(key, (400, 250)).astype(dtype))


@pytest.mark.parametrize("dtype", HALF + FLOAT8)
def test_half_precision_keeps_the_moments_and_the_tails(dtype):
    sample = np.asarray(normal()(jax.random.key(5), (1000, 200), dtype), np.float64)
    # Rounding to 2 or 3 bits widens the distribution by its own variance, 2^-2b / 12 and less.
    widening = {"float8_e4m3fn": 0.004, "float8_e5m2": 0.015}.get(dtype, 1e-4)
    assert abs(sample.mean()) < 5 / math.sqrt(sample.size)
    assert abs(sample.std() - 1) < widening + 5 / math.sqrt(2 * sample.size)
    assert abs(sample).max() > 4
    if dtype in HALF:
        assert len(np.unique(sample)) > 1000


def test_a_huge_fan_does_not_vanish_in_float16():
    init = lecun_normal(fans=(1e8, 1))
    assert np.asarray(init(jax.random.key(0), (1000,), "float16"), np.float64).std() > 9e-5


def test_float64():
    with jax.enable_x64(True):
        sample = normal()(jax.random.key(0), (1000, 100), "float64")
        assert sample.dtype == np.float64
        assert follows(sample, normal_cdf(0, 1))
        assert not np.array_equal(sample, sample.astype(np.float32))


def test_vmap_draws_as_a_loop_does():
    keys = jax.random.split(jax.random.key(0), 3)
    draws = jax.vmap(lambda key: kaiming_normal()(key, (16, 8)))(keys)
    for draw, key in zip(draws, keys, strict=True):
        np.testing.assert_array_equal(draw, kaiming_normal()(key, (16, 8)))


@pytest.mark.parametrize("init", [zeros(), normal(), xavier_uniform()], ids=repr)
def test_eval_shape_draws_nothing(init):
    shape = jax.eval_shape(lambda key: init(key, (4, 5), "bfloat16"), jax.random.key(0))
    assert (shape.shape, shape.dtype) == ((4, 5), jnp.bfloat16)


def test_a_gradient_flows_past_a_draw():
    def loss(scale):
        return jnp.sum(scale * normal()(jax.random.key(0), (3, 3)))

    assert jax.grad(loss)(2.0) == pytest.approx(float(normal()(jax.random.key(0), (3, 3)).sum()))
