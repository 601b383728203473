"""Models to calibrate, and an independent measure of what a layer produces."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params


class MLP(nn.Module):
    depth: int
    width: int = 64
    activation: object = nn.relu

    @nn.compact
    def __call__(self, x):
        for _ in range(self.depth - 1):
            x = self.activation(nn.Dense(self.width)(x))
        return nn.Dense(10)(x)


class CNN(nn.Module):
    """Every kind of convolution."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(16, (3, 3))(x))
        x = nn.relu(nn.Conv(32, (3, 3), strides=2)(x))
        x = nn.relu(nn.ConvTranspose(16, (3, 3), strides=(2, 2))(x))
        x = nn.relu(nn.Conv(16, (3, 3), feature_group_count=16)(x))
        x = nn.relu(nn.Conv(16, (2, 2), kernel_dilation=2, feature_group_count=4)(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


def tanh_net(params, x):
    """A function that knows no framework, with biases that are not zero."""
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


def tanh_params(depth, width=64, seed=0):
    keys = jax.random.split(jax.random.key(seed), depth)
    return [
        {
            "w": 0.3 * jax.random.normal(key, (width, width)),
            "b": 0.5 + jax.random.normal(jax.random.fold_in(key, 1), (width,)),
        }
        for key in keys
    ]


def preactivations(module, variables, x):
    """What every Dense and Conv returned, by Flax's own capture: independent of jaxprs."""
    layers = (nn.Dense, nn.Conv, nn.ConvTranspose)
    _, state = module.apply(variables, x, capture_intermediates=lambda m, _: isinstance(m, layers))
    return [
        value
        for (value,) in jax.tree.leaves(
            state["intermediates"], is_leaf=lambda leaf: isinstance(leaf, tuple)
        )
    ]


def rms(x):
    return float(jnp.sqrt(jnp.mean(jnp.square(jnp.asarray(x, jnp.float32)))))


def random_loss(output, key):
    """A loss whose gradient at the output is N(0, 1)."""
    return jnp.sum(output * jax.random.normal(key, output.shape))


def products(fn, *args):
    """Counts the multiplications in all products of a function, a loop's by its length."""

    def count(jaxpr):
        total = 0
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                left = equation.invars[0].aval.shape
                inner = np.prod([left[axis] for axis in contracted])
                total += int(np.prod(equation.outvars[0].aval.shape) * inner)
            inside = sum(count(getattr(j, "jaxpr", j)) for j in jaxprs_in_params(equation.params))
            total += inside * equation.params.get("length", 1)
        return total

    return count(jax.make_jaxpr(fn)(*args).jaxpr)
