"""Derivatives that float16 does not hold where it holds the result: against plain float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jinit import amp

KEYS = 8192


def softmax_by_hand(params, x):
    """With a sum of about 8000, whose square, as a derivative has it, float16 does not hold."""
    scores = (x @ params["w"])[:, 0]
    weights = jnp.exp(scores - scores.max())
    return jnp.sum((weights / weights.sum())[:8] * jnp.arange(8.0, dtype=x.dtype))


def ones_column(params, x):
    """Linear attention, which takes its denominators from the same product as its results."""
    keys = jnp.exp(x @ params["w"])
    sums = keys @ (keys.T @ jnp.concatenate([x, jnp.ones_like(x[:, :1])], 1))
    return jnp.sum((sums[:, :-1] / sums[:, -1:])[:8])


def reciprocal(params, x):
    return jnp.sum(((x @ params["w"] * 50 + 5000) ** -1)[:4])


def inverse_root(params, x):
    return jnp.sum(jax.lax.rsqrt(x @ params["w"] + 20000)[:4])


@pytest.mark.cases
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, jax.checkpoint])
@pytest.mark.parametrize("level", ["O1", "O2"])
@pytest.mark.parametrize("fn", [softmax_by_hand, ones_column, reciprocal, inverse_root])
def test_the_gradient_of_a_quotient_is_whole(fn, level, transform):
    count = KEYS if fn is softmax_by_hand else 512
    x = 0.1 * jax.random.normal(jax.random.key(0), (count, 8))
    params = {"w": 0.5 * jax.random.normal(jax.random.key(1), (8, 8))}
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.float16).astype(jnp.float32), (params, x))
    model = amp.initialize(transform(fn), None, level, half_dtype="float16", verbosity=0)
    # a loss scale, as float16 needs it for gradients of this size
    scale = 2.0**12
    found = jax.grad(lambda p: model(p, rounded[1]) * scale)(rounded[0])["w"] / scale
    expected = jax.grad(fn)(*rounded)["w"]
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())


def test_a_quotient_of_halves_is_the_same_number():
    model = amp.initialize(lambda y, x: x / y, None, "O2", half_dtype="float16", verbosity=0)
    x, y = jax.random.normal(jax.random.key(2), (2, 4096)).astype(jnp.float16)
    found = model(y.astype(jnp.float32), x.astype(jnp.float32))
    np.testing.assert_array_equal(found, (x / y).astype(jnp.float32))


def test_a_bias_that_float16_does_not_hold_goes_on_learning():
    """Adam's first step of a warm-up leaves biases of 1e-8, and a mask may be learned."""
    fn = amp.autocast(lambda p, x: jnp.sum(x @ p["w"] + p["b"][None]), half_dtype="float16")
    params = {"w": jnp.eye(5), "b": jnp.array([0.0, 1e-8, -1e-8, 1e6, -jnp.inf])}
    slopes = jax.grad(fn)(params, jnp.ones((3, 5)))
    np.testing.assert_array_equal(slopes["b"], jnp.full(5, 3.0))
