"""scaled and with_fan."""

import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jinit.initializers import (
    bilinear,
    constant,
    eye,
    lecun_normal,
    normal,
    orthogonal,
    scaled,
    sparse,
    uniform,
    variance_scaling,
    with_fan,
    xavier_uniform,
)
from jinit.initializers.base import Initializer

pytestmark = pytest.mark.usefixtures("compile_fast")
KEY = jax.random.key(0)


@pytest.mark.cases
@pytest.mark.parametrize(
    "init",
    [
        normal(mean=1.0, std=2.0),
        uniform(low=-1, high=3),
        lecun_normal(truncated=True),
        orthogonal(),
        sparse(0.5),
        eye(),
        constant(0.3),
        jax.nn.initializers.lecun_uniform(),
        nn.initializers.ones_init(),
    ],
    ids=lambda init: repr(init) if isinstance(init, Initializer) else "jax",
)
@pytest.mark.parametrize("scale", [0.3, -2.0])
def test_it_is_the_product(init, scale):
    product = scaled(init, scale)(KEY, (6, 5))
    np.testing.assert_allclose(product, scale * np.asarray(init(KEY, (6, 5))), rtol=1e-6, atol=1e-6)


def test_the_product_is_rounded_once():
    init = scaled(jax.nn.initializers.lecun_normal(), 0.3)
    half = init(KEY, (50, 50), "bfloat16")
    np.testing.assert_array_equal(half, init(KEY, (50, 50)).astype("bfloat16"))


def test_scales_multiply():
    twice = scaled(scaled(normal(), 0.5), 4.0)
    np.testing.assert_array_equal(twice(KEY, (9,)), normal(std=2.0)(KEY, (9,)))


def test_a_scale_compiles_nothing(count_compilations):
    scaled(normal(), 0.5)(KEY, (7, 3))
    with count_compilations() as compiled:
        jax.block_until_ready(scaled(normal(mean=0, std=3), 0.25)(KEY, (7, 3)))
    assert compiled == []


def test_equal_scales_of_equal_initializers_are_equal():
    assert scaled(normal(), 2) == scaled(normal(), 2.0)
    assert hash(scaled(normal(), 2)) == hash(scaled(normal(), 2.0))


def test_it_stands_in_a_module():
    layer = nn.Dense(4, kernel_init=scaled(xavier_uniform(), 0.5), bias_init=constant(1.0))
    kernel = layer.init(KEY, jnp.ones((1, 3)))["params"]["kernel"]
    assert 0 < abs(kernel).max() < 0.5 * math.sqrt(6 / 7)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: scaled(normal(), math.inf), ValueError, "scale must be finite, got inf"),
        (
            lambda: scaled("normal", 1.0),
            TypeError,
            "an initializer is a function of key, shape and dtype, got 'normal'",
        ),
        (
            lambda: scaled(constant(3), 0.5)(None, (2,), "int32"),
            TypeError,
            "scaled(constant(value=3), 0.5) draws floating-point numbers, it cannot make a int32",
        ),
        (
            lambda: scaled(normal(), 0.5)(None, (2,)),
            TypeError,
            "normal(mean=0.0, std=1.0) needs a key, e.g. jax.random.key(0)",
        ),
        (
            lambda: with_fan(lecun_normal()),
            ValueError,
            "with_fan needs a fan: give fan_in, fan_out or both",
        ),
        (
            lambda: with_fan(normal(), fan_in=3),
            TypeError,
            "normal(mean=0.0, std=1.0) does not look at fans; those of jinit that do are "
            "variance_scaling, xavier, kaiming, lecun and bilinear",
        ),
        (
            lambda: with_fan(lecun_normal(), fan_in=0),
            ValueError,
            "fans must be two positive numbers, got (0, None)",
        ),
    ],
)
def test_bad_arguments(call, kind, message):
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        call()


def test_a_boxed_initializer_is_told_from_an_array():
    boxed = nn.with_partitioning(nn.initializers.ones_init(), ("x",))
    with pytest.raises(TypeError, match="returned a Partitioned and not an array; pass the init"):
        scaled(boxed, 0.5)(KEY, (2,))


def test_a_bias_with_its_kernels_fan_in():
    # torch: U(-1/sqrt(fan_in), 1/sqrt(fan_in))
    bias = with_fan(variance_scaling(1 / 3, "fan_in", "uniform"), fan_in=64)
    assert bias.resolve((10,)) == uniform(
        low=-bias.resolve((10,)).high, high=bias.resolve((10,)).high
    )
    assert bias.resolve((10,)).high == pytest.approx(1 / 8)


def test_fans_are_given_one_by_one():
    init = with_fan(with_fan(xavier_uniform(), fan_in=10), fan_out=6)
    assert init == xavier_uniform(fans=(10, 6))
    assert with_fan(init, fan_in=3) == xavier_uniform(fans=(3, 6))
    assert with_fan(bilinear(), fan_out=1.0).std((2, 3, 4)) == math.sqrt(2 / (6 + 1))


def test_scaled_fans():
    inner = with_fan(lecun_normal(), fan_in=16)
    assert with_fan(scaled(lecun_normal(), 3.0), fan_in=16) == scaled(inner, 3.0)
