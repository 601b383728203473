"""The network of the demonstration, and the three ways it is initialized."""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax

import jinit

__all__ = ["INITIALIZATIONS", "Initialization", "PlainCNN", "initialize", "random_loss"]

Initialization = Literal["flax", "he", "jinit"]
INITIALIZATIONS: dict[Initialization, str] = {
    "flax": "Flax's defaults",
    "he": "He's initialization",
    "jinit": "jinit",
}


class PlainCNN(nn.Module):
    """A chain of two convolutions and dense layers, without normalization or skips.

    Attributes:
        depth: The number of layers, head included; at least 3.
        channels: The channels of the convolutions.
        width: The width of the dense layers.
        kernel_init: Another initializer of every kernel than Flax's.
    """

    depth: int = 4
    channels: int = 16
    width: int = 128
    kernel_init: Callable[..., Any] = nn.linear.default_kernel_init

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images of shape (batch, 8, 8, 1) to logits of shape (batch, 10)."""
        for strides in (1, 2):
            x = nn.Conv(self.channels, (3, 3), strides, kernel_init=self.kernel_init)(x)
            x = nn.relu(x)
        x = x.reshape(x.shape[0], -1)
        for _ in range(self.depth - 3):
            x = nn.relu(nn.Dense(self.width, kernel_init=self.kernel_init)(x))
        return nn.Dense(10, kernel_init=self.kernel_init)(x)


def random_loss(logits: jax.Array, key: jax.Array) -> jax.Array:
    """A loss whose gradient at every logit is N(0, 1), to measure a network with."""
    return (logits * jax.random.normal(key, logits.shape)).sum()


def initialize(
    how: Initialization, depth: int, draw: Callable[[jax.Array], jax.Array], key: jax.Array
) -> tuple[PlainCNN, Any, jinit.Calibration | None]:
    """Draws the network's variables.

    Args:
        how: ``flax``: by Flax's own defaults; ``he``: every kernel N(0, 2 / fan_in);
            ``jinit``: Keras's defaults, calibrated for Adam.
        depth: The number of layers.
        draw: A function of a key that returns a batch of images.
        key: A PRNG key.

    Returns:
        The module, its variables, and for ``jinit`` the calibration.
    """
    if how == "he":
        model = PlainCNN(depth, kernel_init=jinit.initializers.kaiming_normal())
    else:
        model = PlainCNN(depth)
    images = draw(key)
    if how != "jinit":
        return model, model.init(key, images), None
    variables = jinit.keras_defaults()(model.init)(key, images)
    result = jinit.calibrate(variables, model.apply, draw, random_loss, key=key)
    return model, result.params, result
