"""A training run that is interrupted, saved by orbax and gone on with is the run it was."""

import functools
import random

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from sklearn.datasets import load_digits

from jinit.reproducibility import get_rng_state, load_rng_state, register_key, seed_all

STEPS, BATCH = 24, 32
OPTIMIZER = optax.adam(1e-2)


@functools.cache
def digits():
    images, labels = load_digits(return_X_y=True)
    return images.astype(np.float32) / 16, labels


@jax.jit
def update(params, opt_state, key, images, labels):
    def loss(params):
        hidden = jax.nn.relu(images @ params["hidden"])
        kept = jax.random.bernoulli(key, 0.8, hidden.shape)
        logits = jnp.where(kept, hidden / 0.8, 0) @ params["out"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    updates, opt_state = OPTIMIZER.update(jax.grad(loss)(params), opt_state)
    return optax.apply_updates(params, updates), opt_state


class Run:
    """Shuffles by NumPy, augments by Python, drops out by JAX; each step draws odd numbers."""

    def __init__(self, seed):
        seed_all(seed)
        self.key, first, second = jax.random.split(jax.random.key(seed), 3)
        self.params = {
            "hidden": 0.1 * jax.random.normal(first, (64, 32)),
            "out": 0.1 * jax.random.normal(second, (32, 10)),
        }
        self.opt_state = OPTIMIZER.init(self.params)

    def batch(self):
        images, labels = digits()
        chosen = np.random.permutation(len(images))[:BATCH]
        noise = np.random.standard_normal((BATCH + 1, 64))[1:].astype(np.float32)
        shift = random.randrange(-1, 2)
        brightness = np.float32(1 + 0.1 * random.gauss(0, 1))
        return np.roll(images[chosen], shift, 1) * brightness + 0.1 * noise, labels[chosen]

    def train(self, steps):
        for _ in range(steps):
            self.key, dropout = jax.random.split(self.key)
            arguments = (self.params, self.opt_state, dropout, *self.batch())
            self.params, self.opt_state = update(*arguments)
        return self

    def set_key(self, key):
        self.key = key

    def save(self, path):
        end = register_key("dropout", lambda: self.key, self.set_key)
        with ocp.StandardCheckpointer() as orbax:
            orbax.save(path, self.tree())
        end()
        return self

    def restore(self, path):
        end = register_key("dropout", lambda: self.key, self.set_key)
        with ocp.StandardCheckpointer() as orbax:
            saved = orbax.restore(path, self.tree())
        self.params, self.opt_state = saved["params"], saved["opt_state"]
        load_rng_state(saved["rng"])
        end()
        return self

    def tree(self):
        return {"params": self.params, "opt_state": self.opt_state, "rng": get_rng_state()}


@pytest.fixture(scope="module")
def uninterrupted():
    return jax.tree.map(np.asarray, Run(7).train(STEPS).params)


@pytest.mark.cases
@pytest.mark.parametrize("step", [0, 1, 12, 15, STEPS - 1, STEPS])
def test_an_interrupted_run_ends_as_if_it_were_not(tmp_path, uninterrupted, step):
    Run(7).train(step).save(tmp_path / "checkpoint")
    went_on = Run(1000 + step).restore(tmp_path / "checkpoint").train(STEPS - step)
    jax.tree.map(np.testing.assert_array_equal, went_on.params, uninterrupted)


@pytest.mark.parametrize("part", ["python", "numpy", "keys"])
def test_every_stream_matters_to_the_run(uninterrupted, part):
    """The test above would fail if one of them were not restored."""
    run = Run(7).train(3)
    state = get_rng_state({"dropout": run.key})
    seed_all(1)
    other = get_rng_state({"dropout": jax.random.key(1)})
    run.key = load_rng_state([{**state[0], part: other[0][part]}])["dropout"]
    changed = run.train(STEPS - 3).params["hidden"]
    assert np.abs(changed - uninterrupted["hidden"]).max() > 1e-3
