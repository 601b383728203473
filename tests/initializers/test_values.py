"""Values: jax's own where the conventions coincide, constants, and what a draw is part of."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jinit.initializers import (
    constant,
    delta_orthogonal,
    eye,
    he_normal,
    he_uniform,
    kaiming_normal,
    lecun_normal,
    lecun_uniform,
    normal,
    ones,
    orthogonal,
    scaled,
    sparse,
    truncated_normal,
    uniform,
    variance_scaling,
    xavier_normal,
    xavier_uniform,
    zeros,
)
from jinit.initializers.base import Initializer

pytestmark = pytest.mark.usefixtures("compile_fast")
HALF = ["bfloat16", "float16"]
SHAPE = (3, 8, 9)
jax_scaling = jax.nn.initializers.variance_scaling


@pytest.mark.cases
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (normal(std=0.3), jax.nn.initializers.normal(0.3)),
        (uniform(low=0, high=0.2), jax.nn.initializers.uniform(0.2)),
        (truncated_normal(std=0.3, relative=True), jax.nn.initializers.truncated_normal(0.3)),
        (xavier_uniform(), jax.nn.initializers.glorot_uniform()),
        (he_uniform(), jax.nn.initializers.he_uniform()),
        (lecun_uniform(), jax.nn.initializers.lecun_uniform()),
        (xavier_normal(truncated=True), jax.nn.initializers.glorot_normal()),
        (he_normal(truncated=True), jax.nn.initializers.he_normal()),
        (lecun_normal(truncated=True), jax.nn.initializers.lecun_normal()),
        (xavier_normal(), jax_scaling(1.0, "fan_avg", "normal")),
        (kaiming_normal(mode="fan_out"), jax_scaling(2.0, "fan_out", "normal")),
        (variance_scaling(3.0, "fan_geo_avg"), jax_scaling(3.0, "fan_geo_avg", "truncated_normal")),
        (orthogonal(2.0), jax.nn.initializers.orthogonal(2.0)),
        (orthogonal(out_axis=1), jax.nn.initializers.orthogonal(column_axis=1)),
        (delta_orthogonal(2.0), jax.nn.initializers.delta_orthogonal(2.0)),
    ],
    ids=lambda init: repr(init) if isinstance(init, Initializer) else "jax",
)
def test_jaxs_numbers_where_the_conventions_coincide(ours, theirs):
    key = jax.random.key(7)
    np.testing.assert_allclose(ours(key, SHAPE), theirs(key, SHAPE), rtol=1e-5, atol=1e-6)


@pytest.mark.cases
@pytest.mark.parametrize("distribution", ["normal", "uniform", "truncated_normal"])
def test_jaxs_complex_numbers(distribution):
    key = jax.random.key(7)
    ours = variance_scaling(2.0, "fan_avg", distribution)(key, SHAPE, "complex64")
    theirs = jax_scaling(2.0, "fan_avg", distribution)(key, SHAPE, "complex64")
    # jax divides by 0.95311; that of a modulus cut at 2 is sqrt(1 - 4 / (e^4 - 1)) = 0.96196
    wrong = 0.95311164380491208 / math.sqrt(1 - 4 / math.expm1(4))
    theirs = np.asarray(theirs) * (wrong if distribution == "truncated_normal" else 1)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


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


def test_a_large_integer_is_exact():
    assert constant(2**31 - 1)(None, (1,), "int32")[0] == 2**31 - 1


@pytest.mark.parametrize(
    ("dtype", "largest"),
    [
        ("float16", 65504.0),
        ("bfloat16", 3.3895314e38),
        ("float8_e4m3fn", 448.0),
        ("float8_e5m2", 57344.0),
        ("float8_e4m3", 240.0),
        ("float8_e3m4", 15.5),
        ("float8_e4m3b11fnuz", 30.0),
        ("float8_e4m3fnuz", 240.0),
        ("float8_e5m2fnuz", 57344.0),
    ],
)
def test_what_is_out_of_range_becomes_the_largest_number(dtype, largest):
    inits = [constant([-3.4e38, 3.4e38]), scaled(xavier_normal(fans=(1, 1)), 20 * largest)]
    for init in inits[: 1 if dtype == "bfloat16" else 2]:  # float32 ends where bfloat16 does
        sample = np.asarray(init(jax.random.key(0), (30, 2), dtype)).astype(np.float32)
        assert np.isfinite(sample).all()
        assert (sample.min(), sample.max()) == pytest.approx((-largest, largest))


def test_an_infinite_constant_stays_so():
    for dtype in ("float16", "bfloat16", "float8_e5m2", "float32"):
        np.testing.assert_array_equal(constant(-np.inf)(None, (2,), dtype), -np.inf)


@pytest.mark.parametrize("init", [normal(), orthogonal(), sparse(0.5), eye(), zeros()], ids=repr)
def test_a_dtype_of_powers_of_two_is_refused(init):
    with pytest.raises(TypeError, match=rf"^{re.escape(repr(init))} .*float8_e8m0fnu"):
        init(jax.random.key(0), (3, 3), "float8_e8m0fnu")
    assert float(constant(4.0)(None, (1,), "float8_e8m0fnu")[0]) == 4


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_has_many_values_and_tails(dtype):
    sample = np.asarray(normal()(jax.random.key(5), (1000, 200), dtype), np.float64)
    assert len(np.unique(sample)) > 1000
    assert abs(sample).max() > 4


def test_a_huge_fan_does_not_vanish_in_float16():
    init = lecun_normal(fans=(1e8, 1))
    assert np.asarray(init(jax.random.key(0), (1000,), "float16"), np.float64).std() > 9e-5


def test_no_gain_is_zero():
    for init in (
        xavier_normal(gain=0),
        xavier_normal(gain=0, truncated=True),
        xavier_uniform(gain=0),
    ):
        np.testing.assert_array_equal(init(jax.random.key(0), SHAPE), 0)


@pytest.mark.cases
@pytest.mark.parametrize(
    ("init", "make"),
    [
        (kaiming_normal(), jax.random.PRNGKey),
        (lecun_uniform(), jax.random.key),
        (orthogonal(), jax.random.key),
        (sparse(0.3), jax.random.PRNGKey),
        (eye(), jax.random.key),
    ],
    ids=lambda value: repr(value) if isinstance(value, Initializer) else value.__name__,
)
def test_vmap_draws_as_a_loop_does(init, make):
    keys = jax.random.split(make(0), 3)
    draws = jax.vmap(lambda key: init(key, (16, 8)))(keys)
    for draw, key in zip(draws, keys, strict=True):
        np.testing.assert_array_equal(draw, init(key, (16, 8)))


@pytest.mark.parametrize("init", [zeros(), normal(), xavier_uniform(), orthogonal()], ids=repr)
def test_eval_shape_draws_nothing(init):
    shape = jax.eval_shape(lambda key: init(key, (4, 5), "bfloat16"), jax.random.key(0))
    assert (shape.shape, shape.dtype) == ((4, 5), jnp.bfloat16)


def test_a_gradient_flows_past_a_draw():
    def loss(scale):
        return jnp.sum(scale * normal()(jax.random.key(0), (3, 3)))

    assert jax.grad(loss)(2.0) == pytest.approx(float(normal()(jax.random.key(0), (3, 3)).sum()))


def test_one_program_draws_a_shape_at_every_scale(count_compilations):
    key = jax.random.key(0)
    with count_compilations() as compiled:
        for init in (
            normal(mean=0, std=2),
            normal(mean=1, std=3),
            xavier_normal(),
            lecun_normal(fans=(7, 1)),
        ):
            jax.block_until_ready(init(key, (6, 11)))
    assert compiled == ["jit(_draw)"]
    with count_compilations() as compiled:
        jax.block_until_ready(normal(std=5)(key, (6, 11)))
    assert compiled == []


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_other_keys_draw_too(impl):
    sample = np.asarray(normal()(jax.random.key(0, impl=impl), (100, 100)))
    assert abs(sample.mean()) < 0.05
    assert abs(sample.std() - 1) < 0.04
