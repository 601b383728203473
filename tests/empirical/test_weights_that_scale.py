"""What is made of a weight before it meets the input, and how it scales with the weight."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

import jinit
from tests.empirical.models import random_loss, rms

pytestmark = pytest.mark.usefixtures("allow_rank_promotion")
X = jax.random.normal(jax.random.key(1), (64, 32))
W = 3 * jax.random.normal(jax.random.key(0), (32, 32))
V = 0.1 * jax.random.normal(jax.random.key(2), (32, 32))
MASK = np.tri(32) > 0


@jax.custom_jvp
def with_a_jvp(w):
    return w


with_a_jvp.defjvp(lambda primals, tangents: (with_a_jvp(*primals), tangents[0]))


@jax.custom_vjp
def with_a_vjp(w):
    return w


with_a_vjp.defvjp(lambda w: (w, None), lambda _, ct: (ct,))
HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])

SCALES = {
    "a stopped gradient": jax.lax.stop_gradient,
    "a barrier": jax.lax.optimization_barrier,
    "a barrier for two": lambda w: jax.lax.optimization_barrier((w, 2 * w))[1],
    "reduced precision": lambda w: jax.lax.reduce_precision(w, 8, 7),
    "a copy": lambda w: jnp.array(w, copy=True),
    "a custom jvp": with_a_jvp,
    "a custom vjp": with_a_vjp,
    "a device": lambda w: jax.device_put(w, jax.devices()[0]),
    "a sharding": lambda w: jax.lax.with_sharding_constraint(w, HERE),
    "a cast": lambda w: w.astype(jnp.bfloat16).astype(jnp.float32),
    "a name": lambda w: checkpoint_name(w, "w"),
    "a mask": lambda w: jnp.where(MASK, w, 0),
    "a triangle": jnp.triu,
    "a rectified weight": lambda w: jnp.clip(w, 0),
    "an entry that is set": lambda w: w.at[0].set(0.0),
    "a block": lambda w: jnp.zeros((32, 32)).at[jnp.arange(16)].set(w[:16]),
    "a part written anew": lambda w: jax.lax.dynamic_update_slice(w, w[:2], (3, 0)),
    "summed by segments": lambda w: jax.ops.segment_sum(w, jnp.arange(32) // 2, 32),
    "a sorted weight": lambda w: jnp.sort(w, axis=0),
    "sorted beside another": lambda w: jax.lax.sort((jnp.abs(w), w), num_keys=1)[1],
    "the largest entries": lambda w: jax.lax.top_k(w, 32)[0],
    "a spectrum": lambda w: jnp.real(jnp.fft.fft(w)),
    "a complex number": lambda w: jax.lax.complex(w, 2 * w).imag,
    "a conjugate": lambda w: jnp.conj(w + 0j).real,
}
DOES_NOT = {
    "rounding": jnp.round,
    "a constant written": lambda w: w.at[0].set(1.0),
    "a constant beside": lambda w: jnp.where(MASK, w, 1.0),
    "a clipped weight": lambda w: jnp.clip(w, -1, 1),
    "whole numbers": lambda w: w.astype(jnp.int32).astype(jnp.float32),
    "a complex number with a constant": lambda w: jnp.abs(jax.lax.complex(w, jnp.ones_like(w))),
}


@pytest.mark.cases
@pytest.mark.parametrize("make", SCALES.values(), ids=SCALES)
def test_what_scales_with_the_weight_is_scaled(make):
    size = rms(X @ make(W))
    result = jinit.calibrate({"w": W}, lambda p, x: x @ make(p["w"]), X, random_loss)
    assert result.report.not_tuned == {}
    np.testing.assert_allclose(result.params["w"], W / size, rtol=1e-4, atol=1e-6)


@pytest.mark.cases
@pytest.mark.parametrize("make", DOES_NOT.values(), ids=DOES_NOT)
def test_what_does_not_is_left(make):
    result = jinit.calibrate({"w": W}, lambda p, x: x @ make(p["w"]), X, random_loss)
    assert result.report.not_tuned == {"w": "not homogeneous in any of its parameters"}
    np.testing.assert_array_equal(result.params["w"], W)


@pytest.mark.cases
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("mode", ["fold", "explicit"])
def test_a_weight_without_a_gradient_has_the_multiplier_one(mode, optimizer):
    def model(p, x):
        y = x @ jax.lax.stop_gradient(p["w"])
        return y, jnp.tanh(y) @ p["v"]

    def loss(outputs, key):
        return random_loss(outputs[1], key)

    params = {"w": W, "v": W}
    result = jinit.calibrate(params, model, X, loss, mode=mode, optimizer=optimizer)
    assert float(result.multipliers["w"]) == 1
    for y in result.apply_fn(result.params, X):
        assert rms(y) == pytest.approx(1, rel=1e-4)
    assert "w" in result.report.null


@pytest.mark.thorough
def test_a_weight_whose_size_cancels_is_said_to():
    def model(p, x):
        return x @ (p["w"] / jnp.linalg.norm(p["w"]))

    result = jinit.calibrate({"w": W}, model, X, random_loss)
    assert result.report.not_tuned == {"w": "the scale of its parameters cancels"}


def test_values_that_are_moved_together_stay_apart():
    """One equation places several arrays; each has the degrees of its own."""

    def model(p, x):
        first, second = jax.device_put((p["first"], p["second"]))
        y = x @ first
        return y, jnp.tanh(y) @ second

    tuned = jinit.empirical_init({"first": W, "second": V}, model, X, lambda out: out[1].sum())
    assert [rms(y) for y in model(tuned, X)] == pytest.approx([1, 1], rel=1e-3)


@pytest.mark.cases
@pytest.mark.parametrize(
    "place", [lambda y: jax.device_put(y), lambda y: jax.lax.reduce_precision(y, 8, 20)]
)
def test_a_bias_after_its_product_was_placed(place):
    def model(p, x):
        return place(x @ p["w"]) + p["b"]

    result = jinit.calibrate({"w": W, "b": 20 * jnp.ones(32)}, model, X, random_loss)
    assert rms(model(result.params, X)) == pytest.approx(1, rel=1e-3)
    assert result.report.not_tuned == {}


SLICES = W[None] * 10.0 ** jnp.arange(-2, 2)[:, None, None]
BY_SLICE = {
    "as they are": lambda w: w,
    "transposed": lambda w: jnp.swapaxes(w, 1, 2),
    "scaled": lambda w: 2 * w / jnp.arange(1.0, 5)[:, None, None],
    "without a gradient": jax.lax.stop_gradient,
    "reshaped": lambda w: w.reshape(4, -1).reshape(4, 32, 32),
    "multiplied": lambda w: jnp.einsum("lij,ljk->lik", w, jnp.stack([V] * 4)),
    "centred": lambda w: w - w.mean(1, keepdims=True),
    "turned within": lambda w: w[:, ::-1],
    "masked": lambda w: jnp.where(MASK, w, 0),
    "widened": lambda w: jnp.concatenate([w, w], 2)[:, :, :32],
}
AT_ONCE = {
    "reversed": lambda w: w[::-1],
    "in another order": lambda w: w[jnp.array([2, 0, 1, 3])],
    "rolled": lambda w: jnp.roll(w, 1, 0),
    "some": lambda w: w[:2],
    "more than once": lambda w: jnp.repeat(w, 2, 0),
    "along another axis, reversed": lambda w: jnp.moveaxis(w[:, ::-1], 1, 0),
    "reshaped across": lambda w: w.reshape(2, 2, 32, 32)[:, 1],
}


def through(ws, x):
    def layer(x, w):
        y = x @ w[:32] if w.shape[0] > 4 else x[:, :4] @ w
        return jnp.tanh(y), y

    return jax.lax.scan(layer, x, ws)[1]


@pytest.mark.cases
@pytest.mark.parametrize("mode", ["fold", "explicit"])
@pytest.mark.parametrize("make", BY_SLICE.values(), ids=BY_SLICE)
def test_stacked_weights_are_scaled_slice_by_slice(make, mode):
    def model(p, x):
        return through(make(p["w"]), x)

    result = jinit.calibrate({"w": SLICES}, model, X, random_loss, mode=mode)
    for y in result.apply_fn(result.params, X):
        assert rms(y) == pytest.approx(1, rel=1e-3)
    assert result.multipliers["w"].shape == (4,)


@pytest.mark.thorough
@pytest.mark.parametrize("make", AT_ONCE.values(), ids=AT_ONCE)
def test_stacked_weights_read_otherwise_have_one_scale_and_the_report_says_so(make):
    def model(p, x):
        return through(make(p["w"]), x)

    result = jinit.calibrate({"w": SLICES}, model, X, random_loss)
    ratio = result.params["w"] / SLICES
    np.testing.assert_allclose(ratio, ratio[0, 0, 0], rtol=1e-5)
    assert {row.note for row in result.report.rows} == {
        "shared; one scale for all slices, which a loop reads in another order"
    }


NESTED = {
    "along its second axis": (lambda w: jnp.moveaxis(w, 0, 1), lambda w: jnp.moveaxis(w, 1, 0)),
    "along its last axis": (lambda w: jnp.moveaxis(w, 0, 2), lambda w: jnp.moveaxis(2 * w, 2, 0)),
}


@pytest.mark.thorough
@pytest.mark.parametrize("mode", ["fold", "explicit"])
@pytest.mark.parametrize(("put", "get"), NESTED.values(), ids=NESTED)
def test_weights_stacked_along_another_axis(put, get, mode):
    """The multipliers and scales have the leaf's axes up to the last that a loop goes along."""

    def model(p, x):
        return through(get(p["w"]) / 2, x), x @ p["v"]

    params = {"w": put(SLICES), "v": W}
    result = jinit.calibrate(params, model, X, lambda out: out[0][-1].sum(), mode=mode)
    for y in result.apply_fn(result.params, X)[0]:
        assert rms(y) == pytest.approx(1, rel=1e-3)
    axis = params["w"].shape.index(4)
    scale = result.multipliers["w"] if mode == "fold" else result.scales["w"]["gx"]
    assert scale.shape == (1,) * axis + (4,)
    for row in result.report.rows:
        assert row.note == ""


@pytest.mark.thorough
def test_a_linen_scan_along_the_second_axis():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            y = nn.Dense(32, bias_init=nn.initializers.normal(2.0))(x)
            return jnp.tanh(y), y

    scan = nn.scan(Block, variable_axes={"params": 1}, split_rngs={"params": True}, length=4)
    variables = scan().init(jax.random.key(0), X, None)
    variables["params"]["Dense_0"]["kernel"] *= 4.0 ** jnp.arange(4)[:, None]
    result = jinit.calibrate(
        variables, lambda v, x: scan().apply(v, x, None), X, lambda out: out[1].sum(),
        optimizer="sgd", verbose=True,
    )  # fmt: skip
    for y in scan().apply(result.params, X, None)[1]:
        assert rms(y) == pytest.approx(1, rel=1e-3)
    multipliers = result.multipliers["params"]["Dense_0"]
    assert {name: m.shape for name, m in multipliers.items()} == {"kernel": (1, 4), "bias": (1, 4)}
    for row in result.report.rows:
        assert row.update_after == pytest.approx(1, rel=0.2)
    slopes = jax.grad(lambda v: scan().apply(v, X, None)[1].sum())(result.params)["params"]
    assert result.report.leaf_gradients["params/Dense_0/bias"] == pytest.approx(
        rms(slopes["Dense_0"]["bias"]), rel=1e-2
    )
    tx = result.transform()
    updates, _ = tx.update(slopes, tx.init(slopes))
    expected = slopes["Dense_0"]["kernel"] * multipliers["kernel"][..., None]
    np.testing.assert_allclose(updates["Dense_0"]["kernel"], expected, rtol=1e-6)


@pytest.mark.thorough
def test_two_loops_along_two_axes():
    """The outer one goes along the second axis of the leaf, the inner one along its first."""
    slices = SLICES[:, None] * 3.0 ** jnp.arange(3)[None, :, None, None]

    def model(p, x):
        def outer(x, w):
            ys = through(w, x)
            return jnp.tanh(ys[-1]), ys

        return jax.lax.scan(outer, x, jnp.swapaxes(p["w"], 0, 1))[1]

    for mode in ("fold", "explicit"):
        result = jinit.calibrate({"w": slices}, model, X, random_loss, mode=mode)
        sizes = jnp.sqrt(jnp.mean(result.apply_fn(result.params, X) ** 2, (2, 3)))
        np.testing.assert_allclose(sizes, 1, rtol=1e-3)
        assert result.multipliers["w"].shape == (4, 3)


@pytest.mark.thorough
def test_one_leaf_along_two_axes_has_one_scale():
    weight = jnp.stack([SLICES] * 4, 1)

    def model(p, x):
        first = through(p["w"][:, 0], x)
        return first, through(jnp.moveaxis(p["w"], 1, 0)[:, 0], x), p["w"].sum()

    result = jinit.calibrate({"w": weight}, model, X, lambda out: out[0][-1].sum())
    ratio = result.params["w"] / weight
    np.testing.assert_allclose(ratio, ratio[0, 0, 0, 0], rtol=1e-5)


CHOICES = {
    "a branch": lambda p, at: jax.lax.cond(at, lambda: p["a"], lambda: p["b"]),
    "one of three": lambda p, at: jax.lax.switch(
        at.astype(int), [lambda: p["a"], lambda: p["b"], lambda: 2 * p["a"]]
    ),
    "a branch or nothing": lambda p, at: jax.lax.cond(
        at, lambda: p["a"] + p["b"], lambda: jnp.zeros((32, 32))
    ),
}


@pytest.mark.thorough
@pytest.mark.parametrize("choose", CHOICES.values(), ids=CHOICES)
def test_weights_that_the_input_chooses_scale_together(choose):
    def model(p, x):
        return x @ choose(p, x[0, 0] > 0)

    def draw(key):
        return jax.random.normal(key, (64, 32))

    params = {"a": W, "b": 2 * W}
    result = jinit.calibrate(params, model, draw, random_loss, samples=16)
    factor = float(result.params["a"][0, 0] / W[0, 0])
    np.testing.assert_allclose(result.params["b"], factor * params["b"], rtol=1e-5)
    (row,) = result.report.rows
    assert (row.note, result.report.not_tuned) == ("one scale with b", {})
    assert row.activation_after == pytest.approx(1, rel=0.3)


@pytest.mark.thorough
def test_a_choice_that_hangs_on_the_chosen_is_listed():
    def model(p, x):
        return x @ jax.lax.cond((x @ p["a"])[0, 0] > 1, lambda: p["a"], lambda: p["b"])

    result = jinit.calibrate({"a": W, "b": V}, model, X, random_loss)
    assert result.report.not_tuned == {"b": "not homogeneous in any of its parameters"}


def test_a_parameter_that_is_followed_nowhere_is_listed():
    def model(p, x):
        return x @ p["w"], p["offset"]

    params = {"w": W, "offset": jnp.ones(3)}
    result = jinit.calibrate(params, model, X, lambda out: out[0].sum() + out[1].sum())
    assert result.report.not_tuned == {"offset": "meets no input where it can be followed"}


def test_every_leaf_of_a_layer_is_listed():
    def model(p, x):
        return jax.lax.map(lambda row: row @ (p["w"] + p["v"] + 1), x + 0 * p["gain"]) + p["b"]

    params = {"w": W, "v": V, "b": jnp.ones(32), "gain": jnp.ones(32)}
    report = jinit.calibrate(params, model, X, random_loss).report
    assert set(report.not_tuned) == set(params)
