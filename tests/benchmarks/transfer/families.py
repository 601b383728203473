"""The networks and the data."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jinit.demo.data import load_digits

__all__ = ["FAMILIES", "Batch", "Family", "Size"]

BATCH = 64
SEQUENCES, LENGTH = 8, 32
HEAD_WIDTH = 32

Size = tuple[int, int]
"""Width and depth."""

Batch = tuple[jax.Array, jax.Array]
"""Inputs and labels."""


class Layer(nn.Module):
    """A dense layer and relu."""

    width: int
    kernel_init: Any

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return nn.relu(nn.Dense(self.width, kernel_init=self.kernel_init)(x)), None


class ResidualBlock(nn.Module):
    """Two dense layers beside a skip, without normalization."""

    width: int
    kernel_init: Any

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        y = nn.relu(nn.Dense(self.width, kernel_init=self.kernel_init)(x))
        return x + nn.Dense(self.width, kernel_init=self.kernel_init)(y), None


class TransformerBlock(nn.Module):
    """Causal attention and a gelu MLP, a LayerNorm before each."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        y, mask = nn.LayerNorm()(x), nn.make_causal_mask(x[..., 0])
        x = x + nn.MultiHeadDotProductAttention(self.width // HEAD_WIDTH)(y, mask=mask)
        y = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
        return x + nn.Dense(self.width)(y), None


def stacked(block: type[nn.Module], count: int, **fields: Any) -> Any:
    """Scans a block over its layers, so that a network compiles alike at every depth."""
    axes = {"params": 0, "intermediates": 0}
    scanned = nn.scan(block, variable_axes=axes, split_rngs={"params": True}, length=count)
    return scanned(**fields, name="stack")


class MLP(nn.Module):
    """A chain of dense layers with relu between them; depth counts them all."""

    width: int
    depth: int
    kernel_init: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        fields = {"width": self.width, "kernel_init": self.kernel_init}
        x = nn.relu(nn.Dense(self.width, kernel_init=self.kernel_init)(x))
        x, _ = stacked(Layer, self.depth - 2, **fields)(x, None)
        return nn.Dense(10, kernel_init=self.kernel_init, name="head")(x)


class ResidualMLP(nn.Module):
    """A residual stream; depth counts the dense layers of its blocks, two each."""

    width: int
    depth: int
    kernel_init: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(self.width, kernel_init=self.kernel_init)(x)
        fields = {"width": self.width, "kernel_init": self.kernel_init}
        x, _ = stacked(ResidualBlock, self.depth // 2, **fields)(x, None)
        return nn.Dense(10, kernel_init=self.kernel_init, name="head")(x)


class Transformer(nn.Module):
    """A pre-LN language model; depth counts its blocks."""

    width: int
    depth: int
    kernel_init: Any

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        vocabulary = int(load_text().max()) + 1
        places = self.param("places", nn.initializers.normal(0.02), (LENGTH, self.width))
        x = nn.Embed(vocabulary, self.width)(tokens) + places
        x, _ = stacked(TransformerBlock, self.depth, width=self.width)(x, None)
        return nn.Dense(vocabulary, name="head")(nn.LayerNorm()(x))


@functools.cache
def load_images() -> tuple[np.ndarray, np.ndarray]:
    """Loads the training images of the digits as vectors, and their digits."""
    with jax.ensure_compile_time_eval():  # the first call may come from a traced function
        digits = load_digits()
    return np.asarray(digits.train_images).reshape(-1, 64), np.asarray(digits.train_labels)


@functools.cache
def load_text() -> np.ndarray:
    """Loads the help texts that ship with Python, as indices into the characters they use."""
    from pydoc_data.topics import topics

    text = "".join(topics.values()).encode("ascii", "ignore")
    return np.unique(np.frombuffer(text, np.uint8), return_inverse=True)[1].astype(np.int32)


def draw_images(key: jax.Array) -> Batch:
    """Draws a batch of images and their digits."""
    images, labels = map(jnp.asarray, load_images())
    index = jax.random.randint(key, (BATCH,), 0, len(images))
    return images[index], labels[index]


def draw_text(key: jax.Array) -> Batch:
    """Draws sequences of characters, and for each character the next."""
    text = jnp.asarray(load_text())
    starts = jax.random.randint(key, (SEQUENCES, 1), 0, len(text) - LENGTH)
    windows = text[starts + jnp.arange(LENGTH + 1)]
    return windows[:, :-1], windows[:, 1:]


@dataclass(frozen=True)
class Family:
    """Networks of one kind in several sizes.

    Attributes:
        title: What tables and figure call it.
        build: A function of width, depth and kernel_init that returns the module.
        draw: A function of a key that returns a batch.
        widths: The sizes that differ in width, the smallest of the family first.
        depths: The sizes that differ in depth.
        defaults: The initializations that train with plain Adam.
        guess: The loss of a model that knows only how frequent each answer is.
        steps: The length of a training.
        reach: How many factors of two around the best learning rate are tried.
    """

    title: str
    build: Callable[..., nn.Module]
    draw: Callable[[jax.Array], Batch]
    widths: tuple[Size, ...]
    depths: tuple[Size, ...]
    defaults: tuple[str, ...] = ("flax",)
    guess: float = math.log(10)
    steps: int = 200
    reach: int = 2

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Every size once, the smallest first."""
        return tuple(dict.fromkeys((*self.widths, *self.depths)))


FOUR_TO_64 = tuple((128, depth) for depth in (4, 8, 16, 32, 64))

FAMILIES = {
    "mlp": Family(
        "MLP",
        MLP,
        draw_images,
        widths=tuple((width, 4) for width in (64, 128, 256, 512, 1024)),
        depths=FOUR_TO_64,
        defaults=("flax", "he"),
    ),
    "residual": Family(
        "residual MLP",
        ResidualMLP,
        draw_images,
        widths=tuple((width, 4) for width in (64, 128, 256, 512)),
        depths=FOUR_TO_64,
    ),
    "transformer": Family(
        "pre-LN transformer",
        Transformer,
        draw_text,
        widths=tuple((width, 2) for width in (64, 128, 256)),
        depths=tuple((64, depth) for depth in (2, 4, 8, 16)),
        guess=3.24,
        steps=150,
        reach=1,
    ),
}
