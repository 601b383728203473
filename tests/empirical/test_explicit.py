"""Explicit mode: its arithmetic, its equivalence with fold mode, and how it is applied."""

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import jinit
from jinit.empirical.explicit.normed_apply import scale_gradient
from tests.empirical.models import MLP, random_loss, rms, tanh_net, tanh_params

pytestmark = pytest.mark.usefixtures("allow_rank_promotion")


def vectors(key):
    return jax.random.normal(key, (64, 64))


def explicit(params, model, draw=vectors, loss=random_loss, **options):
    return jinit.calibrate(params, model, draw, loss, mode="explicit", **options)


# -- the arithmetic -------------------------------------------------------------------------


def test_a_gradient_is_scaled_and_its_value_is_not():
    x, factor = jnp.arange(3.0), jnp.float32(0.5)
    value, pull = jax.vjp(lambda x: scale_gradient(x, factor), x)
    np.testing.assert_array_equal(value, x)
    np.testing.assert_array_equal(pull(jnp.ones(3))[0], 0.5 * np.ones(3))


@pytest.mark.cases
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_every_gradient_is_the_product_of_the_scales_on_its_way(optimizer):
    """Against the chain rule written out in float64, with the scales that were returned."""
    params = tanh_params(3)
    result = explicit(params, tanh_net, optimizer=optimizer)
    x, slope = np.float64(vectors(jax.random.key(8))), np.float64(vectors(jax.random.key(9)))

    def loss(p):
        return jnp.sum(result.apply_fn(p, jnp.float32(x)) * jnp.float32(slope))

    gradients = jax.grad(loss)(result.params)
    scales = jax.tree.map(np.float64, result.scales)
    inputs, outputs = [], []
    for number, layer in enumerate(result.params):
        used = scales[str(number)]
        inputs.append(x)
        outputs.append(x @ (used["w"]["a"] * layer["w"]) + used["b"]["a"] * layer["b"])
        x = np.tanh(outputs[-1])
    for number in (2, 1, 0):
        if number < 2:
            slope = slope * (1 - np.tanh(outputs[number]) ** 2)
        used, layer = scales[str(number)], result.params[number]
        expected = used["w"]["gy"] * used["w"]["a"] * inputs[number].T @ slope
        np.testing.assert_allclose(gradients[number]["w"], expected, rtol=2e-3, atol=1e-4)
        expected = used["b"]["gy"] * used["b"]["a"] * slope.sum(0)
        np.testing.assert_allclose(gradients[number]["b"], expected, rtol=2e-3, atol=1e-4)
        passed = used["w"]["gx"] * used["w"]["gy"]
        slope = passed * (slope @ (used["w"]["a"] * np.float64(layer["w"])).T)


def test_the_scales_are_the_closed_form_of_one_input():
    """a = 1 / rms(op(x, W)), gy = 1 / rms(a op(x, dW)), gx = 1 / (rms(dx) gy), in float64."""
    params = {"w": 3 * jax.random.normal(jax.random.key(0), (64, 32))}
    x, slope = vectors(jax.random.key(1)), jax.random.normal(jax.random.key(2), (64, 32))
    result = explicit(
        params, lambda p, x: x @ p["w"], x, lambda y: jnp.sum(y * slope), optimizer="sgd"
    )
    w, x, slope = np.float64(params["w"]), np.float64(x), np.float64(slope)
    a = 1 / np.sqrt(np.mean((x @ w) ** 2))
    step = a * x.T @ slope
    gy = 1 / np.sqrt(np.mean((a * x @ step) ** 2))
    gx = 1 / (np.sqrt(np.mean((a * slope @ w.T) ** 2)) * gy)
    found = result.scales["w"]
    np.testing.assert_allclose([found["a"], found["gy"], found["gx"]], [a, gy, gx], rtol=1e-5)
    np.testing.assert_array_equal(result.params["w"], params["w"])


@pytest.mark.thorough
@pytest.mark.parametrize("optimizer", ["sgd", "adam", optax.trace(0.9), optax.scale_by_adam()])
def test_all_three_pillars_stand_at_one(optimizer):
    result = explicit(tanh_params(8), tanh_net, optimizer=optimizer)
    assert len(result.report.rows) == 8
    for row in result.report.rows:
        assert 0.9 < row.activation_after < 1.1
        assert 0.9 < row.gradient_after < 1.1
        assert 0.67 < row.update_after < 1.5


# -- equivalence ----------------------------------------------------------------------------


def digits(steps, batch=64):
    data = load_digits()
    x, y = data.data / 16.0 - 0.3, data.target
    order = np.random.default_rng(0).integers(0, len(x), (steps, batch))
    return jnp.asarray(x[order]), jnp.asarray(y[order])


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def relu_net(params, x):
    for w in params[:-1]:
        x = jax.nn.relu(x @ w)
    return x @ params[-1]


def train(apply_fn, params, tx, steps=200):
    xs, ys = digits(steps)

    def step(carry, batch):
        params, state = carry
        loss, slope = jax.value_and_grad(lambda p: cross_entropy(apply_fn(p, batch[0]), batch[1]))(
            params
        )
        updates, state = tx.update(slope, state, params)
        return (optax.apply_updates(params, updates), state), loss

    return jax.lax.scan(step, (params, tx.init(params)), (xs, ys))[1]


def chain_multipliers(scales, depth):
    """What reproduces explicit SGD on a plain chain: a**2 gy times all gx gy downstream."""
    entry = [jax.tree.map(np.float64, scales[str(i)]) for i in range(depth)]
    downstream = np.cumprod([1.0] + [e["gx"] * e["gy"] for e in entry[:0:-1]])[::-1]
    return [e["a"] ** 2 * e["gy"] * d for e, d in zip(entry, downstream, strict=True)]


def scaled_by(tree):
    return optax.stateless(lambda u, _: jax.tree.map(lambda u, m: m * u, u, tree))


def calibrated_digits(optimizer, mode):
    keys = jax.random.split(jax.random.key(3), 4)
    sizes = [(64, 48), (48, 48), (48, 48), (48, 10)]
    params = [
        jax.random.normal(k, s, jnp.float64) * (2 / s[0]) ** 0.5
        for k, s in zip(keys, sizes, strict=True)
    ]
    xs, ys = digits(8)

    def draw(key):
        return xs[jax.random.randint(key, (), 0, 8)]

    def loss(logits, key):
        return cross_entropy(logits, ys[jax.random.randint(key, (), 0, 8)])

    return jinit.calibrate(params, relu_net, draw, loss, optimizer=optimizer, mode=mode)


@pytest.mark.thorough
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_explicit_sgd_is_fold_with_multipliers_on_a_chain(momentum):
    with jax.enable_x64(True):
        apart = calibrated_digits("sgd", "explicit")
        folded = calibrated_digits("sgd", "fold")
        rates = chain_multipliers(apart.scales, 4)
        np.testing.assert_allclose(folded.multipliers, rates, rtol=1e-4)
        values = [apart.scales[str(i)]["a"].astype(jnp.float64) * w
                  for i, w in enumerate(apart.params)]  # fmt: skip
        rate, trace = 0.02, optax.trace(momentum)
        one = train(apart.apply_fn, apart.params, optax.chain(trace, optax.scale(-rate)))
        other = train(relu_net, values, optax.chain(trace, scaled_by(rates), optax.scale(-rate)))
        assert one.dtype == jnp.float64
        assert float(one[-1]) < 0.5 * float(one[0])
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.thorough
def test_explicit_adam_is_fold_with_multipliers_on_a_chain():
    """Exact as Adam's epsilon vanishes: it is 1e-30 here."""
    with jax.enable_x64(True):
        apart = calibrated_digits("adam", "explicit")
        rates = [apart.scales[str(i)]["a"].astype(jnp.float64) for i in range(4)]
        values = [a * w for a, w in zip(rates, apart.params, strict=True)]
        rate, adam = 0.05, optax.scale_by_adam(eps=1e-30)
        one = train(apart.apply_fn, apart.params, optax.chain(adam, optax.scale(-rate)))
        other = train(relu_net, values, optax.chain(adam, scaled_by(rates), optax.scale(-rate)))
        assert float(one[-1]) < 0.5 * float(one[0])
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.thorough
def test_on_a_residual_net_what_comes_back_is_no_gradient():
    """The counterexample: paths of different products join, and the direction turns."""

    def residual(params, x):
        for inner, outer in params:
            x = x + jax.nn.relu(x @ inner) @ outer
        return x

    keys = jax.random.split(jax.random.key(0), 16)
    params = [
        (0.2 * jax.random.normal(a, (64, 64)), 0.2 * jax.random.normal(b, (64, 64)))
        for a, b in zip(keys[::2], keys[1::2], strict=True)
    ]
    result = explicit(params, residual, optimizer="sgd")
    x, slope = vectors(jax.random.key(1)), vectors(jax.random.key(2))

    def gradient(apply_fn, p):
        return jax.grad(lambda p: jnp.sum(apply_fn(p, x) * slope))(p)

    def plain(p, x):
        return residual(
            [
                tuple(w * result.scales[str(i)][str(j)]["a"] for j, w in enumerate(pair))
                for i, pair in enumerate(p)
            ],
            x,
        )

    np.testing.assert_allclose(
        result.apply_fn(result.params, x), plain(result.params, x), rtol=1e-4, atol=1e-4
    )
    ours, true = gradient(result.apply_fn, result.params), gradient(plain, result.params)
    first, second = ours[0][0].ravel(), true[0][0].ravel()
    cosine = float(first @ second / jnp.linalg.norm(first) / jnp.linalg.norm(second))
    assert 0.3 < cosine < 0.98
    last, last_true = ours[-1][1].ravel(), true[-1][1].ravel()
    cosine = float(last @ last_true / jnp.linalg.norm(last) / jnp.linalg.norm(last_true))
    assert cosine == pytest.approx(1, abs=1e-5)


# -- applying it ----------------------------------------------------------------------------


def flax_model():
    module = MLP(4)
    variables = module.init(jax.random.key(0), jnp.ones((1, 64)))
    return module, variables, explicit(variables, module.apply)


@pytest.mark.thorough
def test_flax_variables_hold_the_scales_in_a_collection():
    _, variables, result = flax_model()
    assert set(result.params) == {"params", "normed"}
    assert jax.tree.structure(result.params["params"]) == jax.tree.structure(variables["params"])
    kernel = result.params["normed"]["Dense_1"]["kernel"]
    assert set(kernel) == {"a", "gx", "gy"}
    assert set(result.params["normed"]["Dense_1"]["bias"]) == {"a", "gy"}
    assert rms(result.apply_fn(result.params, vectors(jax.random.key(5)))) == pytest.approx(
        1, rel=0.1
    )
    with pytest.raises(ValueError, match="the variables of apply hold no collection 'normed'"):
        result.apply_fn(variables, vectors(jax.random.key(5)))


@pytest.mark.thorough
def test_the_scales_go_through_a_checkpoint():
    _, _, result = flax_model()
    state = flax.serialization.to_bytes(result.params)
    empty = jax.tree.map(jnp.zeros_like, result.params)
    restored = flax.serialization.from_bytes(empty, state)
    x = vectors(jax.random.key(6))
    np.testing.assert_array_equal(result.apply_fn(restored, x), result.apply_fn(result.params, x))


def test_it_is_a_function_like_any_other(count_compilations):
    result = explicit(tanh_params(3), tanh_net, optimizer="sgd")
    x = vectors(jax.random.key(4))
    eager = result.apply_fn(result.params, x)
    np.testing.assert_allclose(jax.jit(result.apply_fn)(result.params, x), eager, rtol=1e-5)
    assert jax.eval_shape(result.apply_fn, result.params, x).shape == eager.shape
    rows = jax.vmap(lambda row: result.apply_fn(result.params, row[None])[0])(x)
    np.testing.assert_allclose(rows, eager, rtol=1e-4, atol=1e-5)
    apply_fn = result.apply_fn
    apply_fn(result.params, x)
    with count_compilations() as compiled:
        apply_fn(result.params, x)
    assert compiled == []


@pytest.mark.thorough
def test_keyword_arguments_are_handed_on():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.Dense(32)(x)
            x = nn.BatchNorm(use_running_average=not train)(x)
            return nn.Dense(4)(nn.Dropout(0.5, deterministic=not train)(nn.relu(x)))

    x = vectors(jax.random.key(0))
    variables = Net().init(jax.random.key(1), x)
    result = explicit(variables, Net().apply, x)
    out, state = result.apply_fn(
        result.params, x, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(2)}
    )
    assert out.shape == (64, 4)
    assert set(state) == {"batch_stats"}
    dropped = result.apply_fn(
        result.params, x, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(3)}
    )[0]
    assert not np.allclose(out, dropped)
    assert rms(result.apply_fn(result.params, x)) == pytest.approx(1, rel=0.1)


@pytest.mark.thorough
def test_a_scanned_layer_and_a_shared_one():
    params = {
        "stack": 0.1 * jax.random.normal(jax.random.key(0), (5, 64, 64)),
        "tied": 2 * jnp.eye(64),
    }

    def model(p, x):
        x = jnp.tanh(x @ p["tied"])
        x = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["stack"])[0]
        return x @ p["tied"]

    result = explicit(params, model)
    assert result.scales["stack"]["a"].shape == result.scales["stack"]["gx"].shape == (5,)
    assert set(result.scales["tied"]) == {"a", "gx", "gx_1", "gy"}
    x = vectors(jax.random.key(3))
    gradient = jax.grad(lambda p: jnp.sum(result.apply_fn(p, x) ** 2))(result.params)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(gradient))
    assert [
        row.gradient_after for row in result.report.rows if "stack" in row.path
    ] == pytest.approx([1] * 5, rel=0.1)


@pytest.mark.thorough
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_leaf_whose_slices_are_scanned_and_which_is_used_whole(optimizer):
    def model(p, x):
        x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["w"])
        return x @ p["w"].sum(0)

    params = {"w": jax.random.normal(jax.random.key(0), (3, 64, 64))}
    result = explicit(params, model, optimizer=optimizer)
    scales, x = result.scales["w"], vectors(jax.random.key(5))
    np.testing.assert_allclose(scales["gx_1"] * scales["gy"], scales["gx_1"][0] * scales["gy"][0])
    scaled = {"w": result.params["w"] * scales["a"][:, None, None]}
    np.testing.assert_allclose(
        result.apply_fn(result.params, x), model(scaled, x), rtol=1e-4, atol=1e-5
    )


@pytest.mark.thorough
def test_every_layer_that_shares_a_leaf_has_a_backward_factor_of_its_own():
    """Whether or not the layers are so many that they are traced as one loop."""

    def model(p, x):
        for w in p["own"]:
            x = x + jnp.tanh(x @ w) @ p["shared"]
        return x

    keys = jax.random.split(jax.random.key(0), 13)
    own = [jax.random.normal(key, (64, 64)) for key in keys]
    params = {"own": own[1:], "shared": own[0]}
    result = explicit(params, model, vectors(keys[0]), lambda y: jnp.sum(jnp.sin(y)))
    assert result._findings.model.rolled.loops
    assert len([name for name in result.scales["shared"] if name.startswith("gx")]) == 12
    for row in result.report.rows:
        assert row.gradient_after == pytest.approx(1, rel=1e-2)


@pytest.mark.thorough
def test_scales_of_another_model_are_refused():
    result = explicit(tanh_params(2), tanh_net)
    with pytest.raises(ValueError, match="the scales hold no 'a' for 2/b; calibrate this model"):
        result.apply_fn(tanh_params(3), vectors(jax.random.key(0)))


@pytest.mark.cases
@pytest.mark.parametrize(
    "optimizer",
    [optax.adamw(1.0, weight_decay=1.0), optax.lamb(1.0), optax.scale_by_trust_ratio(),
     optax.stateless(lambda g, _: jax.tree.map(lambda g: jnp.sign(g) * jnp.sqrt(jnp.abs(g)), g))],
)  # fmt: skip
def test_an_optimizer_that_it_cannot_follow_is_refused(optimizer):
    with pytest.raises(ValueError, match="mode='explicit' cannot follow optimizer="):
        explicit(tanh_params(2), tanh_net, optimizer=optimizer)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="mode='folded' is not known; pass 'fold' or 'explicit'"):
        jinit.calibrate(tanh_params(2), tanh_net, vectors, random_loss, mode="folded")
