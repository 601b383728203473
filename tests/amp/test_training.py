"""Small trainings through all of amp: real overflows, real regrowth."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jinit import amp
from tests.amp.reference import bits, dtypes
from tests.amp.regression import PARAMS, X, Y, mlp, train


def reference_losses():
    apply_fn, tx = amp.initialize(mlp, optax.adam(0.02), "O0", verbosity=0)
    _, (losses, *_) = train(apply_fn, tx, apply_fn.policy.cast_to_param(PARAMS))
    return losses


def test_a_scale_that_starts_too_high_halves_trains_and_grows_again():
    apply_fn = amp.initialize(mlp, None, "O2", half_dtype="float16", verbosity=0)
    tx = amp.loss_scaling(optax.adam(0.02), init_scale=2.0**24, growth_interval=40)
    (params, _), (losses, scales, finite, weights) = train(apply_fn, tx, PARAMS)
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


@pytest.mark.cases
@pytest.mark.parametrize("half", ["bfloat16", "float16"])
@pytest.mark.parametrize("level", ["O1", "O2", "O3"])
def test_every_level_trains(level, half):
    apply_fn, tx = amp.initialize(mlp, optax.adam(0.02), level, half_dtype=half, verbosity=0)
    (params, _), (losses, *_) = train(apply_fn, tx, apply_fn.policy.cast_to_param(PARAMS))
    assert np.isfinite(losses).all()
    assert dtypes(params) == {half if level == "O3" else "float32"}
    assert losses[-1] < (0.15 if level == "O3" else 0.03) * losses[0]


@pytest.mark.thorough
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
