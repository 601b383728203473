"""A thousand steps with an inf or a nan in any leaf: only the scaler's own fields may change."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jinit import amp
from tests.amp.reference import ApexScaler, bits

STEPS, INTERVAL = 1000, 3
PARAMS = {
    "kernel": jnp.linspace(-1.0, 1.0, 35).reshape(5, 7),
    "bias": jnp.array([-0.0, 0.0, 1e-3]),
    "scale": jnp.float32(2.0),
}
SIZES = [leaf.size for leaf in jax.tree.leaves(PARAMS)]
INNER = {
    "adam": lambda: optax.adam(1e-2),
    "clip_adamw": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2)),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(
        optax.cosine_decay_schedule(1e-2, STEPS)
    ),
    "multi_steps": lambda: optax.MultiSteps(optax.adam(1e-2), 3).gradient_transformation(),
}


def injections(seed):
    """Returns for every step what is added to each gradient, flat: 0, or somewhere inf or nan."""
    rng = np.random.default_rng(seed)
    added = np.zeros((STEPS, sum(SIZES)), np.float32)
    bad = rng.random(STEPS) < 0.3
    # The leaf first, so that a scalar is hit as often as a matrix.
    leaves = rng.integers(len(SIZES), size=STEPS)
    places = np.cumsum([0, *SIZES])[leaves] + (rng.random(STEPS) * np.take(SIZES, leaves)).astype(
        int
    )
    values = rng.choice(np.float32([np.nan, np.inf, -np.inf]), STEPS)
    added[bad, places[bad]] = values[bad]
    return bad, added


def split(flat):
    leaves, tree = jax.tree.flatten(PARAMS)
    parts = jnp.split(flat, np.cumsum(SIZES)[:-1])
    return tree.unflatten([p.reshape(leaf.shape) for p, leaf in zip(parts, leaves, strict=True)])


def as_integers(tree):
    def view(leaf):
        return jax.lax.bitcast_convert_type(leaf, jnp.int32) if leaf.dtype == jnp.float32 else leaf

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

    return jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), (noise, added))


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


def test_a_constant_scale_skips_nothing_by_default():
    bad, added = injections(seed=0)
    tx = amp.loss_scaling(optax.sgd(0.1), 64.0)
    (params, _), (_, fields) = jax.jit(lambda a: run(tx, "float32", 0 * a, a))(
        np.nan_to_num(added, nan=np.inf, posinf=np.inf, neginf=-np.inf)
    )
    assert not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert set(np.asarray(fields.loss_scale)) == {64.0}
    assert not fields.last_finite[np.flatnonzero(bad)[0] :].all()
