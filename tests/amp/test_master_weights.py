"""Half parameters against their float32 masters, bit for bit, and stochastic rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jinit import amp
from tests.amp.reference import bits, dtypes
from tests.amp.regression import PARAMS as WEIGHTS
from tests.amp.regression import mlp, train

HALVES = ["bfloat16", "float16"]
RNG = np.random.default_rng(0)
PARAMS = {
    "w": RNG.normal(size=(64, 8)).astype(np.float32),
    "tiny": (RNG.normal(size=512) * 2.0**-20).astype(np.float32),
    "zeros": np.array([0.0, -0.0], np.float32),
    "kept": RNG.normal(size=8).astype(np.float32),
}
STEPS = 30


def halved(params, half):
    return {k: jnp.asarray(v) if k == "kept" else jnp.asarray(v, half) for k, v in params.items()}


def grads_at(step, half):
    rng = np.random.default_rng(step)
    scale = 10.0 ** rng.uniform(-6, 1)
    grads = {k: rng.normal(size=v.shape).astype(np.float32) * scale for k, v in PARAMS.items()}
    return halved(grads, half)


@pytest.mark.cases
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("jit", [False, True])
def test_parameters_equal_their_masters_cast_down_after_every_step(half, jit):
    tx = amp.master_weights(amp.loss_scaling(optax.adam(0.05), init_scale=4.0))
    params = halved(PARAMS, half)
    state = tx.init(params)

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    run = jax.jit(step) if jit else step
    for number in range(STEPS if jit else 4):
        grads = grads_at(number, half)
        skipped = number % 5 == 3
        if skipped:
            grads["w"] = grads["w"].at[3, 2].set(jnp.nan)
        before = bits(params), bits(state.master_params)
        params, state = run(params, state, grads)
        masters = state.master_params
        assert dtypes(masters) == {"float32"}
        assert bits(params) == bits(halved(masters, half)), number
        assert ((bits(params), bits(masters)) == before) == skipped


@pytest.mark.cases
@pytest.mark.parametrize("half", HALVES)
def test_masters_take_the_steps_of_float32_training(half):
    """Adam over masters against Adam over float32 parameters with the same gradients."""
    tx, plain = amp.master_weights(optax.adamw(0.01)), optax.adamw(0.01)
    params, theirs = halved(PARAMS, half), jax.tree.map(jnp.asarray, PARAMS)
    state, reference = tx.init(theirs), plain.init(theirs)
    for number in range(20):
        grads = grads_at(number, half)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        wide = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
        updates, reference = plain.update(wide, reference, theirs)
        theirs = optax.apply_updates(theirs, updates)
    for name in ("w", "tiny"):
        np.testing.assert_allclose(state.master_params[name], theirs[name], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("half", HALVES)
def test_a_step_that_shrinks_a_parameter_to_almost_nothing_keeps_the_pair_equal(half):
    """Where float32 cannot hold the update exactly, the master follows within its own rounding."""
    start = RNG.uniform(1, 2, size=1000).astype(half).astype(np.float32)
    goal = (RNG.uniform(1, 2, size=1000) * 2.0 ** RNG.integers(-24, -10, 1000)).astype(np.float32)
    tx = amp.master_weights(optax.sgd(1.0))
    params = jnp.asarray(start, half)
    updates, state = tx.update(jnp.asarray(start - goal), tx.init(params), params)
    params = optax.apply_updates(params, updates)
    assert bits(params) == bits(state.master_params.astype(half))
    assert np.abs(state.master_params - goal).max() <= 2.0**-23  # an ulp of the parameters before


def test_updates_too_small_for_half_add_up():
    params = jnp.ones((), jnp.bfloat16)
    tx = amp.master_weights(optax.sgd(1e-3))
    state = tx.init(params)
    for _ in range(100):
        updates, state = tx.update(jnp.ones((), jnp.bfloat16), state, params)
        params = optax.apply_updates(params, updates)
    assert float(state.master_params) == pytest.approx(0.9, abs=1e-5)
    assert params == jnp.bfloat16(0.9)
    without = jnp.ones((), jnp.bfloat16)
    for _ in range(100):
        without = optax.apply_updates(without, jnp.float32(-1e-3))
    assert without == 1


def test_without_parameters_they_say_so():
    for name, wrap in (
        ("master_weights", amp.master_weights),
        ("stochastic_rounding", amp.stochastic_rounding),
    ):
        tx = wrap(optax.sgd(0.1))
        with pytest.raises(ValueError, match=f"{name} needs the parameters: call update.grads, st"):
            tx.update(PARAMS, tx.init(PARAMS))


@pytest.mark.cases
@pytest.mark.parametrize("half", HALVES)
def test_o2_with_masters_in_the_optimizer_trains_as_with_float32_parameters(half):
    losses = {}
    for where in (True, "optimizer"):
        apply_fn, tx = amp.initialize(
            mlp,
            optax.adam(0.02),
            "O2",
            half_dtype=half,
            master_weights=where,
            verbosity=0,
        )
        params = apply_fn.policy.cast_to_param(WEIGHTS)
        assert dtypes(params) == {half if where == "optimizer" else "float32"}
        (params, state), (losses[where], *_) = train(apply_fn, tx, params)
        assert optax.tree.get(state, "loss_scale").dtype == jnp.float32
    assert bits(params) == bits(jax.tree.map(lambda m: m.astype(half), state.master_params))
    assert losses["optimizer"][-1] < 0.03 * losses["optimizer"][0]
    np.testing.assert_allclose(losses["optimizer"][:20], losses[True][:20], rtol=0.02)


def test_o3_in_float16_stays_finite_with_adam_which_alone_does_not():
    """In float16 Adam's second moment and epsilon are 0: optax's update is infinite."""
    grads = jnp.full(4, 1e-5, jnp.float16)
    params = jnp.ones(4, jnp.float16)
    alone = optax.adam(1e-3)
    updates, _ = alone.update(grads, alone.init(params), params)
    assert not np.isfinite(np.asarray(updates)).any()
    apply_fn, tx = amp.initialize(mlp, optax.adam(1e-3), "O3", half_dtype="float16", verbosity=0)
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates, -1e-3, rtol=0.01)
    weights = apply_fn.policy.cast_to_param(WEIGHTS)
    (params, state), (losses, *_) = train(apply_fn, tx, weights)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((params, state)))
    assert losses[-1] < losses[0]


def test_the_table_names_the_masters(capsys):
    amp.initialize(mlp, None, "O2", half_dtype="bfloat16", master_weights="optimizer", verbose=True)
    assert "master_weights True optimizer" in " ".join(capsys.readouterr().out.split())


COUNT = 200_000


def rounded(value, seed=0):
    """What a step leaves of many bfloat16 parameters of 1 that go to ``value``."""
    tx = amp.stochastic_rounding(optax.sgd(1.0), seed=seed)
    params = jnp.ones(COUNT, jnp.bfloat16)
    grads = jnp.full(COUNT, np.float32(1) - np.float32(value))
    updates, _ = tx.update(grads, tx.init(params), params)
    return np.asarray(optax.apply_updates(params, updates), np.float64)


@pytest.mark.cases
@pytest.mark.parametrize("value", [1.003, 0.9977, 1.5, -0.3])
def test_stochastic_rounding_is_unbiased_with_the_variance_of_a_coin(value):
    """Mean x and variance (x - a)(b - x), within 5 standard errors: wrong once in 10**6."""
    exact = np.float64(np.float32(value))
    sample = rounded(value)
    nearest = np.asarray(jnp.bfloat16(value), np.float64)
    unit = 2.0 ** (np.floor(np.log2(abs(exact))) - 7)
    low = np.floor(exact / unit) * unit
    high = low if low == exact else low + unit
    assert nearest in (low, high)
    assert set(np.unique(sample)) == {low, high}
    variance = (exact - low) * (high - exact)
    # the gradient 1 - x is rounded to float32, and so is 1 - (1 - x)
    assert abs(sample.mean() - exact) <= 5 * (variance / COUNT) ** 0.5 + 2.0**-23
    assert sample.var() == pytest.approx(variance, rel=0.05)


def test_small_steps_add_up_to_what_they_are_worth():
    """100 steps of 1e-3 from 1: a binomial count of units of 2**-8, here for 4,096 weights.

    Its mean is 0.9 and its variance 100 q (1 - q) 2**-16 with q = 1e-3 * 2**8. The mean is asked
    for within 4 standard errors, the variance within 10 %, again 4.5 standard errors.
    """
    params = jnp.ones(4096, jnp.bfloat16)
    tx = amp.stochastic_rounding(optax.sgd(1e-3), seed=1)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jnp.ones_like(params), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(100):
        params, state = step(params, state)
    q = 1e-3 * 2**8
    variance = 100 * q * (1 - q) * 2.0**-16
    values = np.asarray(params, np.float64)
    assert abs(values.mean() - 0.9) <= 4 * (variance / 4096) ** 0.5
    assert values.var() == pytest.approx(variance, rel=0.1)


def test_stochastic_rounding_draws_anew_at_every_step_leaf_and_seed():
    def drawn(seed, steps):
        tx = amp.stochastic_rounding(optax.sgd(1.0), seed=seed)
        params = {"a": jnp.ones(64, jnp.bfloat16), "b": jnp.ones(64, jnp.bfloat16)}
        state = tx.init(params)
        for _ in range(steps):
            grads = jax.tree.map(lambda p: jnp.full(p.shape, 2e-3), params)
            updates, state = tx.update(grads, state, params)
        return [bits(updates["a"]), bits(updates["b"])]

    samples = [*drawn(0, 1), *drawn(0, 2), *drawn(1, 1)]
    assert len({str(sample) for sample in samples}) == 6
    assert drawn(0, 2) == drawn(0, 2)


def test_stochastic_rounding_leaves_skipped_steps_and_float32_alone():
    params = {"half": jnp.asarray([1.0, -0.0, 3e38], jnp.bfloat16), "whole": jnp.ones(3)}
    tx = amp.stochastic_rounding(amp.loss_scaling(optax.sgd(1e-3), "dynamic"))
    state = tx.init(params)
    updates, state = tx.update(jax.tree.map(lambda p: p * jnp.nan, params), state, params)
    assert bits(optax.apply_updates(params, updates)) == bits(params)
    assert float(optax.tree.get(state, "loss_scale")) == 2.0**15
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
    np.testing.assert_array_equal(updates["whole"], np.float32(-1e-3 / 2**15))


def test_stochastic_rounding_refuses_float16():
    params = {"a": jnp.ones(2, jnp.float16), "b": jnp.ones(2)}
    with pytest.raises(TypeError, match=r"takes bfloat16 parameters, but float16 are \['a'\]: use"):
        amp.stochastic_rounding(optax.sgd(0.1)).init(params)
