"""The handwritten digits that ship with scikit-learn, split once and for all."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

__all__ = ["Digits", "load_digits"]


class Digits(NamedTuple):
    """1,797 images of 8 x 8 pixels, three quarters of each class for training.

    Attributes:
        train_images: Float32 of shape (1347, 8, 8, 1), of mean 0 and standard deviation 1.
        train_labels: Int32 of shape (1347,).
        test_images: Float32 of shape (450, 8, 8, 1).
        test_labels: Int32 of shape (450,).
    """

    train_images: jax.Array
    train_labels: jax.Array
    test_images: jax.Array
    test_labels: jax.Array


def load_digits() -> Digits:
    """Loads the digits in a fixed stratified 75/25 split.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    pixels, labels = load(return_X_y=True)
    split = train_test_split(pixels, labels, test_size=0.25, stratify=labels, random_state=0)
    train_images, test_images = (jnp.asarray(part, jnp.float32) for part in split[:2])
    train_labels, test_labels = (jnp.asarray(part, jnp.int32) for part in split[2:])
    mean, deviation = train_images.mean(), train_images.std()
    shape = (-1, 8, 8, 1)
    return Digits(
        ((train_images - mean) / deviation).reshape(shape),
        train_labels,
        ((test_images - mean) / deviation).reshape(shape),
        test_labels,
    )
