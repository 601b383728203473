"""The six models, apart from any framework: their parameters, batches and losses.

Parameters are nested dicts of float32 arrays in the layout of the plain functions (which is linen's
but for the LSTM), statistics of norms are another such dict beside them.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

STEPS, BATCH = 20, 16
CLASSES, FEATURES, HIDDEN = 4, 8, 16
VOCABULARY, LENGTH, WIDTH, HEADS, BLOCKS = 11, 8, 16, 2, 2
SIDE, CHANNELS = 6, 8
LATENT, SERIES = 4, 5
EPSILON, MOMENTUM = 1e-5, 0.9
NORM = {"epsilon": EPSILON, "momentum": MOMENTUM}  # as linen and NNX call them


@dataclass(frozen=True)
class Options:
    """What differs between runs of one model.

    Args:
        rate: Of the dropout.
        draw: ``draw(key, shape)``, the noise of the VAE.
        keras: Whether the norms of linen and NNX are left to ``keras_defaults``.
    """

    rate: float = 0.25
    draw: Callable[..., Any] = jax.random.normal
    keras: bool = False

    @property
    def norm(self):
        return {} if self.keras else NORM


def same_noise(key, shape):
    """Noise that depends on no key, and is the same for every example of a batch."""
    return jnp.broadcast_to(jax.random.normal(jax.random.key(5), shape[-1:]), shape)


OWN = Options()  # each framework draws from its own stream
COMMON = Options(rate=0.0, draw=same_noise)  # equal in all frameworks


@dataclass(frozen=True)
class Recipe:
    """A model: what it starts from, what it is fed, and what it is to minimize.

    Args:
        name: Under which every framework has it.
        variables: ``variables(draw)`` with ``"params"`` and ``"statistics"``.
        batch: ``batch(draw)`` with ``"x"`` and ``"y"``.
        loss: ``loss(outputs, batch)``.
        rate: The learning rate.
    """

    name: str
    variables: Callable[..., Any]
    batch: Callable[..., Any]
    loss: Callable[..., Any]
    rate: float = 0.1

    @property
    def tx(self):
        """Momentum: a gradient that is only rounding stays as small as it is, as in no Adam."""
        return optax.sgd(self.rate, momentum=0.9)


class Draw:
    """Random float32 arrays in turn."""

    def __init__(self, seed):
        self._random = np.random.default_rng(seed)

    def __call__(self, *shape, scale=1.0, center=0.0):
        return np.float32(center + scale * self._random.normal(size=shape))

    def integers(self, most, *shape):
        return np.int32(self._random.integers(most, size=shape))

    def dense(self, *shape, fan_in=None, bias=()):
        kernel = {"kernel": self(*shape, scale=(fan_in or np.prod(shape[:-1])) ** -0.5)}
        return kernel | {"bias": self(*bias, scale=0.1)} if bias else kernel

    def norm(self, size):
        return {"scale": self(size, scale=0.1, center=1.0), "bias": self(size, scale=0.1)}

    def statistics(self, size):
        return {"mean": self(size, scale=0.1), "var": np.exp(self(size, scale=0.1))}


def mlp(draw):
    params = {
        "dense1": draw.dense(FEATURES, HIDDEN),
        "norm1": draw.norm(HIDDEN),
        "dense2": draw.dense(HIDDEN, HIDDEN),
        "norm2": draw.norm(HIDDEN),
        "head": draw.dense(HIDDEN, CLASSES, bias=(CLASSES,)),
    }
    return params, {name: draw.statistics(HIDDEN) for name in ("norm1", "norm2")}


def transformer(draw):
    split = (HEADS, WIDTH // HEADS)

    def block():
        into = {
            name: draw.dense(WIDTH, *split, fan_in=WIDTH, bias=split)
            for name in ("query", "key", "value")
        }
        return {
            "norm1": draw.norm(WIDTH),
            "attention": into | {"out": draw.dense(*split, WIDTH, bias=(WIDTH,))},
            "norm2": draw.norm(WIDTH),
            "dense1": draw.dense(WIDTH, 2 * WIDTH, bias=(2 * WIDTH,)),
            "dense2": draw.dense(2 * WIDTH, WIDTH, bias=(WIDTH,)),
        }

    params = {
        "embed": {"embedding": draw(VOCABULARY, WIDTH, scale=0.5)},
        "positions": draw(LENGTH, WIDTH, scale=0.5),
        **{f"blocks_{number}": block() for number in range(BLOCKS)},
        "norm": draw.norm(WIDTH),
        "head": draw.dense(WIDTH, VOCABULARY, bias=(VOCABULARY,)),
    }
    return params, {}


def resnet(draw):
    def convolution(before):
        return draw.dense(3, 3, before, CHANNELS)

    def block():
        return {
            "conv1": convolution(CHANNELS),
            "norm1": draw.norm(CHANNELS),
            "conv2": convolution(CHANNELS),
            "norm2": draw.norm(CHANNELS),
        }

    params = {
        "conv": convolution(3),
        "norm": draw.norm(CHANNELS),
        **{f"blocks_{number}": block() for number in range(BLOCKS)},
        "head": draw.dense(CHANNELS, CLASSES, bias=(CLASSES,)),
    }
    statistics = {"norm": draw.statistics(CHANNELS)}
    for number in range(BLOCKS):
        statistics[f"blocks_{number}"] = {
            name: draw.statistics(CHANNELS) for name in ("norm1", "norm2")
        }
    return params, statistics


def lstm(draw):
    """The gates in the order i, f, g, o."""
    params = {
        "lstm": {
            "input": draw.dense(SERIES, 4 * HIDDEN),
            "hidden": draw.dense(HIDDEN, 4 * HIDDEN, bias=(4 * HIDDEN,)),
        },
        "head": draw.dense(HIDDEN, CLASSES, bias=(CLASSES,)),
    }
    return params, {}


def vae(draw):
    params = {
        "encoder": draw.dense(FEATURES, HIDDEN, bias=(HIDDEN,)),
        "mean": draw.dense(HIDDEN, LATENT, bias=(LATENT,)),
        "variance": draw.dense(HIDDEN, LATENT, bias=(LATENT,)),
        "decoder": draw.dense(LATENT, HIDDEN, bias=(HIDDEN,)),
        "head": draw.dense(HIDDEN, FEATURES, bias=(FEATURES,)),
    }
    return params, {}


def tied(draw):
    params = {
        "embed": {"embedding": draw(VOCABULARY, WIDTH, scale=WIDTH**-0.5)},
        "dense1": draw.dense(WIDTH, 2 * WIDTH, bias=(2 * WIDTH,)),
        "dense2": draw.dense(2 * WIDTH, WIDTH, bias=(WIDTH,)),
    }
    return params, {}


def vectors(draw):
    x = draw(BATCH, FEATURES)
    return {"x": x, "y": np.int32(np.argmax(x[:, :CLASSES], 1))}


def images(draw):
    x = draw(BATCH, SIDE, SIDE, 3)
    brightness = np.pad(x.mean((1, 2)), ((0, 0), (0, 1)))  # the fourth class: none is bright
    return {"x": x, "y": np.int32(np.argmax(brightness, 1))}


def series(draw):
    x = draw(BATCH, LENGTH, SERIES)
    return {"x": x, "y": np.int32(np.argmax(x[:, -1, :CLASSES], 1))}


def tokens(draw):
    text = (draw.integers(VOCABULARY, BATCH, 1) + 3 * np.arange(LENGTH + 1)) % VOCABULARY
    return {"x": np.int32(text[:, :-1]), "y": np.int32(text[:, 1:])}


def cross_entropy(logits, batch):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
    return batch["weight"] * losses.mean()


def evidence(outputs, batch):
    """The negative evidence lower bound, but for constants."""
    reconstruction, mean, variance = outputs
    distance = ((reconstruction - batch["x"]) ** 2).mean()
    divergence = (jnp.exp(variance) + mean**2 - 1 - variance).mean() / 2
    return batch["weight"] * (distance + 0.1 * divergence)


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("mlp", mlp, vectors, cross_entropy),
        Recipe("transformer", transformer, tokens, cross_entropy),
        Recipe("resnet", resnet, images, cross_entropy),
        Recipe("lstm", lstm, series, cross_entropy),
        Recipe("vae", vae, vectors, evidence),
        Recipe("tied", tied, tokens, cross_entropy),
    )
}


@functools.cache
def begun(name):
    """The parameters and statistics that every framework starts from."""
    params, statistics = RECIPES[name].variables(Draw(0))
    return jax.tree.map(jnp.asarray, {"params": params, "statistics": statistics})


@functools.cache
def batches(name):
    """The batches of the training, each with its ``"key"`` and the weight of its loss."""
    draw = Draw(1)
    keys = jax.random.split(jax.random.key(2), STEPS)
    made = [RECIPES[name].batch(draw) for _ in range(STEPS)]
    return [
        batch | {"key": key, "weight": np.float32(1)} for batch, key in zip(made, keys, strict=True)
    ]
