"""Keras's own layers, built with its JAX backend."""

import os

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import numpy as np

L = keras.layers


def built(layer, *shapes):
    """The weights of a layer that is built for inputs of some shapes, by their paths in it."""
    keras.utils.set_random_seed(1)
    with jax.numpy_rank_promotion("allow"):
        layer.build(*shapes)
    return {w.path.split("/", 1)[-1]: np.asarray(w) for w in layer.weights}
