"""The pillars against closed forms and finite differences in float64, and the report."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jinit
from tests.empirical.models import (
    MLP,
    preactivations,
    random_loss,
    rms,
    tanh_net,
    tanh_params,
)

pytestmark = pytest.mark.usefixtures("allow_rank_promotion")


def vectors(key):
    return jax.random.normal(key, (64, 64))


def calibrate(depth=4, **options):
    return jinit.calibrate(tanh_params(depth), tanh_net, vectors, random_loss, **options)


@pytest.mark.cases
@pytest.mark.parametrize("optimizer", ["adam", "sgd", optax.lion(1.0), optax.rmsprop(1.0)])
def test_the_three_pillars_of_a_tanh_net(optimizer):
    rows = calibrate(6, optimizer=optimizer).report.rows
    assert len(rows) == 6
    for row in rows:
        assert 0.9 < row.activation_after < 1.1
        assert 0.8 < row.update_after < 1.25
        assert 0.1 < row.gradient_after < 10
        assert row.update_before != pytest.approx(1, rel=0.1)


def numpy_net(params, x):
    """Forward in float64: the inputs and the outputs of every layer."""
    inputs, outputs = [], []
    for layer in params:
        inputs.append(x)
        outputs.append(x @ layer["w"] + layer["b"])
        x = np.tanh(outputs[-1])
    return inputs, outputs


def numpy_gradients(params, inputs, outputs, slope):
    """Backward in float64: the gradients of the parameters and of every layer's input."""
    gradients, at_inputs = [], []
    for layer, x, y in zip(params[::-1], inputs[::-1], outputs[::-1], strict=True):
        if y is not outputs[-1]:
            slope = slope * (1 - np.tanh(y) ** 2)
        gradients.append({"w": x.T @ slope, "b": slope.sum(0)})
        slope = slope @ layer["w"].T
        at_inputs.append(slope)
    return gradients[::-1], at_inputs[::-1]


@pytest.mark.cases
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_every_number_against_float64_with_fixed_input(optimizer):
    params = tanh_params(3)
    x = jax.random.normal(jax.random.key(5), (32, 64))
    slope = np.float64(jax.random.normal(jax.random.key(6), (32, 64)))

    def loss(y):
        return jnp.sum(y * jnp.asarray(slope, jnp.float32))

    result = jinit.calibrate(params, tanh_net, x, loss, optimizer=optimizer)
    direction = np.sign if optimizer == "adam" else lambda g: g

    def reference(tree, rates):
        tree = jax.tree.map(np.float64, tree)
        inputs, outputs = numpy_net(tree, np.float64(x))
        gradients, at_inputs = numpy_gradients(tree, inputs, outputs, slope)
        steps = jax.tree.map(lambda g, m: direction(g) * m, gradients, rates)
        updates = [xi @ u["w"] + u["b"] for xi, u in zip(inputs, steps, strict=True)]
        return zip(outputs, at_inputs, updates, strict=True)

    ones = jax.tree.map(lambda _: 1.0, params)
    rates = jax.tree.map(np.float64, result.multipliers)
    before, after = reference(params, ones), reference(result.params, rates)
    for row, old, new in zip(result.report.rows, before, after, strict=True):
        measured = (
            (row.activation_before, row.gradient_before, row.update_before),
            (row.activation_after, row.gradient_after, row.update_after),
        )
        for numbers, arrays in zip(measured, (old, new), strict=True):
            expected = [float(np.sqrt(np.mean(a**2))) for a in arrays]
            np.testing.assert_allclose(numbers, expected, rtol=1e-4)
        assert row.activation_after == pytest.approx(1, rel=1e-5)
        assert row.update_after == pytest.approx(1, rel=1e-4)


def test_weight_and_bias_share_their_layers_multiplier():
    for layer in calibrate(2).multipliers:
        assert float(layer["w"]) == float(layer["b"]) > 0


@pytest.mark.thorough
def test_the_widths_rule_of_adam_emerges():
    """mu-P: hidden multipliers fall as 1 / width; at depth 3, widths 32 to 256."""
    rates = {}
    for width in (32, 128):
        module = MLP(3, width, activation=jnp.tanh)
        variables = module.init(jax.random.key(0), jnp.ones((1, 64)))
        result = jinit.calibrate(variables, module.apply, vectors, random_loss)
        rates[width] = result.multipliers["params"]
    hidden = rates[32]["Dense_1"]["kernel"] / rates[128]["Dense_1"]["kernel"]
    first = rates[32]["Dense_0"]["kernel"] / rates[128]["Dense_0"]["kernel"]
    assert 2.5 < float(hidden) < 5.5
    assert 0.7 < float(first) < 1.4


@pytest.mark.thorough
def test_transform_multiplies_updates_and_lives_in_the_state():
    result = calibrate()
    tx = optax.chain(optax.scale_by_adam(), result.transform(), optax.scale(-0.5))
    state = tx.init(result.params)
    gradients = jax.tree.map(jnp.ones_like, result.params)
    updates, _ = jax.jit(tx.update)(gradients, state)
    plain, _ = optax.scale_by_adam().update(gradients, optax.scale_by_adam().init(result.params))
    jax.tree.map(
        lambda u, p, m: np.testing.assert_allclose(u, -0.5 * m * p, rtol=1e-6),
        updates,
        plain,
        result.multipliers,
    )
    kept = optax.tree.get(state, "multipliers")
    jax.tree.map(np.testing.assert_array_equal, kept, result.multipliers)


@pytest.mark.thorough
def test_transform_takes_the_variables_or_their_params():
    module = MLP(2)
    variables = module.init(jax.random.key(0), jnp.ones((1, 64)))
    result = jinit.calibrate(variables, module.apply, vectors, random_loss)
    for tree in (variables, variables["params"]):
        state = result.transform().init(tree)
        assert jax.tree.structure(state.multipliers) == jax.tree.structure(tree)
    with pytest.raises(ValueError, match="another structure than those that were calibrated"):
        result.transform().init({"other": jnp.ones(3)})


@pytest.mark.thorough
def test_scanned_layers_have_their_own_multipliers():
    keys = jax.random.split(jax.random.key(0), 2)
    params = {"w": jax.random.normal(keys[0], (5, 16, 16)), "b": jnp.zeros((5, 16))}

    def model(p, x):
        return jax.lax.scan(lambda x, layer: (jnp.tanh(x @ layer["w"] + layer["b"]), None), x, p)[0]

    x = jax.random.normal(keys[1], (64, 16))
    result = jinit.calibrate(params, model, x, random_loss)
    assert result.multipliers["w"].shape == result.scales["w"].shape == (5,)
    assert [row.path for row in result.report.rows] == [f"w[{i}]" for i in range(5)]
    for row in result.report.rows:
        assert row.activation_after == pytest.approx(1, rel=1e-2)
        assert 0.8 < row.update_after < 1.25
    updates, _ = result.transform().update(params, result.transform().init(params))
    np.testing.assert_allclose(
        updates["w"], params["w"] * result.multipliers["w"][:, None, None], rtol=1e-6
    )


# -- what the report says -------------------------------------------------------------------


class Odd(nn.Module):
    """Layers that are not rescaled, each for another reason."""

    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm()(nn.Dense(16)(x))
        gate = self.param("gate", nn.initializers.zeros, ())
        x = x + gate * nn.Dense(16)(x)
        self.param("forgotten", nn.initializers.ones, (3,))
        return nn.Dense(4, kernel_init=nn.initializers.zeros)(x)


@pytest.mark.thorough
def test_what_is_not_tuned_unused_or_null_is_listed_and_finite():
    x = jax.random.normal(jax.random.key(0), (32, 8))
    variables = Odd().init(jax.random.key(1), x)
    result = jinit.calibrate(variables, Odd().apply, x, random_loss)
    report = result.report
    assert report.unused == ("params/forgotten",)
    assert report.not_tuned["params/gate"] == "a gain"
    assert report.not_tuned["params/LayerNorm_0/scale"] == "a gain"
    assert set(report.null) >= {"params/Dense_2/kernel"}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.multipliers))
    assert {"params/gate", "params/Dense_2/kernel"} < set(report.zero)
    head = result.params["params"]["Dense_2"]["kernel"]
    np.testing.assert_array_equal(head, jnp.zeros_like(head))
    assert "unused parameters: params/forgotten" in str(report)


@pytest.mark.thorough
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("mode", ["fold", "explicit"])
def test_behind_a_head_of_zeros_it_is_as_behind_a_random_one(mode, optimizer):
    """Nothing flows back through zeros; the gradient passes them as if they were random.

    Under Adam a multiplier depends on the head through the signs of gradients only: 10%, and
    under SGD the heads' own spread (64 x 10 entries of RMS 1, over 8 keys) stays within 25%.
    """
    module = MLP(3)
    x = vectors(jax.random.key(0))
    variables = module.init(jax.random.key(1), x)
    shut = jax.tree.map(lambda leaf: leaf, variables)
    shut["params"]["Dense_2"]["kernel"] *= 0
    found = [
        jinit.calibrate(v, module.apply, vectors, random_loss, mode=mode, optimizer=optimizer)
        for v in (variables, shut)
    ]
    assert "params/Dense_2/kernel" in found[1].report.null
    for one, other in zip(found[0].report.rows[:2], found[1].report.rows[:2], strict=True):
        assert one.update_after == pytest.approx(other.update_after, rel=0.1)
        assert one.gradient_before == pytest.approx(other.gradient_before, rel=3)
    for name in ("Dense_0", "Dense_1"):
        pair = [
            r.multipliers["params"][name]["kernel"]
            if mode == "fold"
            else r.scales[name]["kernel"]["a"] ** 2 * r.scales[name]["kernel"]["gy"]
            for r in found
        ]
        assert float(pair[0]) == pytest.approx(
            float(pair[1]), rel=0.1 if optimizer == "adam" else 0.25
        )
    np.testing.assert_array_equal(found[1].params["params"]["Dense_2"]["kernel"], 0)


def test_a_gradient_that_is_only_rounding_gets_no_multiplier():
    """A shift of all logits changes no softmax: its gradient is 0 but for rounding."""

    def model(p, x):
        return jax.nn.softmax(jnp.tanh(x @ p["w"]) + p["shift"])

    params = {"w": jnp.eye(16), "shift": jnp.zeros(())}
    x = jax.random.normal(jax.random.key(0), (64, 16))
    result = jinit.calibrate(params, model, x, random_loss, optimizer="sgd")
    assert float(result.multipliers["shift"]) == 1
    assert result.report.null == ("shift",)
    assert result.report.rows[0].update_after == pytest.approx(1, rel=0.3)


def test_a_loop_that_is_not_entered_is_listed():
    def model(p, x):
        def body(c):
            return c[0] + 1, jnp.tanh(c[1] @ p["inner"])

        return jax.lax.while_loop(lambda c: c[0] < 2, body, (0, x @ p["outer"]))[1]

    params = {"inner": jnp.eye(8), "outer": 5 * jnp.eye(8)}
    x = jax.random.normal(jax.random.key(0), (32, 8))
    tuned = jinit.empirical_init(params, model, x, jnp.sum)
    np.testing.assert_array_equal(tuned["inner"], params["inner"])
    assert rms(x @ tuned["outer"]) == pytest.approx(1, rel=1e-5)


def test_a_custom_derivative_keeps_its_rule_and_is_listed():
    x = jax.random.normal(jax.random.key(0), (32, 8))
    params = {"w": 3 * jnp.eye(8)}
    result = jinit.calibrate(params, lambda p, x: product(p["w"], x), x, jnp.sum)
    np.testing.assert_array_equal(result.params["w"], params["w"])
    assert result.report.rows == ()
    assert result.report.not_tuned == {"w": "inside an operation that is not entered"}
    assert "not tuned: w (inside an operation that is not entered)" in str(result.report)


@jax.custom_vjp
def product(w, x):
    return x @ w


product.defvjp(lambda w, x: (x @ w, (w, x)), lambda res, ct: (res[1].T @ ct, ct @ res[0].T))


def test_the_report_is_a_table_and_plain_data():
    result = calibrate(2)
    text = str(result.report)
    assert [word in text for word in ("0/w", "1/w", "activation", "gradient", "update")] == [
        True
    ] * 5
    data = json.loads(result.report.to_json())
    assert data["rows"][0]["path"] == "0/w"
    assert data["rows"][0]["activation_after"] == pytest.approx(1, abs=0.1)
    assert repr(result).startswith("Calibration of 4 leaves")


def test_the_plot_draws_what_the_report_says():
    report = calibrate(2).report
    figure = report.plot()
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["activation RMS", "gradient RMS at the input", "update RMS of a unit step"]
    before, after = figure.axes[0].get_lines()[:2]
    np.testing.assert_allclose(before.get_ydata(), [row.activation_before for row in report.rows])
    np.testing.assert_allclose(after.get_ydata(), [row.activation_after for row in report.rows])


# -- transformed code -----------------------------------------------------------------------


@pytest.mark.thorough
def test_a_calibration_is_a_pytree_and_passes_through_jit():
    def run(params):
        return jinit.calibrate(params, tanh_net, vectors, random_loss)

    params = tanh_params(2)
    inside, outside = jax.jit(run)(params), run(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), inside, outside)
    assert len(inside.report.rows) == 2


def test_the_report_of_a_traced_calibration_is_refused():
    def run(params):
        return jinit.calibrate(params, tanh_net, vectors, random_loss).report

    with pytest.raises(TypeError, match="return the Calibration from the jitted function"):
        jax.jit(run)(tanh_params(2))


@pytest.mark.thorough
def test_an_unhashable_apply_function_is_accepted():
    class Model(nn.Module):
        sizes: list

        @nn.compact
        def __call__(self, x):
            for size in self.sizes:
                x = nn.Dense(size)(x)
            return x

    model = Model([16, 4])
    variables = model.init(jax.random.key(0), jnp.ones((1, 64)))
    tuned = jinit.empirical_init(variables, model.apply, vectors, random_loss)
    x = vectors(jax.random.key(9))
    assert all(rms(y) == pytest.approx(1, rel=0.1) for y in preactivations(model, tuned, x))


# -- bad input ------------------------------------------------------------------------------

X = jnp.ones((2, 4))
GOOD = {"w": jnp.eye(4)}


def linear(p, x):
    return x @ p["w"]


@pytest.mark.parametrize("call", [jinit.empirical_init, jinit.calibrate])
@pytest.mark.parametrize(
    ("params", "apply_fn", "dummy_loss", "message"),
    [
        ({"n": jnp.arange(3)}, linear, jnp.sum,
         r"params has no floating-point leaf to rescale, only n: int32; pass the variables that "),
        ({}, linear, jnp.sum, "only an empty tree; pass the variables"),
        ({"a": {"w": GOOD["w"]}, "b": [jnp.array([1.0, jnp.nan])]},
         lambda p, x: x @ p["a"]["w"] * p["b"][0][0], jnp.sum,
         r"params holds values that are not finite at b/0; draw these parameters again"),
        (GOOD, linear, lambda y: y,
         r"dummy_loss must return one real scalar, but <lambda> returned float32\[2, 4\]; reduce"),
        (GOOD, linear, lambda y: (y.sum(), y.sum()), "dummy_loss must return one real scalar"),
        (GOOD, linear, lambda y: jnp.int32(1), r"returned int32\[\]"),
        (GOOD, lambda p, x: 2 * x, jnp.sum,
         "the output of <lambda> depends on no parameter; apply_fn must compute it from"),
        (GOOD, lambda p, x: X @ p["w"], jnp.sum,
         "<lambda> never combines a parameter with an input; pass the inputs as arguments"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(call, params, apply_fn, dummy_loss, message):
    with pytest.raises(ValueError, match=message):
        call(params, apply_fn, X, dummy_loss)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adamw"}, "optimizer='adamw' is not known; pass 'adam', 'sgd' or an optax"),
        ({"samples": 0}, "samples=0 must be a positive integer"),
        ({"batch_size": 1.5}, "batch_size=1.5 must be a positive integer"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        jinit.calibrate(GOOD, linear, X, jnp.sum, **options)


def test_a_report_says_what_its_words_mean():
    params = {"w": jnp.eye(4), "gain": jnp.ones(4), "bias": jnp.ones(4), "off": jnp.eye(4)}

    def model(p, x):
        y = jnp.tanh(x @ p["w"]) * p["gain"]
        return jax.nn.relu(y + p["bias"]) + (0 * x) @ p["off"]

    x = jax.random.normal(jax.random.key(0), (32, 4))
    meanings = [
        "a gain: multiplies activations element by element, as the scale of a norm does; it keeps "
        "its size",
        "a bias on its own: goes with no weight, as the bias of a norm; it keeps its size",
        "no output: the layer's output is 0 for every input",
        "no gradient: the loss's gradient is 0, or rounding, at the layer's input or at its "
        "parameters",
        "no update: a step of its parameters leaves the layer's output as it is",
    ]
    report = str(jinit.calibrate(params, model, x, jnp.sum, samples=1).report)
    assert report.splitlines()[-5:] == meanings
    plain = jinit.calibrate({"w": jnp.eye(4)}, lambda p, x: x @ p["w"], x, jnp.sum, samples=1)
    assert not any(meaning in str(plain.report) for meaning in meanings)
