"""Small trainings through the whole room: real overflows, real regrowth."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jinit import amp
from tests.amp.reference import bits, dtypes

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 8)).astype(np.float32)
Y = np.tanh(X @ RNG.normal(size=(8, 3)).astype(np.float32) / 3)
PARAMS = {
    "w1": RNG.normal(size=(8, 32)).astype(np.float32) / 8**0.5,
    "w2": RNG.normal(size=(32, 3)).astype(np.float32) / 32**0.5,
}
STEPS = 200


def mlp(params, x):
    return jnp.tanh(x @ params["w1"]) @ params["w2"]


def train(apply_fn, tx, params):
    """Returns the parameters, and per step the loss, the scale and whether all was finite."""

    def step(carry, _):
        params, state = carry

        def loss_fn(params):
            loss = ((apply_fn(params, X) - Y) ** 2).mean()
            return amp.scale_loss(loss, state), loss

        grads, loss = jax.grad(loss_fn, has_aux=True)(params)
        updates, after = tx.update(grads, state, params)
        record = loss, state.loss_scale, after.last_finite, bits_of(params)
        return (optax.apply_updates(params, updates), after), record

    run = jax.jit(lambda params, state: jax.lax.scan(step, (params, state), None, STEPS))
    (params, _), records = run(params, tx.init(params))
    return params, *map(np.asarray, records)


def bits_of(params):
    return jnp.concatenate([leaf.ravel().astype(jnp.float32) for leaf in jax.tree.leaves(params)])


def reference_losses():
    apply_fn, tx = amp.initialize(mlp, optax.adam(0.02), "O0", verbosity=0)
    return train(apply_fn, tx, apply_fn.policy.cast_to_param(PARAMS))[1]


def test_a_scale_that_starts_too_high_halves_trains_and_grows_again():
    apply_fn = amp.initialize(mlp, None, "O2", half_dtype="float16", verbosity=0)
    tx = amp.loss_scaling(optax.adam(0.02), init_scale=2.0**24, growth_interval=40)
    params, losses, scales, finite, weights = train(apply_fn, tx, PARAMS)
    skips = np.flatnonzero(~finite[:-1])
    first = int(np.argmax(finite))
    assert first >= 3
    assert (skips[:first] == np.arange(first)).all()
    assert (scales[: first + 1] == 2.0 ** (24 - np.arange(first + 1))).all()
    assert all(weights[i + 1].tobytes() == weights[i].tobytes() for i in skips)
    assert all(
        weights[i + 1].tobytes() != weights[i].tobytes() for i in np.flatnonzero(finite[:-1])
    )
    assert scales[first + 40] == 2 * scales[first]
    assert dtypes(params) == {"float32"}
    assert losses[-1] < 0.02 * losses[0]
    assert losses[-1] < 2 * reference_losses()[-1 - len(skips)]


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
@pytest.mark.parametrize("level", ["O1", "O2", "O3"])
def test_every_level_trains(level, half):
    apply_fn, tx = amp.initialize(mlp, optax.adam(0.02), level, half_dtype=half, verbosity=0)
    params, losses, *_ = train(apply_fn, tx, apply_fn.policy.cast_to_param(PARAMS))
    assert np.isfinite(losses).all()
    assert dtypes(params) == {half if level == "O3" else "float32"}
    assert losses[-1] < (0.15 if level == "O3" else 0.03) * losses[0]


def test_o0_is_plain_float32_training_bit_for_bit():
    apply_fn, tx = amp.initialize(mlp, optax.adam(0.02), "O0", verbosity=0)
    loss_fn = lambda params: ((mlp(params, X) - Y) ** 2).mean()  # noqa: E731
    plain = optax.adam(0.02)
    theirs = ours = jax.tree.map(jnp.asarray, PARAMS)
    inner, state = plain.init(theirs), tx.init(ours)
    for _ in range(3):
        updates, inner = plain.update(jax.grad(loss_fn)(theirs), inner, theirs)
        theirs = optax.apply_updates(theirs, updates)

        def scaled(params, state):
            return amp.scale_loss(((apply_fn(params, X) - Y) ** 2).mean(), state)

        updates, state = tx.update(jax.grad(scaled)(ours, state), state, ours)
        ours = optax.apply_updates(ours, updates)
    assert bits(ours) == bits(theirs)
