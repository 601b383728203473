"""A layer is measured in its own scale: a small gradient is no rounding, and rounding is found."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jinit
from jinit.empirical.measuring.rounding import is_rounding, nudged, sketch

pytestmark = pytest.mark.usefixtures("allow_rank_promotion")


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def root(y):
    return np.sqrt(np.mean(np.square(y)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def chain(params, x):
    for w in params[:-1]:
        x = jax.nn.sigmoid(x @ w)
    return x @ params[-1]


def chain_multipliers(params, x, slope):
    """1 / rms(x @ (x.T @ dy)) of every layer of ``chain``, in float64 and by hand."""
    params, x, slope = [np.float64(w) for w in params], np.float64(x), np.float64(slope)
    inputs = [x]
    for w in params[:-1]:
        inputs.append(sigmoid(inputs[-1] @ w))
    found = []
    for number in reversed(range(len(params))):
        found.append(1 / root(inputs[number] @ (inputs[number].T @ slope)))
        slope = (slope @ params[number].T) * inputs[number] * (1 - inputs[number])
    return found[::-1]


@pytest.mark.thorough
def test_a_deep_chain_has_in_every_layer_the_multiplier_of_float64():
    params = [normal(i, 16, 16) / 4 for i in range(48)]
    x, slope = normal(50, 32, 16), normal(51, 32, 16)
    result = jinit.calibrate(
        params, chain, x, lambda y: jnp.sum(y * slope), optimizer="sgd", samples=2
    )
    expected = chain_multipliers(result.params, x, slope)
    assert max(expected) / min(expected) > 1e12
    np.testing.assert_allclose(result.multipliers, expected, rtol=1e-2)
    assert result.report.null == ()


@pytest.mark.cases
@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30])
def test_multipliers_are_inverse_to_the_loss_at_any_scale_of_it(scale):
    params = [normal(i, 16, 16) / 4 for i in range(2)]
    x, slope = normal(50, 32, 16), normal(51, 32, 16)
    result = jinit.calibrate(
        params, chain, x, lambda y: scale * jnp.sum(y * slope), optimizer="sgd", samples=1
    )
    expected = chain_multipliers(result.params, x, slope)
    np.testing.assert_allclose(np.float64(result.multipliers) * scale, expected, rtol=1e-3)
    assert result.report.null == ()


@pytest.mark.thorough
def test_a_branch_of_a_millionth_has_its_own_multiplier():
    def model(p, x):
        return x @ p["large"] + 1e-6 * (x @ p["small"])

    params = {"large": normal(0, 16, 16), "small": normal(1, 16, 16)}
    x, slope = normal(50, 32, 16), normal(51, 32, 16)
    loss = lambda y: jnp.sum(y * slope)  # noqa: E731
    result = jinit.calibrate(params, model, x, loss, optimizer="sgd", samples=1)
    x, slope = np.float64(x), np.float64(slope)
    expected = 1 / root(x @ (x.T @ slope))
    assert float(result.multipliers["large"]) == pytest.approx(expected, rel=1e-4)
    assert float(result.multipliers["small"]) == pytest.approx(1e6 * expected, rel=1e-4)
    assert result.report.null == ()


def test_the_small_gradient_of_a_mean_is_a_gradient():
    x, slope = normal(0, 8192, 4), normal(1, 8192, 4)
    result = jinit.calibrate(
        {"w": normal(2, 4, 4)}, lambda p, x: x @ p["w"], x, lambda y: jnp.mean(y * slope), samples=1
    )
    assert result.report.rows[0].gradient_after < 1e-4
    assert result.report.null == ()
    assert result.report.missing == {}
    assert "without output" not in str(result.report)


class Attention(nn.Module):
    dtype: object = None

    @nn.compact
    def __call__(self, x):
        return nn.MultiHeadDotProductAttention(2, dtype=self.dtype)(x, x)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("dtype", "scale"), [(jnp.float32, 1e-9), (jnp.bfloat16, 1.0), (jnp.float16, 1e2)]
)
def test_the_bias_of_attention_keys_is_found_in_every_dtype_at_any_loss(dtype, scale):
    """A number added to all logits changes no softmax; everything else has a gradient."""
    x, slope = normal(0, 8, 6, 16), normal(1, 8, 6, 16)
    variables = Attention(dtype).init(jax.random.key(2), x)
    result = jinit.calibrate(
        variables, Attention(dtype).apply, x, lambda y: scale * jnp.mean(y * slope),
        optimizer="sgd", samples=1,
    )  # fmt: skip
    path = "params/MultiHeadDotProductAttention_0/key/bias"
    assert result.report.missing == {path: ("gradient",)}
    assert f"without output, gradient or update: {path} (no gradient)" in str(result.report)


@pytest.mark.thorough
def test_attention_over_one_token_moves_neither_queries_nor_keys():
    x, slope = normal(0, 64, 1, 16), normal(1, 64, 1, 16)
    variables = Attention().init(jax.random.key(2), x)
    result = jinit.calibrate(
        variables, Attention().apply, x, lambda y: jnp.sum(y * slope), optimizer="sgd", samples=1
    )
    inner = result.multipliers["params"]["MultiHeadDotProductAttention_0"]
    for name in ("query", "key"):
        assert float(inner[name]["kernel"]) == float(inner[name]["bias"]) == 1
        path = f"params/MultiHeadDotProductAttention_0/{name}/kernel"
        assert "gradient" in result.report.missing[path]
    assert float(inner["value"]["kernel"]) < 0.1


@pytest.mark.thorough
def test_a_bias_that_a_norm_takes_away_is_found_and_its_kernel_is_not():
    def model(p, x):
        y = x @ p["w"] + p["b"]
        return (y - y.mean(0)) / y.std(0)

    x, slope = normal(0, 64, 8), normal(1, 64, 8)
    params = {"w": normal(2, 8, 8), "b": jnp.zeros(8)}
    result = jinit.calibrate(
        params, model, x, lambda y: jnp.sum(y * slope), optimizer="sgd", samples=1
    )
    assert result.report.missing == {"b": ("gradient",)}
    assert float(result.multipliers["w"]) != 1


def test_what_cancels_whatever_the_parameters_are_is_found():
    """The gradient of a bias that a mean takes away, under a loss that is linear: no parameter is
    in it."""

    def model(p, x):
        y = x @ p["w"] + p["b"]
        return y - y.mean(0)

    x, slope = normal(0, 64, 8), normal(1, 64, 8)
    params = {"w": normal(2, 8, 8), "b": jnp.zeros(8)}
    result = jinit.calibrate(
        params, model, x, lambda y: jnp.sum(y * slope), optimizer="sgd", samples=1
    )
    assert result.report.missing == {"b": ("gradient",)}


@pytest.mark.thorough
def test_the_report_says_which_quantity_is_missing():
    def model(p, x):
        hidden = jax.nn.relu(x @ p["dead"] - 100.0)
        return x @ p["live"] + hidden @ p["behind"] + x @ p["zero"]

    params = {name: normal(i, 8, 8) for i, name in enumerate(("dead", "live", "behind"))}
    params["zero"] = jnp.zeros((8, 8))
    x = normal(5, 32, 8)
    report = jinit.calibrate(params, model, x, jnp.sum, optimizer="sgd", samples=1).report
    assert report.missing == {
        "dead": ("gradient", "update"),
        "behind": ("output", "gradient", "update"),
        "zero": ("output",),
    }
    assert report.null == tuple(report.missing)
    assert "behind (no output or gradient or update)" in str(report)


@pytest.mark.cases
@pytest.mark.parametrize("size", [1e-35, 1.0, 1e35])
@pytest.mark.parametrize("shape", [(), (5,), (3, 4, 5)])
def test_a_sketch_knows_a_gradient_again_and_not_another(shape, size):
    """Of 20 pairs of numbers, whose signs and sizes are all that there is to tell, 3 may agree."""
    unit, apart = 2.0**-22, []
    for seed in range(20):
        first, second = (size * normal(seed + n, *shape) for n in (0, 100))
        sketches = [sketch(g, ()) for g in (first, nudged(first, unit), second)]
        assert not is_rounding(*(np.asarray(s) for s in sketches[:2]), unit).any()
        apart.append(is_rounding(np.asarray(sketches[0]), np.asarray(sketches[2]), unit).all())
    assert sum(apart) >= 17
    assert not is_rounding(np.zeros((1, 8)), np.zeros((1, 8)), unit).any()


@pytest.mark.cases
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64])
def test_a_nudge_of_0_changes_nothing_and_another_one_all_by_as_much(dtype):
    leaf = (1 + jax.random.uniform(jax.random.key(0), (40, 3))).astype(dtype)
    np.testing.assert_array_equal(nudged(leaf, jnp.float32(0)), leaf)
    unit = 2.0**-6
    change = np.asarray(nudged(leaf, jnp.float32(unit)), np.complex64) / np.asarray(leaf) - 1
    np.testing.assert_allclose(abs(change), unit, rtol=0.5)
    assert 0.3 < np.mean(change.real > 0) < 0.7
