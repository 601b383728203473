"""What a newcomer may pass in place of what a function takes, and what the error says."""

import os

os.environ["KERAS_BACKEND"] = "jax"

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

from jinit import amp
from jinit.amp.levels import resolve_half_dtype

from ..reproducibility.conftest import bits  # noqa: TID252 (placeholder)

PARAMS = {"w": jnp.ones(2)}
TX = amp.loss_scaling(optax.sgd(0.1))
STATE = TX.init(PARAMS)
TWO = amp.loss_scaling(optax.sgd(0.1), num_losses=2).init(PARAMS)


def mlp(params, x):
    return x @ params["w"]


def square(params):
    return (params["w"] ** 2).sum()


VALUE, GRADS = amp.value_and_grad(square, STATE)(PARAMS)
