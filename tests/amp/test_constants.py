"""Constants and parameters that float16 does not hold do what they are there for at O2 and O3."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jinit import amp
from jinit.amp.casting.ranges import is_lost
from tests.amp.reference import operand_dtypes

ROWS = jnp.concatenate([jax.random.normal(jax.random.key(0), (3, 8)), jnp.zeros((2, 8))])
MASK = jnp.arange(8) < 5


def standardized(eps):
    def fn(params, x):
        centred = x - x.mean(-1, keepdims=True)
        return centred / jnp.sqrt(x.var(-1, keepdims=True) + eps)

    return fn


def rms(eps):
    def fn(params, x):
        return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps)

    return fn


def unit(eps):
    return lambda params, x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), eps)


def unit_of_sum(eps):
    return lambda params, x: x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + eps)


def library(eps):
    return lambda params, x: jax.nn.standardize(x, axis=-1, epsilon=eps)


def softsign(eps):
    return lambda params, x: x / (jnp.abs(x) + eps)


def masked_mean(eps):
    return lambda params, x: (0 * x).sum(-1) / (jnp.clip(x, 0, 0).sum(-1) + eps)


def scanned(eps):
    def fn(params, x):
        return lax.scan(lambda carry, row: (carry, row / (jnp.abs(row) + eps)), 0, x)[1]

    return fn


@pytest.mark.cases
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, jax.checkpoint])
@pytest.mark.parametrize("eps", [1e-9, 1e-12])
@pytest.mark.parametrize(
    "made", [standardized, rms, unit, unit_of_sum, library, softsign, masked_mean, scanned]
)
def test_an_eps_keeps_a_row_of_zeros_finite(made, eps, transform):
    fn = transform(made(eps))
    model = amp.initialize(fn, None, "O2", half_dtype="float16", verbosity=0)
    x = ROWS.astype(jnp.float16).astype(jnp.float32)
    np.testing.assert_allclose(model({}, x), fn({}, x), atol=3e-3)


def test_the_logarithm_of_a_guarded_zero_is_finite():
    fn = amp.initialize(
        lambda params, x: jnp.log(jnp.clip(x, 1e-9, 1.0)) + jnp.log(x + 1e-12),
        None, "O2", half_dtype="float16", verbosity=0,
    )  # fmt: skip
    assert np.isfinite(fn({}, jnp.zeros(3))).all()


@pytest.mark.cases
@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
@pytest.mark.parametrize("half", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "masked",
    [
        lambda x, keep: x + (1.0 - keep.astype(x.dtype)) * -1e9,
        lambda x, keep: jnp.where(keep, x, -1e9),
        lambda x, keep: jnp.where(keep, x, float(jnp.finfo(jnp.float32).min)),
        lambda x, keep: x + jnp.where(keep, jnp.zeros_like(x), jnp.full_like(x, -1e9)),
    ],
)
def test_a_row_that_is_masked_whole_is_uniform(masked, half):
    keep = jnp.stack([MASK, jnp.zeros(8, bool)])

    def attention(params, x):
        return jax.nn.softmax(masked(x, keep))

    model = amp.initialize(attention, None, "O2", half_dtype=half, verbosity=0)
    x = jnp.ones((2, 8))
    np.testing.assert_allclose(model({}, x), attention({}, x), atol=2e-3)


def test_infinity_and_zero_that_were_written_stay():
    def fn(params, x):
        return jnp.where(x > 0, x, -jnp.inf), jnp.maximum(x, 0.0), x + 0.0

    model = amp.initialize(fn, None, "O2", half_dtype="float16", verbosity=0)
    x = jnp.array([-1.0, 0.0, 2.0])
    for found, expected in zip(model({}, x), fn({}, x), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_function_of_halves_only_is_traced_once_more_and_left_alone():
    def fn(params, x):
        if x.dtype != jnp.float16:
            raise TypeError("halves only")
        return x + 1e-12

    model = amp.initialize(fn, None, "O2", half_dtype="float16", verbosity=0)
    np.testing.assert_array_equal(model({}, jnp.ones(2)), jnp.ones(2))


def test_the_stream_stays_half():
    def fn(params, x):
        return jnp.sin(x @ params["w"] / (jnp.abs(x) + 1e-12)) @ params["w"]

    model = amp.initialize(fn, None, "O2", half_dtype="float16", verbosity=0)
    counts = operand_dtypes(model, {"w": jnp.eye(8)}, ROWS)
    assert counts["dot_general"] == {"float16": 2}
    assert counts["sin"] == {"float16": 1}


@pytest.mark.cases
@pytest.mark.parametrize("level", ["O1", "O2", "O3"])
def test_parameters_out_of_range_do_what_they_are_there_for(level):
    def fn(params, x):
        h = x - x[:, :1]
        return jax.nn.softmax(x + params["mask"]), h / (jnp.abs(h) + params["eps"])

    mask = jnp.stack([jnp.where(MASK, 0.0, -1e9), jnp.full(8, -1e9)])
    params = {"mask": mask, "eps": jnp.float32(1e-9)}
    model = amp.initialize(fn, None, level, half_dtype="float16", verbosity=0)
    stored = model.policy.cast_to_param(params)
    x = jnp.arange(16.0).reshape(2, 8) / 8
    for found, expected in zip(model(stored, x), fn(params, x), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-3)


def test_what_is_lost():
    assert is_lost(-1e9, np.dtype("float16"))
    assert not any(is_lost(x, np.dtype("float16")) for x in (0.0, np.inf, 1e-5, 6e4, None))
    assert is_lost(3.4e38, jnp.dtype("bfloat16"))
