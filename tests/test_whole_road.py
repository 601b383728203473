"""From init to a resumed training through every part, bit for bit what was not interrupted."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import jinit
from jinit import amp

pytestmark = pytest.mark.usefixtures("allow_rank_promotion")

STEPS, HALFWAY = 60, 25


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.relu(nn.LayerNorm()(nn.Dense(16)(x)))
        return nn.Dense(4)(x)


def batch(key):
    return jax.random.normal(key, (32, 8))


def dummy_loss(logits, key):
    return jnp.sum(logits * jax.random.normal(key, logits.shape))


class Training:
    """A training as a script builds it anew each time it starts."""

    def __init__(self, mode, level, **options):
        model, key = jinit.keras_defaults().wrap(Net()), jax.random.key(0)
        variables = model.init(key, batch(key))
        result = jinit.calibrate(variables, model.apply, batch, dummy_loss, mode=mode)
        tx = optax.chain(
            optax.clip_by_global_norm(10.0),
            optax.scale_by_adam(),
            result.transform(),
            optax.add_decayed_weights(1e-3),
            optax.scale_by_learning_rate(0.1),
        )
        apply_fn, self.tx = amp.initialize(
            result.apply_fn, tx, level, half_dtype="float16", verbosity=0, **options
        )
        variables = apply_fn.policy.cast_to_param(result.params)
        self.constants = {name: tree for name, tree in variables.items() if name != "params"}
        self.start = variables["params"], self.tx.init(variables["params"])

        @jax.jit
        def step(state, number):
            params, opt_state = state
            x = batch(jax.random.fold_in(jax.random.key(1), number))
            labels = jnp.argmax(x[:, :4], -1)

            def objective(params):
                logits = apply_fn({"params": params, **self.constants}, x)
                losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
                return 1000.0 * losses.mean()  # at the first scales float16 overflows

            loss, grads = amp.value_and_grad(objective, opt_state)(params)
            updates, opt_state = self.tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        self.step = step

    def run(self, state, first, last):
        losses = []
        for number in range(first, last):
            state, loss = self.step(state, number)
            losses.append(float(loss))
        return state, losses


def save_and_load(folder, state, like):
    """Writes a checkpoint and reads it into the form of a state that was just initialized."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "checkpoint", state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "checkpoint", like)


@pytest.mark.cases
@pytest.mark.parametrize("mode", ["fold", "explicit"])
@pytest.mark.parametrize(
    ("level", "options"),
    [("O1", {}), ("O2", {}), ("O2", {"master_weights": "optimizer"})],
    ids=["O1", "O2", "O2-masters"],
)
def test_a_resumed_training_is_the_one_that_was_not_interrupted(tmp_path, mode, level, options):
    whole = Training(mode, level, **options)
    expected, losses = whole.run(whole.start, 0, STEPS)
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
    scale = optax.tree.get(expected[1], "loss_scale")
    assert 1 < scale < 2.0**16  # some steps overflowed and were skipped

    first = Training(mode, level, **options)
    halfway, before = first.run(first.start, 0, HALFWAY)
    again = Training(mode, level, **options)
    loaded = save_and_load(tmp_path, halfway, again.start)
    resumed, after = again.run(loaded, HALFWAY, STEPS)
    assert before + after == losses
    pairs = zip(jax.tree.leaves(resumed), jax.tree.leaves(expected), strict=True)
    for new, old in pairs:
        assert new.dtype == old.dtype
        assert np.asarray(new).tobytes() == np.asarray(old).tobytes()
