"""A layer that is used more than once is its weight with its bias at every use."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jinit
from tests.empirical.models import random_loss

pytestmark = pytest.mark.usefixtures("allow_rank_promotion")
RNG = np.random.default_rng(0)
X, Z = RNG.normal(size=(64, 32)), 2 * RNG.normal(size=(64, 32))
W, V = 3 * RNG.normal(size=(32, 32)), 0.2 * RNG.normal(size=(32, 32))
B, C = np.full(32, 20.0), RNG.normal(size=32)
CHAIN = 12


def loss(outputs, key):
    return sum(random_loss(y, key) for y in jax.tree.leaves(outputs))


def chain(w, b, x, xp, length=CHAIN, stack=list):
    outputs = []
    for _ in range(length):
        outputs.append(x @ w + b)
        x = xp.tanh(outputs[-1])
    return stack(outputs)


def siamese(p, x, z):
    return x @ p["w"] + p["b"], z @ p["w"] + p["b"]


def in_scan(p, x):
    def step(c, _):
        y = c @ p["w"] + p["b"]
        return jnp.tanh(y), y

    return jax.lax.scan(step, x, None, length=CHAIN)[1]


def dense(p, x):
    return jnp.vectorize(lambda row: row @ p["w"] + p["b"], signature="(n)->(m)")(x)


USES = {
    "siamese": (siamese, (X, Z)),
    "under jit": (jax.jit(siamese), (X, Z)),
    "rematerialized": (jax.checkpoint(siamese), (X, Z)),
    "row by row": (lambda p, x, z: (dense(p, x), dense(p, z)), (X, Z)),
    "a short chain": (lambda p, x: chain(p["w"], p["b"], x, jnp, 4), (X,)),
    "a chain that is rolled": (lambda p, x: chain(p["w"], p["b"], x, jnp), (X,)),
    "a recurrence": (in_scan, (X,)),
}


def references(name, p, inputs):
    """What the uses of a layer produce, in float64."""
    w, b = (np.asarray(p[leaf], np.float64) for leaf in ("w", "b"))
    if len(inputs) == 2:
        return [x @ w + b for x in inputs]
    return chain(w, b, inputs[0], np, 4 if "short" in name else CHAIN)


def sizes(outputs):
    return np.sqrt([np.mean(np.square(np.asarray(y, np.float64))) for y in outputs])


def typical(outputs):
    return np.exp(np.mean(np.log(sizes(outputs))))


@pytest.mark.cases
@pytest.mark.parametrize("mode", ["fold", "explicit"])
@pytest.mark.parametrize("bias", [B, C, 0 * B], ids=["large", "ordinary", "zero"])
@pytest.mark.parametrize("name", USES)
def test_every_use_counts_with_its_bias(name, bias, mode):
    model, inputs = USES[name]
    params = jax.tree.map(jnp.float32, {"w": W, "b": bias})
    given = inputs if len(inputs) > 1 else inputs[0]
    result = jinit.calibrate(params, model, given, loss, mode=mode)
    effective = result.params
    if mode == "explicit":
        effective = jax.tree.map(lambda w, s: w * s, result.params, _forward(result.scales))
    outputs = references(name, effective, inputs)
    assert typical(outputs) == pytest.approx(1, rel=0.02)
    np.testing.assert_allclose(
        [row.activation_after for row in result.report.rows], sizes(outputs), rtol=2e-3
    )
    assert result.report.not_tuned == {}
    ratio = np.asarray(effective["b"]).mean() * W[0, 0]
    assert ratio == pytest.approx(float(effective["w"][0, 0]) * bias.mean(), rel=1e-4)


def _forward(scales):
    return {name: scales[name]["a"] for name in ("w", "b")}


def test_a_linen_layer_that_is_used_twice():
    class Siamese(nn.Module):
        @nn.compact
        def __call__(self, x, z):
            layer = nn.Dense(16, bias_init=nn.initializers.normal(3.0))
            return layer(x), layer(z)

    x, z = jnp.float32(X), jnp.float32(Z)
    variables = Siamese().init(jax.random.key(0), x, z)
    tuned = jinit.empirical_init(variables, Siamese().apply, (x, z), lambda y: y[0].sum())
    p = {k: np.asarray(v, np.float64) for k, v in tuned["params"]["Dense_0"].items()}
    assert typical([v @ p["kernel"] + p["bias"] for v in (X, Z)]) == pytest.approx(1, rel=1e-3)


def calibrated(params, model, inputs):
    params = jax.tree.map(jnp.float32, params)
    result = jinit.calibrate(params, model, inputs, loss)
    return jax.tree.map(np.float64, result.params), result.report


@pytest.mark.cases
@pytest.mark.parametrize("steps", [2, 5])
def test_an_unrolled_recurrence_from_zeros(steps):
    """The first use of the recurrent layer produces its bias alone."""

    def model(p, xs, xp=jnp):
        h, outputs = xp.zeros_like(xs[0]), []
        for x in xs:
            i, r = x @ p["i"] + p["c"], h @ p["r"] + p["b"]
            h = xp.tanh(i + r)
            outputs += [i, r]
        return outputs

    xs = RNG.normal(size=(steps, 64, 32))
    p, report = calibrated({"i": W, "r": V, "b": 5 * C, "c": C}, model, xs)
    outputs = model(p, xs, np)
    assert typical(outputs[::2]) == pytest.approx(1, rel=0.02)
    assert typical(outputs[1::2]) == pytest.approx(1, rel=0.02)
    assert report.not_tuned == {}
    np.testing.assert_allclose(p["b"] / (5 * C), p["r"][0, 0] / V[0, 0], rtol=1e-4)


def test_a_bias_of_two_weights_ties_them():
    def model(p, x, z):
        return x @ p["w"] + p["b"], z @ p["v"] + p["b"]

    p, report = calibrated({"w": W, "v": V, "b": B}, model, (X, Z))
    assert typical([X @ p["w"] + p["b"], Z @ p["v"] + p["b"]]) == pytest.approx(1, rel=1e-3)
    factors = [p["w"][0, 0] / W[0, 0], p["v"][0, 0] / V[0, 0], p["b"][0] / B[0]]
    np.testing.assert_allclose(factors, factors[0], rtol=1e-4)
    assert [row.note for row in report.rows] == [
        "shared; one scale with v",
        "shared; one scale with w",
    ]
    assert [row.joined for row in report.rows] == [("v",), ("w",)]


@pytest.mark.thorough
def test_a_bias_of_zeros_ties_nothing():
    def model(p, x, z):
        return x @ p["w"] + p["b"], z @ p["v"] + p["b"]

    p, report = calibrated({"w": W, "v": V, "b": 0 * B}, model, (X, Z))
    np.testing.assert_allclose(sizes([X @ p["w"], Z @ p["v"]]), 1, rtol=1e-3)
    assert set(report.not_tuned) == {"b"}


@pytest.mark.thorough
@pytest.mark.parametrize("scanned", [False, True])
def test_a_bias_of_every_weight_along_a_chain(scanned):
    """Equal blocks, in a loop of the model's own or one that they are rolled to."""
    depth = 12
    ws = [W * 1.1**i for i in range(depth)]

    def in_scan(p, x):
        def step(x, w):
            y = x @ w + p["b"]
            return jnp.tanh(y), y

        return jax.lax.scan(step, x, p["w"])[1]

    def unrolled(p, x):
        outputs = []
        for w in p["w"]:
            outputs.append(x @ w + p["b"])
            x = jnp.tanh(outputs[-1])
        return outputs

    weights = np.stack(ws) if scanned else ws
    p, report = calibrated({"w": weights, "b": B}, in_scan if scanned else unrolled, X)
    x, outputs = X, []
    for w in p["w"]:
        outputs.append(x @ w + p["b"])
        x = np.tanh(outputs[-1])
    assert typical(outputs) == pytest.approx(1, rel=0.02)
    factors = [a[0, 0] / b[0, 0] for a, b in zip(p["w"], ws, strict=True)]
    np.testing.assert_allclose(factors, p["b"][0] / B[0], rtol=1e-4)
    if not scanned:
        assert report.rows[1].joined == tuple(f"w/{i}" for i in range(depth) if i != 1)


@pytest.mark.thorough
def test_two_biases_of_one_weight_keep_their_shares():
    def model(p, x, z):
        return x @ p["w"] + p["b"], z @ p["w"] + p["c"]

    p, _ = calibrated({"w": W, "b": B, "c": 3 * C}, model, (X, Z))
    assert typical([X @ p["w"] + p["b"], Z @ p["w"] + p["c"]]) == pytest.approx(1, rel=1e-3)
    np.testing.assert_allclose(p["b"] / B[0], p["w"][0, 0] / W[0, 0], rtol=1e-4)
    np.testing.assert_allclose(p["c"] / (3 * C), p["w"][0, 0] / W[0, 0], rtol=1e-4)


def test_an_embedding_tied_to_an_output_with_a_bias():
    tokens = RNG.integers(0, 32, 64)

    def model(p, tokens):
        h = p["table"][tokens]
        return h, jnp.tanh(h) @ p["table"].T + p["b"]

    p, report = calibrated({"table": W, "b": B}, model, jnp.asarray(tokens))
    h = p["table"][tokens]
    assert typical([h, np.tanh(h) @ p["table"].T + p["b"]]) == pytest.approx(1, rel=0.01)
    np.testing.assert_allclose(p["b"] / B[0], p["table"][0, 0] / W[0, 0], rtol=1e-4)
    assert [row.note for row in report.rows] == ["shared", "shared"]


@pytest.mark.thorough
def test_a_weight_of_degree_two_at_one_of_its_uses():
    """One number s: the weight takes s, the outputs s and s**2, and so do their biases."""

    def model(p, x, z):
        return x @ p["w"] + p["b"], z @ (p["w"].T @ p["w"]) + p["c"]

    p, _ = calibrated({"w": W, "b": B, "c": 50 * C}, model, (X, Z))
    s = p["w"][0, 0] / W[0, 0]
    np.testing.assert_allclose(p["b"], s * B, rtol=1e-4)
    np.testing.assert_allclose(p["c"], s**2 * 50 * C, rtol=1e-4)


@pytest.mark.thorough
def test_a_bias_that_serves_elsewhere_stays():
    def model(p, x, z):
        return x @ p["w"] + p["b"], z * p["b"]

    p, report = calibrated({"w": W, "b": B}, model, (X, Z))
    np.testing.assert_allclose(p["b"], B)
    np.testing.assert_allclose(sizes([X @ p["w"]]), 1, rtol=1e-3)
    assert set(report.not_tuned) == {"b"}


@pytest.mark.thorough
def test_a_bias_shared_with_a_layer_that_does_not_scale_stays():
    def model(p, x, z):
        return x @ p["w"] + p["b"], z @ (p["v"] + 1) + p["b"]

    p, report = calibrated({"w": W, "v": V, "b": B}, model, (X, Z))
    np.testing.assert_allclose(p["b"], B)
    np.testing.assert_allclose(sizes([X @ p["w"]]), 1, rtol=1e-3)
    assert report.not_tuned["b"] == "a bias on its own"


def test_excluding_the_bias_of_a_shared_layer_leaves_the_layer():
    params = jax.tree.map(jnp.float32, {"w": W, "b": B})
    tuned = jinit.empirical_init(params, siamese, (X, Z), lambda y: y[0].sum(), exclude="b")
    jax.tree.map(np.testing.assert_array_equal, tuned, params)
