"""The coordinate check against float64, against theory, and over frameworks."""

import functools
import itertools
import json
import re

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jinit

pytestmark = pytest.mark.usefixtures("allow_rank_promotion")

INPUTS = 12
X = jax.random.normal(jax.random.key(1), (32, INPUTS))
TARGETS = jax.random.normal(jax.random.key(2), (32, 3))


def squared_error(output):
    return jnp.mean(jnp.square(output - TARGETS))


def weights(width, key=None):
    """Kernels and biases of three layers, of variance 1 / fan_in and 1 / 4; drawn by NumPy."""
    draw = np.random.default_rng(width if key is None else int(jax.random.bits(key)))
    return [
        {
            "w": jnp.asarray(draw.normal(0, fan_in**-0.5, (fan_in, fan_out)), jnp.float32),
            "b": jnp.asarray(draw.normal(0, 0.5, fan_out), jnp.float32),
        }
        for fan_in, fan_out in itertools.pairwise((INPUTS, width, width, 3))
    ]


def tanh_mlp(params, x):
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


def plain(width):
    return weights(width), tanh_mlp


@functools.cache
def plain_check():
    return jinit.coord_check(plain, [4, 8], X, squared_error, steps=2)


def numbers(check):
    return {(r.width, r.step, r.path): (r.activation, r.update) for r in check.rows}


def same_numbers(check, other, rtol=1e-4):
    for one, two in zip(check.rows, other.rows, strict=True):
        assert (one.width, one.step) == (two.width, two.step)
        np.testing.assert_allclose(one.activation, two.activation, rtol=rtol)
        np.testing.assert_allclose(one.update, two.update, rtol=rtol, atol=1e-6)


class Float64:
    """The network above with its training, in NumPy."""

    def __init__(self, width, optimizer, rate):
        self.params = [{n: np.float64(v) for n, v in layer.items()} for layer in weights(width)]
        self.optimizer, self.rate, self.step = optimizer, rate, 0
        self.moments = [dict.fromkeys(layer, (0.0, 0.0)) for layer in self.params]

    def outputs(self):
        x, self.inputs, outputs = np.float64(X), [], []
        for layer in self.params:
            self.inputs.append(x)
            outputs.append(x @ layer["w"] + layer["b"])
            x = np.tanh(outputs[-1])
        return outputs

    def train(self, outputs):
        slope = 2 * (outputs[-1] - np.float64(TARGETS)) / TARGETS.size
        self.step += 1
        for number in reversed(range(len(self.params))):
            layer, x = self.params[number], self.inputs[number]
            gradients = {"w": x.T @ slope, "b": slope.sum(0)}
            slope = (slope @ layer["w"].T) * (1 - x**2)  # x is the tanh of what lies below
            for name, gradient in gradients.items():
                layer[name] = layer[name] - self.rate * self.direction(number, name, gradient)

    def direction(self, number, name, gradient):
        if self.optimizer == "sgd":
            return gradient
        first, second = self.moments[number][name]
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        self.moments[number][name] = first, second
        unbiased = first / (1 - 0.9**self.step), second / (1 - 0.999**self.step)
        return unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)


@pytest.mark.cases
@pytest.mark.parametrize(
    ("name", "rate", "tx"), [("sgd", 0.5, optax.sgd(0.5)), ("adam", 0.02, optax.adam(0.02))]
)
def test_every_number_against_float64(name, rate, tx):
    check = jinit.coord_check(plain, [8, 24], X, squared_error, optimizer=tx, steps=3)
    found = numbers(check)
    assert len(found) == 2 * 4 * 3
    for width in (8, 24):
        net = Float64(width, name, rate)
        first = net.outputs()
        for step in range(4):
            outputs = net.outputs()
            for number, (y, y0) in enumerate(zip(outputs, first, strict=True)):
                activation, update = found[width, step, f"{number}/w"]
                np.testing.assert_allclose(activation, np.sqrt(np.mean(y**2)), rtol=1e-5)
                np.testing.assert_allclose(update, np.sqrt(np.mean((y - y0) ** 2)), rtol=1e-4)
            net.train(outputs)


@pytest.mark.thorough
def test_the_exponents_are_slopes_of_the_rows():
    check = jinit.coord_check(plain, [8, 16, 64], X, squared_error, steps=2)
    assert check.widths == (8, 16, 64)
    assert check.steps == 2
    for fit in check.fits:
        for quantity in ("activation", "update"):
            values = [
                getattr(row, quantity)
                for row in check.rows
                if (row.path, row.step) == (fit.path, 2)
            ]
            assert check.curve(fit.path, quantity, 2) == values
            slope = np.polyfit(np.log([8, 16, 64]), np.log(values), 1)[0]
            assert getattr(fit, f"{quantity}_exponent") == pytest.approx(slope, abs=1e-9)


# What the exponents are at infinite width. A layer's change is its own, whose exponent theory
# gives, and what comes up from below, whose exponent is smaller and which still counts at these
# widths: where both meet the test gives bounds. Else the tolerance is 0.15, 0.05 for calibrated
# hidden layers, whose updates are means over more than 10,000 numbers. Rates are so small that
# the loss hardly moves, and epsilon is far below the gradients.
WIDTHS = [64, 512]


def random_inputs(key):
    return jax.random.normal(key, (64, INPUTS))


def random_targets(output, key):
    return jnp.mean(jnp.square(output - jax.random.normal(key, output.shape)))


class MLP(nn.Module):
    width: int
    outputs: int = 1

    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x = nn.relu(nn.Dense(self.width, use_bias=False)(x))
        return nn.Dense(self.outputs, use_bias=False)(x)


def exponents(make_model, tx=None):
    check = jinit.coord_check(
        make_model, WIDTHS, random_inputs, random_targets, optimizer=tx, seeds=3
    )
    return check, np.array([(f.activation_exponent, f.update_exponent) for f in check.fits])


def standard(width, key):
    module = MLP(width)
    return module.init(key, jnp.ones((1, INPUTS))), module.apply


def adam(rate):
    return optax.adam(rate, eps=1e-15)


@pytest.mark.thorough
def test_standard_parametrization_under_adam():
    """Width aligned steps: 1 at a fan_in of width; through weights of width ** -0.5 up to 3/2."""
    check, found = exponents(standard, adam(1e-6))
    np.testing.assert_allclose(found[:3, 1], [0, 1, 1], atol=0.15)
    assert 1 < found[3, 1] < 1.5
    np.testing.assert_allclose(found[:3, 0], 0, atol=0.05)
    assert [fit.update for fit in check.fits] == ["steady", "grows", "grows", "grows"]
    assert not check.steady


def calibrated(width, key, output_exponent=0.0):
    """With multipliers; the output layer shrunk by a power of width."""
    params, apply_fn = standard(width, key)
    result = jinit.calibrate(params, apply_fn, random_inputs, random_targets)
    head = result.params["params"]["Dense_3"]
    head["kernel"] = head["kernel"] * width**output_exponent
    tx = optax.chain(
        optax.scale_by_adam(eps=1e-15), result.transform(), optax.scale_by_learning_rate(1e-4)
    )
    return result.params, apply_fn, tx


@pytest.mark.thorough
def test_calibrated_hidden_layers_are_steady_but_an_output_of_one_is_not():
    """An output of RMS 1 has weights of width ** -0.5, which width aligned changes meet: 1/2."""
    _, found = exponents(calibrated)
    np.testing.assert_allclose(found[:3], 0, atol=0.05)
    np.testing.assert_allclose(found[3, 1], 0.5, atol=0.15)


@pytest.mark.thorough
def test_with_a_small_output_every_update_is_steady():
    """muP: an output of RMS width ** -0.5 at the start, whose update has exponent 0."""
    check, found = exponents(lambda width, key: calibrated(width, key, -0.5))
    np.testing.assert_allclose(found[:, 1], 0, atol=0.1)
    assert [fit.update for fit in check.fits] == ["steady"] * 4


@pytest.mark.thorough
def test_standard_parametrization_under_sgd():
    """The first layer's gradient is of width ** -0.5; the others sum width such terms, or more."""
    check, found = exponents(standard, optax.sgd(1e-5))
    np.testing.assert_allclose(found[0, 1], -0.5, atol=0.15)
    assert (found[1:3, 1] > 0.1).all()
    assert (found[1:3, 1] < 0.5).all()
    assert 0.5 < found[3, 1] < 1
    assert [check.fits[0].update, check.fits[3].update] == ["shrinks", "grows"]


# -- frameworks -----------------------------------------------------------------------------------


class Linen(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(self.width)(x))
        x = nn.tanh(nn.Dense(self.width)(x))
        return nn.Dense(3)(x)


def linen(width):
    layers = {
        f"Dense_{i}": {"kernel": layer["w"], "bias": layer["b"]}
        for i, layer in enumerate(weights(width))
    }
    return {"params": layers}, Linen(width).apply


class Nnx(nnx.Module):
    def __init__(self, width, rngs):
        sizes = (INPUTS, width, width, 3)
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)])

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = jnp.tanh(layer(x))
        return self.layers[-1](x)


def nnx_module(width):
    model = Nnx(width, nnx.Rngs(0))
    for layer, drawn in zip(model.layers, weights(width), strict=True):
        layer.kernel[...], layer.bias[...] = drawn["w"], drawn["b"]
    return model


def nnx_model(width):
    graph, state = nnx.split(nnx_module(width))
    return state, lambda state, x: nnx.merge(graph, state)(x)


def equinox_module(width):
    model = eqx.nn.MLP(INPUTS, 3, width, 2, activation=jnp.tanh, key=jax.random.key(0))
    drawn = weights(width)
    model = eqx.tree_at(
        lambda m: [leaf for layer in m.layers for leaf in (layer.weight, layer.bias)],
        model,
        [leaf for layer in drawn for leaf in (layer["w"].T, layer["b"])],
    )
    return model, lambda m, x: jax.vmap(m)(x)


def equinox(width):
    model, _ = equinox_module(width)
    params, static = eqx.partition(model, eqx.is_array)
    return params, lambda params, x: jax.vmap(eqx.combine(params, static))(x)


def transformed(width):
    def forward(x):
        for size in (width, width):
            x = jnp.tanh(hk.Linear(size)(x))
        return hk.Linear(3)(x)

    names = ("linear", "linear_1", "linear_2")
    return dict(zip(names, weights(width), strict=True)), hk.transform(forward)


def haiku(width):
    params, model = transformed(width)
    return params, hk.without_apply_rng(model).apply


MODULES = {
    "NNX": nnx_module,
    "NNX and its optimizer": lambda width: (nnx_module(width), optax.adam(1e-4)),
    "NNX, a function and an optimizer": lambda width: (
        nnx_module(width), lambda m, x: m(x), optax.adam(1e-4),
    ),
    "Equinox": equinox_module,
    "linen": lambda width: (linen(width)[0], Linen(width)),
    "bound linen": lambda width: Linen(width).bind(linen(width)[0]),
    "Haiku": transformed,
    "Haiku with state": lambda width: (
        (transformed(width)[0], {}), hk.with_empty_state(transformed(width)[1]),
    ),
}  # fmt: skip


@pytest.mark.cases
@pytest.mark.parametrize("make_model", MODULES.values(), ids=MODULES)
def test_modules_are_taken_as_they_are(make_model):
    check = jinit.coord_check(make_model, [4, 8], X, squared_error, steps=2)
    same_numbers(check, plain_check())


@pytest.mark.thorough
def test_a_module_with_statistics_and_dropout():
    def make_model(width, key):
        rngs = nnx.Rngs(key)
        return nnx.Sequential(
            nnx.Linear(INPUTS, width, rngs=rngs),
            nnx.BatchNorm(width, rngs=rngs),
            nnx.relu,
            nnx.Dropout(0.5, rngs=rngs),
            nnx.Linear(width, 3, rngs=rngs),
        )

    check = jinit.coord_check(make_model, [4, 8], X, squared_error, steps=2, seeds=2)
    assert [fit.path for fit in check.fits] == [
        "layers/0/kernel", "layers/1/scale", "layers/1/bias", "layers/4/kernel",
    ]  # fmt: skip


@pytest.mark.cases
@pytest.mark.parametrize("make_model", [linen, nnx_model, equinox, haiku])
def test_frameworks_agree_with_a_plain_function(make_model):
    check = jinit.coord_check(make_model, [4, 8], X, squared_error, steps=2)
    same_numbers(check, plain_check())


def test_layers_are_named_by_their_leaves():
    check = jinit.coord_check(linen, [4, 8], X, squared_error, steps=1)
    assert [fit.path for fit in check.fits] == [f"params/Dense_{i}/kernel" for i in range(3)]


@pytest.mark.thorough
def test_every_iteration_of_a_scan_is_a_layer():
    def scanned(width):
        hidden = [weights(width, jax.random.key(i))[1] for i in range(3)]
        params = {
            "first": weights(width)[0],
            "hidden": jax.tree.map(lambda *leaves: jnp.stack(leaves), *hidden),
        }

        def model(p, x):
            x = jnp.tanh(x @ p["first"]["w"] + p["first"]["b"])
            return jax.lax.scan(lambda x, q: (jnp.tanh(x @ q["w"] + q["b"]), None), x, p["hidden"])[
                0
            ]

        return params, model

    def unrolled(width):
        params, _ = scanned(width)
        hidden = [jax.tree.map(lambda leaf, i=i: leaf[i], params["hidden"]) for i in range(3)]

        def model(p, x):
            for q in p:
                x = jnp.tanh(x @ q["w"] + q["b"])
            return x

        return [params["first"], *hidden], model

    def loss(y):
        return jnp.mean(jnp.square(y - 1))

    check = jinit.coord_check(scanned, [8, 16], X, loss, steps=2)
    assert [fit.path for fit in check.fits] == ["first/w", *(f"hidden/w[{i}]" for i in range(3))]
    same_numbers(check, jinit.coord_check(unrolled, [8, 16], X, loss, steps=2))


@pytest.mark.thorough
def test_uses_of_one_leaf_are_told_apart():
    def tied(width):
        params = [layer["w"] for layer in weights(width)[:2]]
        return params, lambda p, x: jnp.tanh(x @ p[0]) @ p[1] @ p[1] @ p[1]

    check = jinit.coord_check(tied, [4, 8], X, lambda y: jnp.mean(y**2), steps=1)
    assert [fit.path for fit in check.fits] == ["0", "1", "1 (use 2)", "1 (use 3)"]


def test_a_layer_that_is_not_entered_is_listed():
    def looped(width):
        params = {"first": X[:INPUTS], "looped": jnp.eye(INPUTS)}

        def model(p, x):
            _, y = jax.lax.while_loop(
                lambda carry: carry[0] < 2,
                lambda carry: (carry[0] + 1, carry[1] @ jax.lax.stop_gradient(p["looped"])),
                (0, jax.lax.stop_gradient(x)),
            )
            return y + x @ p["first"]

        return params, model

    check = jinit.coord_check(looped, [4, 8], X, lambda y: jnp.mean(y**2), steps=1)
    assert check.opaque == ("looped",)
    assert [fit.path for fit in check.fits] == ["first"]
    assert str(check).endswith("not measured: looped")


@pytest.mark.thorough
def test_only_the_params_of_flax_variables_are_trained():
    def with_statistics(width):
        params, apply_fn = linen(width)
        scale = {"scale": jnp.full((), 2.0)}
        return {**params, "batch_stats": scale}, lambda v, x: apply_fn(
            {"params": v["params"]}, x * v["batch_stats"]["scale"]
        )

    def doubled(width):
        params, apply_fn = linen(width)
        return params, lambda v, x: apply_fn(v, 2.0 * x)

    check = jinit.coord_check(with_statistics, [4, 8], X, squared_error, steps=2)
    same_numbers(check, jinit.coord_check(doubled, [4, 8], X, squared_error, steps=2))


@pytest.mark.thorough
def test_leaves_that_are_no_floats_stay():
    def counted(width):
        params = {"layers": weights(width), "step": jnp.int32(3), "key": jax.random.key(0)}
        return params, lambda p, x: tanh_mlp(p["layers"], x) * (p["step"] - 2)

    check = jinit.coord_check(counted, [4, 8], X, squared_error, steps=2)
    same_numbers(check, plain_check())


@pytest.mark.thorough
def test_an_output_of_booleans_is_measured():
    def gated(width):
        params = {"gate": jnp.float32(0.0), "layers": weights(width)}
        return params, lambda p, x: tanh_mlp(p["layers"], jnp.where(x > p["gate"], x, 0.0))

    check = jinit.coord_check(gated, [4, 8], X, squared_error, steps=1)
    assert check.fits[0].path == "gate"
    share = float(jnp.mean(X > 0))
    assert check.curve("gate", "activation", 1) == pytest.approx([share**0.5] * 2, rel=1e-5)


@pytest.mark.thorough
def test_bfloat16_parameters_are_measured_in_float32():
    def half(width):
        cast = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), weights(width))
        return cast, lambda p, x: tanh_mlp(p, x.astype(jnp.bfloat16))

    tx = optax.adam(0.05)
    check = jinit.coord_check(half, [8, 16], X, squared_error, optimizer=tx, steps=2)
    reference = jinit.coord_check(plain, [8, 16], X, squared_error, optimizer=tx, steps=2)
    for row, other in zip(check.rows, reference.rows, strict=True):
        # a bfloat16 has 8 significant bits, and a sum of several rounds several times
        np.testing.assert_allclose(row.activation, other.activation, rtol=0.02)
        np.testing.assert_allclose(row.update, other.update, rtol=0.1, atol=1e-3)


@pytest.mark.thorough
def test_a_batch_on_eight_devices():
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(X, jax.NamedSharding(mesh, jax.P("batch")))

    def replicated(width):
        return jax.device_put(weights(width), jax.NamedSharding(mesh, jax.P())), tanh_mlp

    check = jinit.coord_check(replicated, [4, 8], sharded, squared_error, steps=2)
    same_numbers(check, plain_check())


# -- seeds, optimizers, compilation ---------------------------------------------------------------


def drawn(width, key):
    return weights(width, key), tanh_mlp


@pytest.mark.cases
def test_squares_are_averaged_over_seeds(make_key):
    kept = []

    def keeping(width, key):
        kept.append(weights(width, key))
        return kept[-1], tanh_mlp

    check = jinit.coord_check(keeping, [4, 8], X, squared_error, steps=1, seeds=3, key=make_key(5))
    outputs = [tanh_mlp(params, X) for params in kept[:3]]  # of width 4
    expected = float(jnp.sqrt(jnp.mean(jnp.square(jnp.stack(outputs)))))
    assert check.curve("2/w", "activation", 0)[0] == pytest.approx(expected, rel=1e-5)
    assert len({float(params[0]["w"][0, 0]) for params in kept}) == 3  # the same at every width


@pytest.mark.thorough
def test_inputs_and_labels_are_the_same_at_every_width_and_step():
    seen, keys = [], []

    def inputs(key, batch_size):
        seen.append(jax.random.normal(key, (batch_size, INPUTS)))
        return seen[-1]

    def loss(output, key):
        jax.debug.callback(lambda key: keys.append(np.asarray(key)), jax.random.key_data(key))
        return jnp.mean(jnp.square(output - jax.random.normal(key, output.shape)))

    jinit.coord_check(drawn, [4, 8], inputs, loss, steps=2, batch_size=16)
    jax.effects_barrier()
    assert [x.shape for x in seen] == [(16, INPUTS)] * 2
    np.testing.assert_array_equal(*seen)
    assert len(keys) >= 6
    assert len(np.unique(np.stack(keys), axis=0)) == 1


@pytest.mark.thorough
def test_an_optimizer_of_every_width():
    def rate(width):
        return optax.sgd(1 / width)

    def own(width):
        return (*plain(width), rate(width))

    check = jinit.coord_check(plain, [4, 8], X, squared_error, optimizer=rate, steps=2)
    same_numbers(check, jinit.coord_check(own, [4, 8], X, squared_error, steps=2), rtol=1e-7)
    other = jinit.coord_check(plain, [4, 8], X, squared_error, optimizer=optax.sgd(1 / 4), steps=2)
    assert numbers(check)[4, 2, "1/w"] == numbers(other)[4, 2, "1/w"]
    assert numbers(check)[8, 2, "1/w"] != numbers(other)[8, 2, "1/w"]


def nnx_drawn(width, key):
    graph, state = nnx.split(Nnx(width, nnx.Rngs(key)))
    return state, lambda state, x: nnx.merge(graph, state)(x), optax.adam(1e-3)


@pytest.mark.thorough
@pytest.mark.parametrize("make_model", [drawn, nnx_drawn, calibrated])
def test_one_program_a_width_whatever_the_seeds(make_model, count_compilations):
    with count_compilations() as compiled:
        jinit.coord_check(make_model, [4, 8], random_inputs, random_targets, seeds=3, steps=2)
    assert [name for name in compiled if "_training" in name] == ["jit(_training)"] * 2


@pytest.mark.thorough
def test_what_a_function_closes_over_is_that_seeds():
    def closed(width, key):
        scale = jax.random.normal(jax.random.fold_in(key, 1), (3,))
        return weights(width, key), lambda p, x: tanh_mlp(p, x) * scale

    def passed(width, key):
        params, _ = closed(width, key)
        scale = jax.random.normal(jax.random.fold_in(key, 1), (3,))
        return {
            "params": params,
            "scale": {"s": scale},
        }, lambda v, x: tanh_mlp(v["params"], x) * v["scale"]["s"]

    check = jinit.coord_check(closed, [4, 8], X, squared_error, steps=2, seeds=2)
    same_numbers(check, jinit.coord_check(passed, [4, 8], X, squared_error, steps=2, seeds=2))


@pytest.mark.thorough
def test_seeds_whose_functions_differ_are_compiled_apart(count_compilations):
    seen = []

    def model(width, key):
        seen.append(weights(width, key))
        factor = float(len(seen))
        return seen[-1], lambda p, x: tanh_mlp(p, factor * x)

    with count_compilations() as compiled:
        check = jinit.coord_check(model, [4, 8], X, squared_error, steps=1, seeds=2)
    assert len([name for name in compiled if "_training" in name]) == 4
    outputs = [tanh_mlp(seen[0], X), tanh_mlp(seen[1], 2 * X)]
    expected = float(jnp.sqrt(jnp.mean(jnp.square(jnp.stack(outputs)))))
    assert check.curve("2/w", "activation", 0)[0] == pytest.approx(expected, rel=1e-5)


# -- the result -----------------------------------------------------------------------------------


def test_the_table():
    params = {"w": jnp.ones((INPUTS, 1)), "v": jnp.ones((1, 1))}

    def model(p, x):
        return x @ p["w"] @ p["v"]

    def made(width):
        return {**params, "v": params["v"] * width}, model, optax.sgd(0.0)

    check = jinit.coord_check(made, [2, 4, 8], jnp.ones((5, INPUTS)), jnp.mean, steps=1)
    assert str(check) == repr(check) == TABLE


TABLE = """\
RMS at step 1 and its exponent of width over 3 widths; steady: within 0.25 of 0
  layer   activation at 2   at 8   exponent   update at 2   at 8   exponent   verdict
 ──────────────────────────────────────────────────────────────────────────────────────────────────────────────
  w                    12     12      +0.00             0      0          -   update is zero
  v                    24     96      +1.00             0      0          -   activation grows, update is zero"""  # noqa: E501


def test_plain_data():
    check = jinit.coord_check(plain, [4, 8], X, squared_error, steps=1)
    data = json.loads(check.to_json())
    assert data == json.loads(json.dumps(check.to_dict()))
    assert data["rows"][0] == {
        "width": 4, "step": 0, "path": "0/w", "activation": check.rows[0].activation, "update": 0.0,
    }  # fmt: skip
    assert data["fits"][1]["update_exponent"] == check.fits[1].update_exponent
    assert data["tolerance"] == 0.25


@pytest.mark.thorough
def test_the_tolerance_decides_the_verdict():
    strict = jinit.coord_check(plain, [4, 8], X, squared_error, tolerance=0)
    lax = jinit.coord_check(plain, [4, 8], X, squared_error, tolerance=5)
    assert {fit.update for fit in strict.fits} <= {"grows", "shrinks"}
    assert lax.steady
    assert [fit.verdict for fit in lax.fits] == ["steady"] * 3


@pytest.mark.cases
@pytest.mark.parametrize("depth", [1, 14])
def test_the_plot_draws_the_rows(depth):
    def deep(width):
        params = {f"layer_{i:02}": jnp.eye(INPUTS) * (1 + i / 9) for i in range(depth)}
        return params, lambda p, x: _product(p, x)

    check = jinit.coord_check(deep, [4, 8], X, lambda y: jnp.mean(y**2), steps=9)
    figure = check.plot()
    figure.canvas.draw()
    titles = [axes.get_title() for axes in figure.axes[:6]]
    assert titles == [f"step {step}" for step in (0, 2, 4, 5, 7, 9)]
    for axes, step in zip(figure.axes[:6], (0, 2, 4, 5, 7, 9), strict=True):
        assert axes.get_xscale() == axes.get_yscale() == "log"
        for line, fit in zip(axes.get_lines(), check.fits, strict=True):
            assert list(line.get_xdata()) == [4, 8]
            assert list(line.get_ydata()) == check.curve(fit.path, "activation", step)
    updates = figure.axes[11].get_lines()
    assert [list(line.get_ydata()) for line in updates] == [
        check.curve(fit.path, "update", 9) for fit in check.fits
    ]
    names = [text.get_text() for text in (figure.axes[6].get_legend() or _Nothing).get_texts()]
    assert names == ([fit.path for fit in check.fits] if depth == 1 else [])


def _product(params, x):
    for name in sorted(params):
        x = x @ params[name]
    return x


class _Nothing:
    @staticmethod
    def get_texts():
        return []


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("widths", [[], [8], [8, 8], [16, 8], [0, 8], [4.0, 8.0], [True, 8]])
def test_widths_that_are_none(widths):
    with pytest.raises(ValueError, match="must be at least two positive integers, increasing") as e:
        jinit.coord_check(plain, widths, X, squared_error)
    assert f"widths={widths}" in str(e.value)


@pytest.mark.parametrize("name", ["steps", "seeds", "batch_size"])
def test_counts_that_are_none(name):
    with pytest.raises(ValueError, match=f"{name}=0 must be a positive integer"):
        jinit.coord_check(plain, [4, 8], X, squared_error, **{name: 0})


def test_a_tolerance_below_zero():
    with pytest.raises(ValueError, match=r"tolerance=-1 must be a finite number that is not"):
        jinit.coord_check(plain, [4, 8], X, squared_error, tolerance=-1)


def test_seeds_without_a_key():
    with pytest.raises(ValueError, match=r"seeds=2 models of one width would be equal, since"):
        jinit.coord_check(plain, [4, 8], X, squared_error, seeds=2)


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (lambda width: None, "make_model(4) returned NoneType; return (params, apply_fn) or"),
        (lambda width: (weights(width),), "returned a tuple of list; return (params, apply_fn)"),
        (lambda width: (tanh_mlp, weights(width)), "returned a tuple of function, list; return"),
    ],
)
def test_a_make_model_that_returns_something_else(made, text):
    with pytest.raises(TypeError) as error:
        jinit.coord_check(made, [4, 8], X, squared_error)
    assert text in str(error.value)


def test_two_optimizers():
    with pytest.raises(ValueError, match="optimizer is given, and make_model returns one as well"):
        jinit.coord_check(
            lambda width: (*plain(width), optax.sgd(1.0)), [4, 8], X, squared_error,
            optimizer=optax.sgd(1.0),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"optimizer": "adam"}, "optimizer='adam' is no optax transformation; pass one with its"),
        ({"optimizer": lambda width: width}, r"optimizer\(4\)=4 is no optax transformation"),
    ],
)
def test_an_optimizer_that_is_none(options, text):
    with pytest.raises(ValueError, match=text):
        jinit.coord_check(plain, [4, 8], X, squared_error, **options)


def test_a_third_element_that_is_no_optimizer():
    with pytest.raises(ValueError, match=r"make_model\(4\)\[2\]=0.1 is no optax transformation"):
        jinit.coord_check(lambda width: (*plain(width), 0.1), [4, 8], X, squared_error)


@pytest.mark.thorough
def test_layers_that_differ_between_widths():
    def deeper(width):
        return weights(width)[:1] + weights(width)[1:2] * (width // 4) + weights(width)[
            2:
        ], tanh_mlp

    with pytest.raises(ValueError, match="only width 4 has none, only width 8 has 3/w; let"):
        jinit.coord_check(deeper, [4, 8], X, squared_error)


def test_a_training_that_diverges():
    def model(width):
        return weights(width), lambda p, x: jnp.exp(tanh_mlp(p, x)), optax.sgd(1e38 * (width > 4))

    with pytest.raises(
        ValueError, match=r"layer 1/w is not finite after 1 steps at width 8; lower the"
    ):
        jinit.coord_check(model, [4, 8], X, squared_error)


def test_parameters_that_are_not_finite():
    def model(width):
        params = weights(width)
        params[1]["b"] = params[1]["b"].at[0].set(jnp.nan)
        return params, tanh_mlp

    with pytest.raises(ValueError, match="layer 1/w is not finite after 0 steps at width 4; check"):
        jinit.coord_check(model, [4, 8], X, squared_error)


def test_inputs_that_are_closed_over():
    with pytest.raises(ValueError, match="never combines a parameter with an input"):
        jinit.coord_check(
            lambda width: (weights(width), lambda p, x: tanh_mlp(p, X)), [4, 8], X, squared_error
        )


def test_a_tree_without_floats():
    with pytest.raises(ValueError, match="params has no floating-point leaf"):
        jinit.coord_check(lambda width: ({"n": 3}, tanh_mlp), [4, 8], X, squared_error)


def test_a_loss_that_is_no_scalar():
    with pytest.raises(ValueError, match="dummy_loss must return one real scalar"):
        jinit.coord_check(plain, [4, 8], X, lambda y: y)


class WithState(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=False)(nn.Dense(self.width)(x))


def with_state(width):
    model = WithState(width)
    return model.init(jax.random.key(0), X), model


EQUINOX = eqx.nn.MLP(4, 4, 4, 1, key=jax.random.key(0))
MISTAKEN = {
    "a model": (EQUINOX, "make_model is an Equinox module (MLP); pass a function of width that"),
    "a list": (
        [4, 8],
        "make_model is a list; pass a function of width that returns (params, apply",
    ),
    "a module and its apply": (
        lambda width: (with_state(width)[1], with_state(width)[1].apply),
        "make_model(4) returned a linen module (WithState), which holds no variables; return those "
        "that its init returned before it, as in (model.init(key, x), model)",
    ),
    "a module alone": (
        lambda width: WithState(width),
        "make_model(4) returned a linen module (WithState), which holds no variables; return those",
    ),
    "the class of a linen module": (
        WithState,
        "make_model(4) returned a linen module (WithState), which holds no variables; return those",
    ),
    "an NNX module": (
        nnx.Linear(4, 4, rngs=nnx.Rngs(0)),
        "make_model is an NNX object (Linear); pass a function of width that returns (params, ",
    ),
}


@pytest.mark.parametrize(("make_model", "text"), MISTAKEN.values(), ids=MISTAKEN)
def test_a_model_of_another_kind_is_named(make_model, text):
    with pytest.raises(TypeError, match=f"^{re.escape(text)}"):
        jinit.coord_check(make_model, [4, 8], X, squared_error)


class NeedsKey(nnx.Module):
    def __init__(self, width, rngs):
        self.layer = nnx.Linear(4, width, rngs=rngs)


def test_an_error_in_make_model_says_how_it_was_called():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'rngs'") as caught:
        jinit.coord_check(NeedsKey, [4, 8], X, squared_error)
    assert caught.value.__notes__ == [
        "raised by make_model, the class NeedsKey, which was called with (width); it returns "
        "(params, apply_fn), or a module that can be called"
    ]


def test_state_beside_the_output():
    def make_model(width):
        variables, model = with_state(width)
        return variables, functools.partial(model.apply, mutable=["batch_stats"])

    text = "if its second part is state, as with Flax's mutable=, return the output alone"
    with pytest.raises(ValueError, match=text):
        jinit.coord_check(make_model, [4, 8], X, squared_error)


def test_a_loss_that_is_not_a_function():
    with pytest.raises(TypeError, match=r"^dummy_loss is an array of float32"):
        jinit.coord_check(plain, [4, 8], squared_error, X)


def test_an_optimizer_without_its_learning_rate():
    """A width is not a learning rate."""
    text = "^optimizer=adam is not called; pass adam.*the width would be its learning rate"
    with pytest.raises(ValueError, match=text):
        jinit.coord_check(plain, [4, 8], X, squared_error, optimizer=optax.adam)


def test_a_width_alone():
    with pytest.raises(ValueError, match=r"widths=\[64\] must be at least two positive integers"):
        jinit.coord_check(plain, 64, X, squared_error)
