"""Norms of a half function compute in float32, whoever wrote them: against NumPy in float64."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from jinit import amp
from tests.amp.reference import operand_dtypes

EPS = 1e-5
CASES = [("bfloat16", 10.0, 1.0), ("float16", 300.0, 30.0)]
"""A mean and a deviation at which the same norm in half is off by hundreds, or nan."""

pytestmark = pytest.mark.usefixtures("allow_rank_promotion")


def initialize(model, level="O2", **keywords):
    return amp.initialize(model, None, level, verbosity=0, **keywords)


def moments(x):
    """A norm as users write it: the variance from two means."""
    mean = jnp.mean(x, 0)
    return mean, jnp.mean(jnp.square(x), 0) - jnp.square(mean)


def normalize(x, scale, bias):
    mean, variance = moments(x)
    return (x - mean) * jax.lax.rsqrt(variance + EPS) * scale + bias


class Whiten(nn.Module):
    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        return normalize(x, scale, self.param("bias", nn.initializers.zeros, x.shape[-1:]))


class NnxWhiten(nnx.Module):
    def __init__(self, width):
        self.scale, self.bias = nnx.Param(jnp.ones(width)), nnx.Param(jnp.zeros(width))

    def __call__(self, x):
        return normalize(x, self.scale[...], self.bias[...])


class EqxWhiten(eqx.Module):
    scale: jax.Array
    bias: jax.Array

    def __call__(self, x):
        return normalize(x, self.scale, self.bias)


def hand_written(x):
    params = {"scale": jnp.ones(x.shape[-1]), "bias": jnp.zeros(x.shape[-1])}
    return lambda params, x: normalize(x, params["scale"], params["bias"]), params


def linen(x):
    return Whiten().apply, Whiten().init(jax.random.key(0), x)


def linen_function(x):
    return lambda variables, x: Whiten().apply(variables, x), Whiten().init(jax.random.key(0), x)


def split_nnx(x):
    graphdef, state = nnx.split(NnxWhiten(x.shape[-1]))
    return lambda state, x: nnx.merge(graphdef, state)(x), state


def equinox(x):
    return lambda model, x: model(x), EqxWhiten(jnp.ones(x.shape[-1]), jnp.zeros(x.shape[-1]))


def haiku(x):
    norm = hk.without_apply_rng(
        hk.transform_with_state(lambda x: hk.BatchNorm(True, True, 0.9)(x, is_training=True))
    )
    params, state = norm.init(jax.random.key(0), x)
    return lambda v, x: norm.apply(v["params"], v["state"], x)[0], {
        "params": params,
        "state": state,
    }


def linen_batch_norm(x):
    norm = nn.BatchNorm(use_running_average=False, epsilon=EPS)
    variables = norm.init(jax.random.key(0), x)
    return lambda v, x: norm.apply(v, x, mutable=["batch_stats"])[0], variables


WRITTEN = [hand_written, linen, linen_function, split_nnx, equinox, haiku, linen_batch_norm]


def data(half, mean, deviation):
    """Values that the half type holds, so that the reference has the same."""
    x = mean + deviation * jax.random.normal(jax.random.key(1), (256, 8))
    return x.astype(half).astype(jnp.float32)


def exact(x, slope):
    """The normalized values in float64, and the gradient of their product with ``slope``."""
    x, slope = np.asarray(x, np.float64), np.asarray(slope, np.float64)
    inverse = 1 / np.sqrt(x.var(0) + EPS)
    y = (x - x.mean(0)) * inverse
    return y, inverse * (slope - slope.mean(0) - y * (slope * y).mean(0))


def keeps(path, module_type):
    return path.endswith(("scale", "bias", "offset"))


@pytest.mark.cases
@pytest.mark.parametrize("keep", [None, keeps], ids=["found", "kept"])
@pytest.mark.parametrize(("half", "mean", "deviation"), CASES)
@pytest.mark.parametrize("written", WRITTEN)
def test_a_norm_is_right_in_value_and_gradient(written, half, mean, deviation, keep):
    """Half rounds the result and the gradient that comes in, and nothing in between."""
    x = data(half, mean, deviation)
    slope = jax.random.normal(jax.random.key(2), x.shape)
    fn, variables = written(x)
    model = initialize(fn, half_dtype=half, keep_fp32=keep)
    value, gradient = exact(x, slope)
    eps = float(jnp.finfo(half).eps)
    largest = np.abs(value).max()
    np.testing.assert_allclose(model(variables, x), value, atol=eps * largest)
    found = jax.jit(jax.grad(lambda x: jnp.sum(model(variables, x) * slope)))(x)
    np.testing.assert_allclose(found, gradient, atol=2 * eps * np.abs(gradient).max())


@pytest.mark.parametrize("level", ["O2", "O3"])
@pytest.mark.parametrize(("half", "mean", "deviation"), CASES)
def test_running_statistics_of_haiku_are_those_of_float64(half, mean, deviation, level):
    x = data(half, mean, deviation)
    norm = hk.without_apply_rng(
        hk.transform_with_state(lambda x: hk.BatchNorm(True, True, 0.9)(x, is_training=True))
    )
    params, state = norm.init(jax.random.key(0), x)
    keep = {"keep_batchnorm_fp32": True} if level == "O3" else {}
    model = initialize(
        lambda v, x: norm.apply(v["params"], v["state"], x), level, half_dtype=half, **keep
    )
    _, new = model(model.policy.cast_to_param({"params": params, "state": state}), x)
    averages = {name.split("/")[-1]: tree["average"] for name, tree in new.items()}
    wide = np.asarray(x, np.float64)
    np.testing.assert_allclose(averages["mean_ema"][0], wide.mean(0), rtol=0.01)
    np.testing.assert_allclose(averages["var_ema"][0], wide.var(0), rtol=0.01)


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
@pytest.mark.parametrize("keep", [None, keeps], ids=["found", "kept"])
def test_behind_a_norm_the_stream_is_half_again(half, keep):
    """Also over a residual connection, in front of an activation and of a product."""

    def block(params, x):
        y = normalize(x @ params["w"], params["scale"], params["bias"])
        return jnp.sin(jax.nn.relu(y) + x) @ params["w"]

    params = {"w": jnp.eye(8), "scale": jnp.ones(8), "bias": jnp.zeros(8)}
    model = initialize(block, half_dtype=half, keep_fp32=keep)
    counts = operand_dtypes(model, params, jnp.ones((4, 8)))
    assert counts["dot_general"] == {half: 2}
    assert counts["max"] == counts["sin"] == {half: 1}
    assert counts["rsqrt"] == {"float32": 1}
    assert counts["reduce_sum"] == {"float32": 2}


def l2(params, x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True) * params["scale"]


def rms(params, x):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + EPS) * (1 + params["scale"])


def group(params, x):
    y = x.reshape(x.shape[0], 2, -1)
    y = (y - y.mean(-1, keepdims=True)) / jnp.sqrt(y.var(-1, keepdims=True) + EPS)
    return y.reshape(x.shape) * params["scale"]


def power(params, x):
    return (x - x.mean(0)) * jnp.power(x.var(0) + EPS, -0.5) * params["scale"]


def inner_product(params, x):
    return x * jax.lax.rsqrt(jnp.einsum("...d,...d->...", x, x) / 8 + EPS)[..., None]


def dot(params, x):
    return jax.vmap(lambda row: row / jnp.sqrt(jnp.dot(row, row)))(x) * params["scale"]


def averaging_matrix(params, x):
    ones = jnp.ones((8, 8), x.dtype) / 8
    mean = x @ ones
    return (x - mean) / jnp.sqrt((x * x) @ ones - mean * mean + EPS) * params["scale"]


def constant_power(params, x):
    return x / jnp.sqrt(jnp.mean(jnp.power(x, 2.0), -1, keepdims=True)) * params["scale"]


def fourth_power(params, x):
    return x / jnp.sum(x**4, -1, keepdims=True) ** 0.25 * params["scale"]


def length(params, x):
    return x / jnp.sqrt(x[..., :1] ** 2 + x[..., 1:2] ** 2 + EPS) * params["scale"]


@jax.custom_jvp
def by_jvp(x):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + EPS)


@by_jvp.defjvp
def _(primals, directions):
    (x,), (dx,) = primals, directions
    inverse = jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + EPS)
    y = x * inverse
    return y, inverse * (dx - y * jnp.mean(y * dx, -1, keepdims=True))


@jax.custom_vjp
def by_vjp(x):
    return by_jvp(x)


def by_vjp_forward(x):
    inverse = jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + EPS)
    return x * inverse, (x, inverse)


def by_vjp_backward(saved, cotangent):
    x, inverse = saved
    y = x * inverse
    return (inverse * (cotangent - y * jnp.mean(y * cotangent, -1, keepdims=True)),)


by_vjp.defvjp(by_vjp_forward, by_vjp_backward)


def custom_jvp(params, x):
    return by_jvp(x) * params["scale"]


def custom_vjp(params, x):
    return by_vjp(x) * params["scale"]


def standardized_weights(params, x):
    w = params["w"]
    return x @ ((w - w.mean(0)) * jax.lax.rsqrt(w.var(0) + EPS))


@pytest.mark.cases
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, jax.checkpoint, jax.vmap])
@pytest.mark.parametrize(
    "norm",
    [
        l2, rms, group, power, inner_product, dot, averaging_matrix, constant_power, fourth_power,
        length, custom_jvp, custom_vjp,
    ],
)  # fmt: skip
def test_norms_of_every_kind_in_float16(norm, transform):
    """Values of 300 to 1000 overflow in a sum of squares, whichever norm it is of."""
    batched = transform is jax.vmap
    x = (600 + 60 * jax.random.normal(jax.random.key(3), (2, 16, 8))).astype(jnp.float16)
    x = x.astype(jnp.float32) if batched else x[0].astype(jnp.float32)
    params = {"scale": jnp.full(8, 0.5)}
    plain = jax.vmap(norm, (None, 0)) if batched else transform(norm)
    model = initialize(plain, half_dtype="float16")
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), (params, x))
        expected = np.asarray(plain(*wide))
    np.testing.assert_allclose(model(params, x), expected, atol=2e-3 * np.abs(expected).max())


GRADED = [inner_product, dot, constant_power, length, custom_jvp, custom_vjp]


@pytest.mark.cases
@pytest.mark.parametrize("level", ["O1", "O2"])
@pytest.mark.parametrize("norm", GRADED)
def test_gradients_of_norms_of_every_kind_in_float16(norm, level):
    x = 600 + 60 * jax.random.normal(jax.random.key(3), (16, 8))
    x = x.astype(jnp.float16).astype(jnp.float32)
    slope = 256 * jax.random.normal(jax.random.key(4), x.shape)
    params = {"scale": jnp.full(8, 0.5)}
    model = initialize(norm, level, half_dtype="float16")
    found = jax.grad(lambda x: jnp.sum(model(params, x) * slope))(x)
    expected = jax.grad(lambda x: jnp.sum(norm(params, x) * slope))(x)
    np.testing.assert_allclose(found, expected, atol=4e-3 * np.abs(expected).max())


def test_a_variance_that_no_root_is_taken_of_is_float32():
    """As a state of its own, or a loss, is: sums of squares cancel."""
    x = data("bfloat16", 10.0, 1.0)
    found = initialize(lambda params, x: moments(x)[1], half_dtype="bfloat16")({}, x)
    np.testing.assert_allclose(found, np.asarray(x, np.float64).var(0), rtol=0.01)


def test_weights_are_standardized_in_float32():
    params = {"w": 10 + jax.random.normal(jax.random.key(4), (64, 8))}
    x = jax.random.normal(jax.random.key(5), (4, 64))
    model = initialize(standardized_weights, half_dtype="bfloat16")
    wide = jnp.asarray(params["w"].astype(jnp.bfloat16), jnp.float32)
    expected = standardized_weights({"w": wide}, x)
    np.testing.assert_allclose(model(params, x), expected, atol=0.02 * np.abs(expected).max())


def test_a_kept_layer_of_a_hand_written_function_computes_in_float32():
    """Its input goes up, its product and its bias are float32, and what follows is half."""

    def mlp(params, x):
        y = jnp.sin(x @ params["first"]["w"])
        y = jnp.cos(y @ params["kept"]["w"] + params["kept"]["b"])
        return y @ params["last"]["w"]

    params = {name: {"w": jnp.eye(8), "b": jnp.ones(8)} for name in ("first", "kept", "last")}
    model = initialize(mlp, half_dtype="bfloat16", keep_fp32=lambda path, _: "kept" in path)
    counts = operand_dtypes(model, params, jnp.ones((4, 8)))
    assert counts["dot_general"] == {"bfloat16": 2, "float32": 1}
    assert counts["add"] == {"float32": 1}
    assert counts["sin"] == counts["cos"] == {"bfloat16": 1}


def test_a_softmax_is_no_norm_and_a_function_without_norms_is_the_function_itself():
    def attention(params, x):
        return jax.nn.softmax(x @ params["w"]) @ x

    params, x = {"w": jnp.eye(8)}, jax.random.normal(jax.random.key(6), (8, 8))
    model = initialize(attention, half_dtype="bfloat16")
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (params, x))
    expected = jax.jit(attention)(*half).astype(jnp.float32)
    np.testing.assert_array_equal(model(params, x), expected)


def test_it_is_explained(capsys):
    fn, params = hand_written(jnp.ones((4, 8)))
    model = initialize(fn, half_dtype="bfloat16")
    rows = {(r.op, r.dtype): r.why for r in amp.explain(model, params, jnp.ones((4, 8))).operations}
    assert rows["reduce_sum", "float32"] == "statistic of a norm"
    assert rows["rsqrt", "float32"] == rows["add", "float32"] == "inside a norm"


@pytest.mark.cases
@pytest.mark.parametrize("keep", [None, lambda path, _: path == "b"], ids=["plain", "kept"])
@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_operations_without_operands_and_of_every_kind_pass_through(half, keep):
    """Positions, random numbers, integers, booleans, complex numbers and keys beside a norm."""

    def fn(params, x, key):
        y = jnp.sin(x @ params["w"] + jnp.arange(4.0)[None]) + params["b"][None]
        y = l2({"scale": jnp.ones(4)}, y) + jax.random.normal(key, y.shape)
        z = jnp.abs(jnp.fft.fft(y.astype(jnp.float32)))
        return jnp.where(jnp.argsort(y) > 1, z, jnp.cumsum(y, 0)), jnp.argmax(y, -1)

    params, x = {"w": jnp.eye(4), "b": jnp.ones(4)}, jnp.linspace(-1.0, 1.0, 8).reshape(2, 4)
    key = jax.random.key(0)
    model = initialize(fn, half_dtype=half, keep_fp32=keep)
    (found, index), (exact, wanted) = model(params, x, key), fn(params, x, key)
    # the random numbers of a half type are others: only those of the norm can be compared
    assert found.dtype == exact.dtype
    assert index.dtype == wanted.dtype
    assert np.isfinite(found).all()
