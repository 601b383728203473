"""Real trainings at every level, in both half types, from five seeds; about five minutes' work.

The digits of scikit-learn through a network of convolutions and BatchNorm, and the help texts that
ship with Python through a transformer, character by character. The reference is a plain float32
training without the library. A level holds if its mean final loss over the seeds is within two of
the reference's standard deviations: of five seeds a difference of means that large has, for equal
distributions, a probability of about 0.8% (two-sided t of 2 * sqrt(5 / 2), 8 degrees of freedom).
"""

import functools
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jinit import amp
from jinit.demo.data import load_digits
from tests.amp.reference import dtypes

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("allow_rank_promotion")]

SEEDS, LAST, LENGTH = 5, 20, 32


class CNN(nn.Module):
    """Two convolutions, each with BatchNorm, and a head."""

    @nn.compact
    def __call__(self, images, train=True):
        x = images
        for features in (16, 32):
            x = nn.Conv(features, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(10)(x.reshape(len(x), -1))


class Transformer(nn.Module):
    """A causal language model of two pre-LN blocks."""

    vocabulary: int
    width: int = 32

    @nn.compact
    def __call__(self, tokens):
        places = self.param("places", nn.initializers.normal(0.02), (LENGTH, self.width))
        x = nn.Embed(self.vocabulary, self.width)(tokens) + places
        mask = nn.make_causal_mask(tokens)
        for _ in range(2):
            x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x), mask=mask)
            h = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
            x = x + nn.Dense(self.width)(h)
        return nn.Dense(self.vocabulary)(nn.LayerNorm()(x))


@functools.cache
def text():
    from pydoc_data.topics import topics

    letters = "".join(topics.values()).encode("ascii", "ignore")
    return np.unique(np.frombuffer(letters, np.uint8), return_inverse=True)[1].astype(np.int32)


@functools.cache
def images():
    with jax.ensure_compile_time_eval():  # the first call comes from a traced function
        digits = load_digits()
    return np.asarray(digits.train_images), np.asarray(digits.train_labels)


def draw_images(key):
    rows, labels = map(jnp.asarray, images())
    index = jax.random.randint(key, (64,), 0, len(rows))
    return rows[index], labels[index]


def draw_text(key):
    starts = jax.random.randint(key, (16, 1), 0, len(text()) - LENGTH)
    windows = jnp.asarray(text())[starts + jnp.arange(LENGTH + 1)]
    return windows[:, :-1], windows[:, 1:]


@dataclass(frozen=True)
class Task:
    model: nn.Module
    draw: Any
    rate: float
    steps: int


@functools.cache
def task(name):
    if name == "digits":
        return Task(CNN(), draw_images, 2e-3, 250)
    return Task(Transformer(int(text().max()) + 1), draw_text, 4e-3, 200)


def trained(job, apply_fn, tx, prepare, scale):
    """Trains from every seed; returns the losses of the last steps, and the last state."""

    def one(key):
        variables = prepare(job.model.init(key, job.draw(key)[0]))
        rest = {name: tree for name, tree in variables.items() if name != "params"}

        def step(carry, key):
            params, rest, state = carry
            batch, labels = job.draw(key)

            def objective(params):
                logits, updated = apply_fn({"params": params, **rest}, batch, mutable=[*rest])
                losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
                loss = losses.mean()
                return scale(loss, state), (loss, updated)

            grads, (loss, updated) = jax.grad(objective, has_aux=True)(params)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), updated, state), loss

        keys = jax.random.split(jax.random.fold_in(key, 1), job.steps)
        start = (variables["params"], rest, tx.init(variables["params"]))
        end, losses = jax.lax.scan(step, start, keys)
        return losses[-LAST:].mean(), end

    keys = jax.random.split(jax.random.key(0), SEEDS)
    return jax.jit(lambda keys: jax.lax.map(one, keys))(keys)


def optimizer(job):
    return optax.adam(optax.cosine_decay_schedule(job.rate, job.steps))


@functools.cache
def reference(name):
    job = task(name)
    plain = trained(job, job.model.apply, optimizer(job), lambda v: v, lambda loss, state: loss)
    return np.asarray(plain[0], np.float64)


def at_level(name, level, half):
    job = task(name)
    apply_fn, tx = amp.initialize(job.model, optimizer(job), level, half_dtype=half, verbosity=0)
    losses, end = trained(job, apply_fn, tx, apply_fn.policy.cast_to_param, amp.scale_loss)
    return np.asarray(losses, np.float64), end


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
@pytest.mark.parametrize("level", ["O0", "O1", "O2"])
@pytest.mark.parametrize("name", ["digits", "text"])
def test_a_level_ends_where_float32_does(name, level, half, record_property):
    expected, (losses, (params, rest, state)) = reference(name), at_level(name, level, half)
    record_property("losses", (expected.tolist(), losses.tolist()))
    print(f"{name} {level} {half}: {losses.mean():.4g}, float32 {expected.mean():.4g} "
          f"± {expected.std(ddof=1):.2g}")  # fmt: skip
    assert dtypes((params, rest)) == {"float32"}
    assert abs(losses.mean() - expected.mean()) <= 2 * expected.std(ddof=1)
    scales = np.asarray(optax.tree.get(state, "loss_scale"))
    dynamic = half == "float16" and level != "O0"
    assert (scales > 1).all() if dynamic else (scales == 1).all()


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["digits", "text"])
def test_pure_half_stays_finite(name, half, record_property):
    """O3 is there for speed: it must not diverge, and what it loses is reported."""
    expected, (losses, end) = reference(name), at_level(name, "O3", half)
    record_property("losses", (expected.tolist(), losses.tolist()))
    print(f"{name} O3 {half}: {losses.mean():.4g}, float32 {expected.mean():.4g} "
          f"± {expected.std(ddof=1):.2g}")  # fmt: skip
    assert np.isfinite(losses).all()
    assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(end))
    guess = {"digits": np.log(10), "text": 3.24}[name]  # the loss of the answers' frequencies
    assert losses.mean() < 0.9 * guess
