"""Models on which a careless analysis goes wrong without a word."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jinit
from tests.empirical.models import random_loss, rms

pytestmark = pytest.mark.usefixtures("allow_rank_promotion")
X = jax.random.normal(jax.random.key(1), (64, 32))
W = 3 * jax.random.normal(jax.random.key(0), (32, 32))


def geometric_mean(values):
    return float(np.exp(np.mean(np.log([rms(value) for value in values]))))


@pytest.mark.cases
@pytest.mark.parametrize("activation", [jax.nn.relu, jnp.tanh, lambda x: x])
@pytest.mark.parametrize("uses", [2, 3, 4, 10, 40])
def test_one_weight_used_along_a_chain(uses, activation):
    """The wish of N uses falls by (N - 1) / 2 for each unit: plain iteration diverges at 4."""

    def model(p, x):
        outputs = []
        for _ in range(uses):
            outputs.append(x @ p["w"])
            x = activation(outputs[-1])
        return outputs

    tuned = jinit.empirical_init({"w": W}, model, X, lambda outputs: outputs[-1].sum())
    assert geometric_mean(model(tuned, X)) == pytest.approx(1, rel=0.02)


@pytest.mark.cases
@pytest.mark.parametrize("steps", [5, 60])
def test_a_relu_recurrence(steps):
    def model(p, x):
        def step(h, xt):
            y = h @ p["h"]
            return jax.nn.relu(xt @ p["i"] + y), y

        return jax.lax.scan(step, jnp.zeros((64, 32)), x)[1]

    x = jax.random.normal(jax.random.key(2), (steps, 64, 32))
    tuned = jinit.empirical_init({"i": W, "h": 0.3 * W}, model, x, jnp.sum)
    assert geometric_mean(model(tuned, x)[1:]) == pytest.approx(1, rel=0.05)


def test_stacked_weights_that_a_loop_indexes():
    def model(p, x):
        for i in range(4):
            x = jax.nn.relu(x @ p[i])
        return x

    tuned = jinit.empirical_init(jnp.stack([W] * 4), model, X, jnp.sum)
    assert bool(jnp.isfinite(tuned).all())
    assert rms(model(tuned, X)) < 10


SLICES = W[None] * 10.0 ** jnp.arange(4)[:, None, None]


def through(ws, x):
    def layer(x, w):
        y = x @ w
        return jnp.tanh(y), jnp.sqrt(jnp.mean(y**2))

    return jax.lax.scan(layer, x, ws)


def transposed(ws):
    return jax.lax.scan(lambda _, w: (None, w.T), None, ws)[1]


def test_what_a_scan_makes_of_slices_is_scaled_slice_by_slice():
    def model(p, x):
        return through(transposed(p["w"]), x)

    tuned = jinit.empirical_init({"w": SLICES}, model, X, lambda out: out[0].sum())
    np.testing.assert_allclose(model(tuned, X)[1], 1, rtol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "weights",
    [
        lambda ws: transposed(ws)[::-1],
        lambda ws: transposed(ws)[:2],
        lambda ws: ws[jnp.array([2, 0, 1, 3])],
    ],
)
def test_slices_in_another_order_share_one_scale(weights):
    """Which iteration reads which slice is not known: nothing may be scaled by another's factor."""

    def model(p, x):
        return through(weights(p["w"]), x)

    result = jinit.calibrate({"w": SLICES}, model, X, lambda out: out[0].sum())
    factors = result.params["w"] / SLICES
    np.testing.assert_allclose(factors, factors[0, 0, 0], rtol=1e-5)
    sizes = np.asarray(model(result.params, X)[1])
    assert result.report.shared["w"] == pytest.approx(max(*sizes, *(1 / sizes)), rel=1e-2)


@pytest.mark.thorough
def test_a_slice_beside_the_whole_depends_on_the_whole():
    def model(p, x):
        def layer(x, w):
            y = x @ (w - p["w"].mean(0))
            return jnp.tanh(y), jnp.sqrt(jnp.mean(y**2))

        return jax.lax.scan(layer, x, p["w"])

    result = jinit.calibrate({"w": SLICES}, model, X, lambda out: out[0].sum())
    factors = result.params["w"] / SLICES
    np.testing.assert_allclose(factors, factors[0, 0, 0], rtol=1e-5)
    assert set(result.report.shared) == {"w"}


def test_what_a_scan_made_of_slices_is_used_outside():
    def model(p, x):
        return jnp.tanh(x @ transposed(p["w"])[1]) @ p["v"]

    tuned = jinit.empirical_init({"w": SLICES, "v": W}, model, X, jnp.sum)
    assert rms(X @ tuned["w"][1].T) == pytest.approx(1, rel=1e-5)
    assert rms(model(tuned, X)) == pytest.approx(1, rel=1e-5)


@pytest.mark.thorough
def test_a_sum_of_slices_that_a_scan_carries():
    def model(p, x):
        def layer(carry, w):
            x, total = carry
            return (jnp.tanh(x @ (total + w)), total + w), None

        (x, total), _ = jax.lax.scan(layer, (x, p["w"][0]), p["w"])
        return x @ total

    result = jinit.calibrate({"w": SLICES}, model, X, random_loss)
    factors = result.params["w"] / SLICES
    np.testing.assert_allclose(factors, factors[0, 0, 0], rtol=1e-5)
    assert result.report.shared["w"] > 1


@pytest.mark.cases
@pytest.mark.parametrize("mode", ["fold", "explicit"])
@pytest.mark.parametrize("length", [0, 1])
def test_loops_of_no_and_of_one_iteration(mode, length):
    def model(p, x):
        return through(p["w"], x)[0] @ p["head"]

    params = {"w": SLICES[:length], "head": W}
    result = jinit.calibrate(params, model, X, random_loss, mode=mode)
    assert rms(result.apply_fn(result.params, X)) == pytest.approx(1, rel=1e-5)
    names = [row.path for row in result.report.rows]
    assert names == ["w[0]"] * length + ["head"]


@pytest.mark.thorough
def test_an_empty_leaf_does_not_hide_a_null_gradient():
    def model(p, x):
        y = jnp.concatenate([x @ p["w"], x @ p["empty"]], 1) + p["null"]
        return y - jnp.mean(y, 0)

    params = {"w": W, "empty": W[:, :0], "null": jnp.ones(32)}
    result = jinit.calibrate(params, model, X, random_loss)
    assert "null" in result.report.null
    assert rms(result.apply_fn(result.params, X)) == pytest.approx(1, rel=0.1)


@pytest.mark.cases
@pytest.mark.parametrize("optimizer", ["sgd", "adam", optax.sgd(1.0)])
def test_the_step_of_a_complex_leaf_is_the_steepest(optimizer):
    x = X + 1j * jax.random.normal(jax.random.key(2), X.shape)
    weight = W + 1j * W.T

    def model(p, x):
        return x @ p["w"]

    def loss(y):
        return jnp.mean(jnp.abs(y - x @ weight.T) ** 2)

    result = jinit.calibrate({"w": weight}, model, x, loss, optimizer=optimizer)
    step = jnp.conj(jax.grad(lambda p: loss(model(p, x)))(result.params)["w"])
    step = jnp.sign(step) if optimizer == "adam" else step
    assert rms(jnp.abs(x @ step) * result.multipliers["w"]) == pytest.approx(1, rel=1e-4)


def test_a_branch_counts_only_where_it_is_taken():
    def model(p, x):
        return jax.lax.cond(x[0, 0] > 1.5, lambda x: x @ p["a"], lambda x: x @ p["b"], x)

    def draw(key):
        return jax.random.normal(key, (64, 32))

    result = jinit.calibrate({"a": W, "b": W}, model, draw, random_loss, samples=64)
    for row in result.report.rows:
        assert row.activation_after == pytest.approx(1, rel=0.1)
        assert row.update_after == pytest.approx(1, rel=0.2)


def test_a_barrier_keeps_its_operands_apart():
    def model(p, x):
        first, second = jax.lax.optimization_barrier((p["first"], p["second"]))
        y = x @ first
        return y, jnp.tanh(y) @ second

    tuned = jinit.empirical_init({"first": W, "second": W}, model, X, lambda out: out[1].sum())
    assert [rms(y) for y in model(tuned, X)] == pytest.approx([1, 1], rel=1e-3)


@pytest.mark.cases
@pytest.mark.parametrize(
    "weight",
    [
        lambda w: jnp.concatenate([w, 5 * jnp.ones((32, 32))], 1),
        lambda w: jnp.where(jnp.abs(w) > 1.0, w, 0),
        lambda w: w + 1.0,
    ],
)
def test_a_weight_that_does_not_scale_is_listed_and_left(weight):
    def model(p, x):
        return x @ weight(p["w"])

    result = jinit.calibrate({"w": W}, model, X, random_loss)
    np.testing.assert_array_equal(result.params["w"], W)
    assert result.report.not_tuned == {"w": "not homogeneous in any of its parameters"}


def test_a_weight_that_is_rectified_scales():
    def model(p, x):
        return x @ jnp.where(p["w"] > 0, p["w"], 0.1 * p["w"])

    assert rms(model(jinit.empirical_init({"w": W}, model, X, jnp.sum), X)) == pytest.approx(1)


def test_a_gradient_that_is_not_finite_is_named():
    """The slope of a square root at 0, of which forward nothing is seen."""

    def model(p, x):
        return x @ p["w"] + jnp.sqrt(jnp.sum((0 * x) @ p["v"], -1, keepdims=True) ** 2)

    params = {"w": W, "v": W}
    message = "the gradient at the input of v is not finite, the first of 1 such layers; params"
    with pytest.raises(ValueError, match=message):
        jinit.calibrate(params, model, X, random_loss, optimizer="sgd")
    np.testing.assert_array_equal(params["w"], W)


@pytest.mark.thorough
@pytest.mark.parametrize("optimizer", ["adam", "sgd", optax.scale_by_adam()])
def test_leaves_that_are_not_floats_are_no_business_of_the_optimizer(optimizer):
    params = {"w": W, "key": jax.random.key(0), "mask": jnp.array(True), "n": jnp.arange(2)}
    result = jinit.calibrate(params, lambda p, x: x @ p["w"], X, random_loss, optimizer=optimizer)
    assert result.report.rows[0].update_after == pytest.approx(1, rel=0.3)
    assert bool(result.params["mask"])


@jax.custom_vjp
def straight_through(w):
    return jnp.round(4 * w) / 4


straight_through.defvjp(lambda w: (straight_through(w), None), lambda _, ct: (ct,))


def test_a_straight_through_weight_is_measured():
    result = jinit.calibrate({"w": W}, lambda p, x: x @ straight_through(p["w"]), X, random_loss)
    assert np.isfinite(result.report.rows[0].activation_after)


@pytest.mark.thorough
def test_a_custom_derivative_between_product_and_bias():
    def model(p, x):
        return straight_through(x @ p["w"]) + p["b"]

    result = jinit.calibrate({"w": W, "b": jnp.ones(32)}, model, X, random_loss)
    assert result.report.rows[0].update_after == pytest.approx(1, rel=0.1)


@pytest.mark.thorough
def test_a_bias_inside_a_loop_is_not_that_of_the_product_outside():
    def model(p, x):
        y = x @ p["w"]
        body = lambda c, _: (jnp.tanh(c + (y + p["b"])), None)  # noqa: E731
        return jax.lax.scan(body, jnp.zeros_like(y), None, length=3)[0]

    result = jinit.calibrate({"w": W, "b": jnp.ones(32)}, model, X, random_loss)
    assert rms(X @ result.params["w"]) == pytest.approx(1, rel=1e-4)
    assert result.report.not_tuned == {"b": "a bias on its own"}


def test_debug_nans_finds_none():
    tokens = jnp.arange(8)
    with jax.debug_nans(True):
        result = jinit.calibrate({"e": W}, lambda p, t: p["e"][t], tokens, random_loss)
    assert result.report.rows[0].gradient_after is None


@pytest.mark.cases
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_strict_dtype_promotion(dtype):
    with jax.numpy_dtype_promotion("strict"):
        params = {"w": W.astype(dtype)}
        result = jinit.calibrate(
            params, lambda p, x: x @ p["w"], X.astype(dtype), lambda y: y.astype(jnp.float32).sum()
        )
    assert result.params["w"].dtype == dtype


def test_multipliers_are_float32_in_64_bit_mode():
    with jax.enable_x64(True):
        params, x = {"w": jnp.asarray(np.float64(W))}, jnp.asarray(np.float64(X))
        result = jinit.calibrate(params, lambda p, x: x @ p["w"], x, lambda y: y.sum())
        assert result.multipliers["w"].dtype == jnp.float32
        assert result.params["w"].dtype == jnp.float64


def test_what_is_no_parameter_may_be_infinite():
    variables = {"params": {"w": W}, "constants": {"mask": jnp.full((32,), -jnp.inf)}}

    def model(v, x):
        return jnp.maximum(x @ v["params"]["w"], v["constants"]["mask"])

    tuned = jinit.empirical_init(variables, model, X, jnp.sum)
    assert rms(model(tuned, X)) == pytest.approx(1)


def test_params_may_be_one_array():
    tuned = jinit.empirical_init({"params": W}, lambda v, x: x @ v["params"], X, jnp.sum)
    assert rms(X @ tuned["params"]) == pytest.approx(1)


def test_a_partial_is_named_by_its_function():
    def loses_its_parameters(flag, p, x):
        return x

    with pytest.raises(ValueError, match="the output of loses_its_parameters depends on no"):
        jinit.empirical_init(W, functools.partial(loses_its_parameters, 1), X, jnp.sum)


@pytest.mark.thorough
def test_a_mapped_calibration_has_the_report_of_every_member():
    def model(p, x):
        return jnp.tanh(x @ p["w"]) @ p["v"]

    def calibrated(p):
        return jinit.calibrate(p, model, X, random_loss, exclude="v", step="network", samples=2)

    params = {"w": SLICES, "v": SLICES[::-1]}
    mapped = jax.vmap(calibrated)(params)
    one = jax.tree.map(lambda x: x[2], mapped)
    alone = calibrated(jax.tree.map(lambda x: x[2], params))
    np.testing.assert_allclose(one.params["w"], alone.params["w"], rtol=1e-4)
    assert len(mapped.report.members) == 4
    for report in (one.report, mapped.report.members[2]):
        assert report.growth == pytest.approx(alone.report.growth, rel=1e-3)
        for row, expected in zip(report.rows, alone.report.rows, strict=True):
            assert row.update_after == pytest.approx(expected.update_after, rel=1e-3)
    assert [row.path for row in mapped.report.rows] == [
        f"{n}:{path}" for n in range(4) for path in "wv"
    ]
    assert mapped.report.not_tuned == {f"{n}:v": "excluded" for n in range(4)}
    assert str(mapped.report).count("member") == 4
    assert str(mapped.report.members[2]) in repr(mapped)
    assert mapped.report.to_dict()["members"][2] == mapped.report.members[2].to_dict()


@pytest.mark.thorough
def test_a_calibration_that_was_mapped_twice():
    def calibrated(w):
        return jinit.calibrate({"w": w}, lambda p, x: x @ p["w"], X, random_loss, samples=1)

    report = jax.vmap(jax.vmap(calibrated))(SLICES.reshape(2, 2, 32, 32)).report
    assert [row.path for row in report.rows] == ["0:0:w", "0:1:w", "1:0:w", "1:1:w"]
    assert [len(member.members) for member in report.members] == [2, 2]


@pytest.mark.thorough
def test_what_an_nnx_state_holds_beside_its_parameters_is_carried_along():
    """Statistics are no layer's bias: what is computed from them is data, as in linen."""
    model = nnx.Sequential(
        nnx.Linear(8, 16, rngs=nnx.Rngs(0)),
        nnx.BatchNorm(16, use_running_average=True, rngs=nnx.Rngs(1)),
        nnx.Linear(16, 4, rngs=nnx.Rngs(2)),
    )
    graphdef, state = nnx.split(model)
    x = jax.random.normal(jax.random.key(3), (64, 8))

    def apply_fn(state, x):
        return nnx.merge(graphdef, state)(x)

    result = jinit.calibrate(state, apply_fn, x, random_loss)
    assert not any("mean" in row.path or "var" in row.path for row in result.report.rows)
    for before, after in zip(
        jax.tree.leaves(nnx.filter_state(state, nnx.BatchStat)),
        jax.tree.leaves(nnx.filter_state(result.params, nnx.BatchStat)),
        strict=True,
    ):
        assert jnp.array_equal(before, after)
    assert rms(apply_fn(result.params, x)) == pytest.approx(1, rel=0.01)
