"""keras_defaults against Keras itself."""

import contextlib
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen.experimental import layers_with_named_axes as named_axes

import jinit
from tests.defaults.reference import L, built
from tests.initializers.statistics import follows, ks_threshold, moments_fit, uniform_cdf

# name: Flax layer, its input, Keras's layer, the shape Keras builds it for, the limit.
# The limits are sqrt(6 / (fan_in + fan_out)), from the fans that are written beside them.
LAYERS = {
    "Dense": (nn.Dense(256), (1, 400), L.Dense(256), (1, 400), math.sqrt(6 / 656)),
    "DenseGeneral": (
        nn.DenseGeneral((8, 40), axis=(-2, -1)),
        (1, 16, 20),
        L.EinsumDense("bij,ijhd->bhd", (8, 40), bias_axes="hd"),
        (1, 16, 20),
        math.sqrt(6 / (320 + 320)),
    ),
    "DenseGeneral, batch": (
        nn.DenseGeneral(128, batch_dims=0, axis=-1),
        (12, 3, 70),
        L.EinsumDense("bic,bco->bio", (3, 128), bias_axes="o"),
        (12, 3, 70),
        math.sqrt(6 / (70 + 12 * 128)),
    ),
    "Einsum": (
        nn.Einsum((320, 8, 40), "abc,cde->abde"),
        (1, 2, 320),
        L.EinsumDense("abc,cde->abde", (None, 8, 40), bias_axes="de"),
        (1, 2, 320),
        math.sqrt(6 / (320 + 320)),
    ),
    "Einsum, batch": (
        nn.Einsum((12, 70, 128), "bic,bco->bio"),
        (12, 3, 70),
        L.EinsumDense("bic,bco->bio", (3, 128), bias_axes="bo"),
        (12, 3, 70),
        math.sqrt(6 / (70 + 12 * 128)),
    ),
    "layers_with_named_axes.Dense": (
        named_axes.Dense(256, kernel_axes=("in", "out")),
        (1, 400),
        L.Dense(256),
        (1, 400),
        math.sqrt(6 / 656),
    ),
    "layers_with_named_axes.Embed": (
        named_axes.Embed(1600, 64),
        (1,),
        L.Embedding(1600, 64),
        (1,),
        0.05,
    ),
    "Conv1D": (nn.Conv(400, (3,)), (1, 9, 90), L.Conv1D(400, 3), (1, 9, 90), math.sqrt(6 / 1470)),
    "Conv2D": (
        nn.Conv(160, (3, 3)),
        (1, 5, 5, 80),
        L.Conv2D(160, 3),
        (1, 5, 5, 80),
        math.sqrt(6 / (9 * 240)),
    ),
    "Conv3D": (
        nn.Conv(80, (3, 3, 3)),
        (1, 3, 3, 3, 50),
        L.Conv3D(80, 3),
        (1, 3, 3, 3, 50),
        math.sqrt(6 / (27 * 130)),
    ),
    "Conv2D, groups": (
        nn.Conv(320, (3, 3), feature_group_count=4),
        (1, 4, 4, 160),
        L.Conv2D(320, 3, groups=4),
        (1, 4, 4, 160),
        math.sqrt(6 / (9 * 360)),
    ),
    "Conv1DTranspose": (
        nn.ConvTranspose(400, (3,)),
        (1, 9, 90),
        L.Conv1DTranspose(400, 3),
        (1, 9, 90),
        math.sqrt(6 / 1470),
    ),
    "Conv2DTranspose": (
        nn.ConvTranspose(160, (3, 3)),
        (1, 5, 5, 80),
        L.Conv2DTranspose(160, 3),
        (1, 5, 5, 80),
        math.sqrt(6 / (9 * 240)),
    ),
    "Conv2DTranspose, transposed kernel": (
        nn.ConvTranspose(160, (3, 3), transpose_kernel=True),
        (1, 5, 5, 80),
        L.Conv2DTranspose(160, 3),
        (1, 5, 5, 80),
        math.sqrt(6 / (9 * 240)),
    ),
    "Embed": (nn.Embed(1600, 64), (1,), L.Embedding(1600, 64), (1,), 0.05),
}


def initialized(layer, shape):
    inputs = jnp.ones(shape, int if isinstance(layer, nn.Embed | named_axes.Embed) else float)
    with jinit.keras_defaults():
        return jax.jit(layer.init)(jax.random.key(0), inputs)["params"]


def biases(tree):
    return [v for p, v in jax.tree_util.tree_leaves_with_path(tree) if "bias" in str(p)]


@pytest.mark.cases
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_drawn_as_in_keras(name):
    layer, shape, keras_layer, keras_shape, limit = LAYERS[name]
    ours = initialized(layer, shape)
    theirs = built(keras_layer, keras_shape)
    for params in (ours, theirs):
        weights = params.get("kernel", params.get("embedding", params.get("embeddings")))
        assert weights.size >= 100_000
        assert follows(weights, uniform_cdf(-limit, limit))
        assert moments_fit(weights, 0, limit / math.sqrt(3), kurtosis=1.8)
        assert 0.999 * limit < abs(weights).max() <= np.float32(limit)
        assert all((bias == 0).all() for bias in biases(params))
    assert len(biases(ours)) == len(biases(theirs))


ATTENTION = {
    nn.MultiHeadDotProductAttention: contextlib.nullcontext,
    nn.MultiHeadAttention: contextlib.nullcontext,
    nn.SelfAttention: pytest.deprecated_call,
}


@pytest.mark.cases
@pytest.mark.parametrize("attention", ATTENTION)
def test_attention_is_drawn_as_in_keras(attention):
    with ATTENTION[attention]():
        ours = initialized(attention(num_heads=4, qkv_features=4 * 70), (1, 5, 400))
    theirs = built(L.MultiHeadAttention(4, 70), (1, 5, 400), (1, 5, 400))
    limit = math.sqrt(6 / (400 + 280))
    for name in ("query", "key", "value", "out"):
        keras_name = "attention_output" if name == "out" else name
        for kernel in (ours[name]["kernel"], theirs[f"{keras_name}/kernel"]):
            assert kernel.size >= 100_000
            assert follows(kernel, uniform_cdf(-limit, limit))
    assert all((bias == 0).all() for bias in biases(ours) + biases(theirs))


def test_prelu_begins_with_keras_slope():
    slope = initialized(nn.PReLU(), (1, 3))["negative_slope"]
    assert slope == 0 == built(L.PReLU(), (1, 3))["alpha"].max()


# Of n numbers the largest lies above this share of the limit, but for a probability of 1e-6.
def share(n):
    return 1 - math.log(1e6) / n


@pytest.mark.cases
@pytest.mark.parametrize(
    ("layer", "shape", "limit"),
    [
        (nn.Dense(128), (1, 64), 0.17678),
        (nn.Conv(64, (3,)), (1, 8, 32), 0.14434),
        (nn.Conv(64, 3), (1, 8, 32), 0.14434),
        (nn.Conv(64, (3, 3)), (1, 8, 8, 32), 0.08333),
        (nn.Conv(24, (3, 3, 3)), (1, 4, 4, 4, 16), 0.07454),
        (nn.Conv(64, (3, 3), feature_group_count=4), (1, 8, 8, 32), 0.09622),
        (nn.ConvTranspose(64, (3,)), (1, 8, 32), 0.14434),
        (nn.ConvTranspose(64, (3, 3)), (1, 8, 8, 32), 0.08333),
        (nn.Conv(32, (3, 3), feature_group_count=32), (1, 8, 8, 32), 0.14213),
        (nn.Conv(128, (3, 3), feature_group_count=32), (1, 8, 8, 32), 0.07189),
        (nn.Embed(1000, 64), (1,), 0.05),
        # One kernel for each of 4 positions: window * in = 96 in, 64 out.
        (nn.ConvLocal(64, (3,), padding="VALID"), (1, 6, 32), math.sqrt(6 / 160)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_the_golden_limits(layer, shape, limit):
    params = initialized(layer, shape)
    weights = params.get("kernel", params.get("embedding"))
    assert share(weights.size) * limit < abs(weights).max() < limit + 5e-6


def test_the_golden_limits_of_attention():
    params = initialized(nn.MultiHeadAttention(4, qkv_features=256), (1, 5, 128))
    for name in ("query", "key", "value", "out"):
        kernel = params[name]["kernel"]
        assert share(kernel.size) * 0.125 < abs(kernel).max() <= 0.125


INPUTS = 0.05 * np.random.default_rng(0).normal(size=(4, 3, 3, 8)).astype(np.float32) + 0.1
NORMS = {
    "BatchNorm": (nn.BatchNorm(use_running_average=True), L.BatchNormalization()),
    "LayerNorm": (nn.LayerNorm(), L.LayerNormalization()),
    "GroupNorm": (nn.GroupNorm(num_groups=4), L.GroupNormalization(4)),
    # With a scale or a bias, this class of Flax fails.
    "layers_with_named_axes.LayerNorm": (
        named_axes.LayerNorm(use_scale=False, use_bias=False),
        L.LayerNormalization(),
    ),
}


@pytest.mark.cases
@pytest.mark.parametrize("name", NORMS)
def test_a_norm_computes_what_keras_computes(name):
    norm, keras_norm = NORMS[name]
    model = jinit.keras_defaults().wrap(norm)
    ours = model.apply(model.init(jax.random.key(0), INPUTS), INPUTS)
    np.testing.assert_allclose(ours, keras_norm(INPUTS), rtol=2e-5, atol=2e-5)
    plain = norm.apply(norm.init(jax.random.key(0), INPUTS), INPUTS)
    assert abs(plain - ours).max() > 1e-4


def test_instance_norm_takes_the_epsilon():
    model = jinit.keras_defaults().wrap(nn.InstanceNorm())
    ours = model.apply(model.init(jax.random.key(0), INPUTS), INPUTS)
    variance = INPUTS.var(axis=(1, 2), keepdims=True)
    expected = (INPUTS - INPUTS.mean(axis=(1, 2), keepdims=True)) / np.sqrt(variance + 1e-3)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.thorough
def test_batch_norm_trains_and_evaluates_as_in_keras():
    keras_norm = L.BatchNormalization()
    model = jinit.keras_defaults().wrap(nn.BatchNorm(use_running_average=None))
    variables = model.init(jax.random.key(0), INPUTS, use_running_average=False)
    train = jax.jit(
        lambda v, x: model.apply(v, x, use_running_average=False, mutable=["batch_stats"])
    )
    for step in range(3):
        batch = INPUTS * (step + 1)
        ours, updates = train(variables, batch)
        variables = {**variables, **updates}
        np.testing.assert_allclose(ours, keras_norm(batch, training=True), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        variables["batch_stats"]["mean"], keras_norm.moving_mean, rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(
        variables["batch_stats"]["var"], keras_norm.moving_variance, rtol=1e-4
    )
    np.testing.assert_allclose(
        model.apply(variables, INPUTS, use_running_average=True),
        keras_norm(INPUTS, training=False),
        rtol=1e-4,
        atol=1e-4,
    )


def test_the_comparison_can_fail():
    plain = nn.Dense(256).init(jax.random.key(0), jnp.ones((1, 400)))["params"]["kernel"]
    limit = math.sqrt(6 / 656)
    assert not follows(plain, uniform_cdf(-limit, limit))
    assert ks_threshold(plain.size) < 0.01
