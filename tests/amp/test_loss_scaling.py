"""The scaler: the schedule of the scale, what a skipped step changes, dtypes and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jinit import amp
from tests.amp.reference import ApexScaler, bits, dtypes

STEPS = 60
CONFIGURATIONS = [
    {"init_scale": 2.0**16, "growth_interval": 3},
    {"init_scale": 2.0**23, "growth_interval": 1},
    {"init_scale": 4.0, "growth_interval": 2, "min_loss_scale": 1.0, "max_loss_scale": 16.0},
    {"init_scale": 1.0, "growth_interval": 5, "growth_factor": 4.0, "backoff_factor": 0.25},
    {"init_scale": 2.0**30, "growth_interval": 7},
    {"init_scale": 2.0**10, "growth_interval": 2, "hysteresis": 3},
    {"init_scale": 2.0**10, "growth_interval": 4, "hysteresis": 2, "min_loss_scale": 512.0},
    {"loss_scale": 128.0},
]


def run_scan(tx, overflows):
    """Runs a step a flag, and returns every step's parameters, state and updates."""

    def step(carry, overflow):
        params, state = carry
        grads = jnp.where(overflow, jnp.inf, jnp.ones(2)) * state.loss_scale
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, state, updates)

    params = jnp.ones(2)
    return jax.lax.scan(step, (params, tx.init(params)), overflows)[1]


RUNS = [
    jax.jit(
        lambda overflows, keys=keywords: run_scan(
            amp.loss_scaling(optax.sgd(1.0), **keys), overflows
        )
    )
    for keywords in CONFIGURATIONS
]


def apex_of(keywords):
    names = {"growth_factor": "factor", "growth_interval": "window", "min_loss_scale": "minimum"}
    names |= {"max_loss_scale": "maximum", "hysteresis": "hysteresis"}
    scaler = ApexScaler(
        scale=keywords.get("loss_scale", keywords.get("init_scale")),
        dynamic="loss_scale" not in keywords,
        **{names[key]: value for key, value in keywords.items() if key in names},
    )
    if scaler.dynamic:
        scaler.scale = min(scaler.maximum, scaler.scale)
    return scaler


@pytest.mark.cases
@pytest.mark.parametrize("index", range(len(CONFIGURATIONS)))
@settings(max_examples=15, deadline=None, derandomize=True)
@given(rate=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
def test_it_is_apex_over_random_overflows(index, rate, seed):
    overflows = np.random.default_rng(seed).random(STEPS) < rate
    params, state, updates = jax.device_get(RUNS[index](overflows))
    apex = apex_of(CONFIGURATIONS[index])
    weight = 1.0
    for step, overflow in enumerate(overflows):
        skip = apex.step(overflow)
        assert (state.loss_scale[step], state.growth_count[step]) == (apex.scale, apex.unskipped)
        assert state.last_finite[step] == (not overflow)
        if apex.dynamic:
            weight -= 0.0 if skip else 1.0
            assert params[step].tolist() == [weight, weight]
            assert np.signbit(updates[step]).all()
            assert (updates[step] == (0.0 if skip else -1.0)).all()


def test_it_grows_after_exactly_the_interval():
    tx = amp.loss_scaling(optax.sgd(1.0), init_scale=8.0)
    state = jax.jit(lambda: run_scan(tx, jnp.zeros(4001, bool))[1])()
    scales = np.asarray(state.loss_scale)
    assert set(scales[:1999]) == {8.0}
    assert set(scales[1999:3999]) == {16.0}
    assert set(scales[3999:]) == {32.0}


def test_a_scale_reaches_neither_zero_nor_infinity():
    tx = amp.loss_scaling(optax.sgd(1.0), init_scale=1.0)
    down = np.asarray(jax.jit(lambda: run_scan(tx, jnp.ones(200, bool))[1])().loss_scale)
    assert down[19] == 2.0**-20
    assert down[-1] == 2.0**-126
    tx = amp.loss_scaling(optax.sgd(1.0), growth_interval=1, max_loss_scale=1e300)
    up = np.asarray(jax.jit(lambda: run_scan(tx, jnp.zeros(200, bool))[1])().loss_scale)
    assert up.max() == 2.0**126


MANY, INTERVAL = 1000, 3
PARAMS = {
    "kernel": np.linspace(-1.0, 1.0, 1027, dtype=np.float32).reshape(79, 13),
    "bias": np.float32([-0.0, 0.0, 1e-3]),
    "scale": np.float32(2.0),
}
SIZES = [leaf.size for leaf in jax.tree.leaves(PARAMS)]
INNER = {
    "adam": lambda: optax.adam(1e-2),
    "clip_adamw": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2)),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(
        optax.cosine_decay_schedule(1e-2, MANY)
    ),
    "multi_steps": lambda: optax.MultiSteps(optax.adam(1e-2), 3).gradient_transformation(),
}


def injections(seed):
    """Returns for every step what is added to the gradients, flat: 0, or one or two inf or nan."""
    rng = np.random.default_rng(seed)
    added = np.zeros((MANY, sum(SIZES)), np.float32)
    bad = rng.random(MANY) < 0.3
    for hit in (bad, bad & (rng.random(MANY) < 0.5)):
        # The leaf first, so that a scalar is hit as often as a matrix.
        leaves = rng.integers(len(SIZES), size=MANY)
        within = (rng.random(MANY) * np.take(SIZES, leaves)).astype(int)
        places = np.cumsum([0, *SIZES])[leaves] + within
        added[hit, places[hit]] = rng.choice(np.float32([np.nan, np.inf, -np.inf]), hit.sum())
    return bad, added


def split(flat):
    leaves, tree = jax.tree.flatten(PARAMS)
    parts = jnp.split(flat, np.cumsum(SIZES)[:-1])
    return tree.unflatten([p.reshape(leaf.shape) for p, leaf in zip(parts, leaves, strict=True)])


def as_integers(tree):
    def view(leaf):
        inexact = jnp.issubdtype(leaf.dtype, jnp.inexact)
        return leaf.view(f"int{8 * leaf.dtype.itemsize}") if inexact else leaf

    return jax.tree.map(view, tree)


def same_bits(one, other):
    pairs = zip(*map(jax.tree.leaves, (as_integers(one), as_integers(other))), strict=True)
    return jnp.stack([(a == b).all() for a, b in pairs]).all()


def run(tx, half, noise, added):
    """Trains by a scan; also returns whether each step left parameters and inner state alone."""

    def step(carry, inputs):
        params, state = carry
        grads = jax.tree.map(
            lambda p, n, a: ((0.1 * p + n) * state.loss_scale + a).astype(half),
            *(params, split(inputs[0]), split(inputs[1])),
        )
        updates, after = tx.update(grads, state, params)
        moved = optax.apply_updates(params, updates)
        kept = same_bits((moved, after.inner_state), (params, state.inner_state))
        return (moved, after), (kept, after._replace(inner_state=None))

    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, half), PARAMS)
    return jax.lax.scan(step, (params, tx.init(params)), (noise, added))


CASES = [(name, "float32", "dynamic") for name in INNER]
CASES += [
    ("adam", "float16", "dynamic"),
    ("adam", "bfloat16", "dynamic"),
    ("adam", "float32", 64.0),
]


@pytest.mark.cases
@pytest.mark.parametrize(("name", "half", "loss_scale"), CASES)
def test_an_inf_or_nan_in_any_leaf_changes_the_scaler_only(name, half, loss_scale):
    keywords = {"init_scale": 64.0, "growth_interval": INTERVAL, "skip_nonfinite": True}
    keywords |= {"min_loss_scale": 0.25, "max_loss_scale": 256.0}
    tx = amp.loss_scaling(INNER[name](), loss_scale, **keywords)
    bad, added = injections(seed=len(name))
    noise = np.random.default_rng(1).normal(size=added.shape).astype(np.float32)
    train = jax.jit(lambda noise, added: run(tx, half, noise, added))
    (params, state), (kept, fields) = train(noise, added)
    np.testing.assert_array_equal(kept, bad)
    np.testing.assert_array_equal(fields.last_finite, ~bad)
    apex = ApexScaler(64.0, loss_scale == "dynamic", 2.0, INTERVAL, 0.25, 256.0)
    expected = []
    for overflow in bad:
        apex.step(overflow)
        expected.append(apex.scale)
    np.testing.assert_array_equal(fields.loss_scale, np.float32(expected))
    assert 0.2 < bad.mean() < 0.4
    if half == "float32":  # where a scale that is a power of two changes no bit
        (without, plain), _ = train(noise[~bad], 0 * noise[~bad])
        np.testing.assert_array_equal(bits(params), bits(without))
        np.testing.assert_array_equal(bits(state.inner_state), bits(plain.inner_state))


def test_a_gradient_that_overflows_by_unscaling_is_an_overflow():
    tx = amp.loss_scaling(optax.sgd(0.1), init_scale=0.25)
    _, state = tx.update(jnp.full(2, 3e38), tx.init(jnp.ones(2)))
    assert not state.last_finite


def test_a_constant_scale_never_skips():
    tx = amp.loss_scaling(optax.sgd(1.0), 4.0)
    updates, state = tx.update(jnp.array([8.0, jnp.inf]), tx.init(jnp.ones(2)))
    assert updates.tolist() == [-2.0, -jnp.inf]
    assert (float(state.loss_scale), int(state.growth_count)) == (4.0, 1)
    assert not state.last_finite


def test_a_constant_scale_skips_where_it_is_asked_to():
    tx = amp.loss_scaling(optax.adam(1.0), 4.0, skip_nonfinite=True)
    params = jnp.ones(2)
    _, before = tx.update(jnp.ones(2), tx.init(params), params)
    updates, state = tx.update(jnp.array([8.0, jnp.inf]), before, params)
    assert np.signbit(updates).all()
    assert not updates.any()
    assert bits(state.inner_state) == bits(before.inner_state)
    assert (float(state.loss_scale), int(state.growth_count)) == (4.0, 0)
    assert (int(state.overflow_count), bool(state.last_finite)) == (1, False)


def test_hysteresis_skips_every_overflow_and_backs_off_from_its_number_on():
    tx = amp.loss_scaling(optax.sgd(1.0), init_scale=64.0, hysteresis=3)
    bad = np.array([1, 1, 0, 1, 1, 1, 1, 0, 1], bool)
    params, state, _ = run_scan(tx, bad)
    assert state.loss_scale.tolist() == [64, 64, 64, 64, 64, 32, 16, 16, 16]
    assert state.overflow_count.tolist() == [1, 2, 0, 1, 2, 3, 4, 0, 1]
    assert params[:, 0].tolist() == [1, 1, 0, 0, 0, 0, 0, -1, -1]


@pytest.mark.cases
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"loss_scale": 1.0}, {"loss_scale": 2.0**10}),
        ({"init_scale": 1.0}, {"init_scale": 2.0**16}),
        ({"init_scale": 1.0}, {"init_scale": 2.0**-8, "growth_interval": 2}),
    ],
)
def test_a_power_of_two_changes_no_bit_of_float32_training(one, other):
    def train(tx):
        @jax.jit
        def step(params, state):
            loss_fn = lambda params: amp.scale_loss(((params - 3.0) ** 4).mean(), state)  # noqa: E731
            updates, state = tx.update(jax.grad(loss_fn)(params), state, params)
            return optax.apply_updates(params, updates), state

        params = jnp.linspace(-1.0, 1.0, 7)
        state = tx.init(params)
        for _ in range(5):
            params, state = step(params, state)
        return bits((params, state.inner_state))

    first, second = (amp.loss_scaling(optax.adamw(0.1), **keys) for keys in (one, other))
    assert train(first) == train(second)


@pytest.mark.cases
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_parameters_have_float32_state_and_updates(dtype):
    params = {"w": jnp.ones(3, dtype), "z": jnp.ones(2, jnp.complex64)}
    tx = amp.loss_scaling(optax.adam(1e-3), 1.0)
    state = tx.init(params)
    assert dtypes((state.inner_state[0].mu, state.inner_state[0].nu)) == {"float32", "complex64"}
    updates, _ = tx.update(params, state, params)
    assert {name: str(leaf.dtype) for name, leaf in updates.items()} == {
        "w": "float32",
        "z": "complex64",
    }
    applied = optax.apply_updates(params, updates)
    assert applied["w"].dtype == dtype
    exact = np.float32(1.0) + np.asarray(updates["w"])
    assert bits(applied["w"]) == bits(exact.astype(applied["w"].dtype))


def test_float64_stays_float64():
    with jax.enable_x64(True):
        params = jnp.ones(2, jnp.float64)
        tx = amp.loss_scaling(optax.sgd(0.1), 2.0)
        state = tx.init(params)
        assert amp.scale_loss(params[0], state).dtype == jnp.float64
        assert tx.update(params, state, params)[0].dtype == jnp.float64


def test_adam_in_float16_is_finite_only_through_the_scaler():
    params = jnp.ones(3, jnp.float16)
    grads = jnp.array([0.0, 1e-4, 1.0], jnp.float16)
    plain, _ = optax.adam(1e-3).update(grads, optax.adam(1e-3).init(params), params)
    assert not jnp.isfinite(plain).all()
    tx = amp.loss_scaling(optax.adam(1e-3), 1.0)
    ours, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(ours, [0.0, -1e-3, -1e-3], rtol=1e-3)


def test_integer_leaves_pass():
    params = {"w": jnp.ones(3), "n": jnp.arange(3)}
    grads = jax.grad(lambda p: (p["w"] * p["n"]).sum(), allow_int=True)(params)
    tx = amp.loss_scaling(optax.masked(optax.sgd(1.0), {"w": True, "n": False}), init_scale=2.0)
    state = tx.init(params)
    updates, state = tx.update(grads, state, params)
    assert updates["w"].tolist() == [0.0, -0.5, -1.0]
    assert updates["n"].dtype == jax.dtypes.float0
    grads["w"] = grads["w"] / 0
    updates, state = tx.update(grads, state, params)
    assert updates["w"].tolist() == [0.0, 0.0, 0.0]
    assert float(state.loss_scale) == 1.0


def test_an_empty_tree_is_finite():
    tx = amp.loss_scaling(optax.sgd(1.0))
    updates, state = tx.update({}, tx.init({}))
    assert updates == {}
    assert state.last_finite


def test_every_array_of_the_state_is_a_leaf():
    state = amp.loss_scaling(optax.sgd(0.1)).init(jnp.ones(2))
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert names == [".loss_scale", ".growth_count", ".overflow_count", ".last_finite"]
    leaves = jax.tree.leaves(state)
    assert [str(leaf.dtype) for leaf in leaves] == ["float32", "int32", "int32", "bool"]
    assert isinstance(state, amp.LossScalingState)


def test_scale_loss_is_float32_and_differentiable():
    state = amp.loss_scaling(optax.sgd(0.1)).init(jnp.ones(2))
    scaled = amp.scale_loss(jnp.float32(3.0), state)
    assert (float(scaled), scaled.dtype) == (3.0 * 2**16, jnp.float32)
    assert float(amp.scale_loss(0.5, (optax.EmptyState(), {"tx": state}))) == 2.0**15
    assert float(jax.grad(amp.scale_loss)(jnp.float32(3.0), state)) == 2.0**16


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        ({"growth_factor": 1.0}, "growth_factor must be above 1, not 1.0"),
        ({"growth_factor": "x"}, "growth_factor must be a positive, finite number, not 'x'"),
        ({"backoff_factor": 1.0}, "backoff_factor must be below 1, not 1.0"),
        ({"backoff_factor": 0.0}, "backoff_factor must be a positive, finite number, not 0.0"),
        ({"growth_interval": 0}, "growth_interval must be a positive integer, not 0"),
        ({"growth_interval": 2.5}, "growth_interval must be a positive integer, not 2.5"),
        ({"growth_interval": True}, "growth_interval must be a positive integer, not True"),
        ({"init_scale": np.inf}, "init_scale must be a positive, finite number, not inf"),
        ({"loss_scale": None}, "loss_scale must be 'dynamic' or a positive, finite number, not N"),
        ({"loss_scale": 1e300}, "loss_scale must be between 2**-126 and 2**126, not 1e+300"),
        (
            {"min_loss_scale": 4.0, "max_loss_scale": 2.0},
            "min_loss_scale 4.0 is above max_loss_scale 2.0",
        ),
        ({"num_losses": 0}, "num_losses must be a positive integer, not 0"),
        ({"num_losses": 2.0}, "num_losses must be a positive integer, not 2.0"),
        ({"hysteresis": 0}, "hysteresis must be a positive integer, not 0"),
    ],
)
def test_loss_scaling_errors(keywords, text):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the text is compared below)
        amp.loss_scaling(optax.sgd(0.1), **keywords)
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize("wrap", [lambda tx: tx, lambda tx: optax.chain(optax.identity(), tx)])
def test_an_optimizer_initialized_twice(wrap):
    tx = amp.loss_scaling(wrap(amp.loss_scaling(optax.sgd(0.1))))
    with pytest.raises(ValueError, match="holds a loss_scale already: it was initialized twice"):
        tx.init(jnp.ones(2))
