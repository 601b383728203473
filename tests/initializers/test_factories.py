"""Initializers as values: equality, hashing, repr, and bad arguments."""

import copy
import pickle
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jinit import initializers

FACTORIES = [getattr(initializers, n) for n in initializers.__all__ if n != "calculate_gain"]


def make(factory):
    return factory(2.0) if factory is initializers.constant else factory()


def test_the_twelve():
    assert len(initializers.__all__) == 12
    assert initializers.__all__ == sorted(initializers.__all__)


@pytest.mark.parametrize("factory", FACTORIES)
def test_equal_arguments_make_equal_initializers(factory):
    init = make(factory)
    assert init == make(factory)
    assert hash(init) == hash(make(factory))
    assert pickle.loads(pickle.dumps(init)) == copy.deepcopy(init) == init


def test_different_initializers_differ():
    inits = [make(factory) for factory in FACTORIES]
    assert len(set(inits)) == len(inits)
    assert initializers.normal(std=2) != initializers.normal(std=3)


@pytest.mark.parametrize(
    ("init", "text"),
    [
        (initializers.zeros(), "constant(value=0.0)"),
        (initializers.constant(np.arange(2)), "constant(value=(0, 1))"),
        (initializers.normal(std=jnp.float32(0.5)), "normal(mean=0.0, std=0.5)"),
        (
            initializers.kaiming_normal(),
            "kaiming_normal(negative_slope=None, mode='fan_in', nonlinearity='leaky_relu')",
        ),
        (initializers.xavier_uniform(), "xavier_uniform(gain=1.0)"),
        (initializers.lecun_normal(in_axis=[0, 1]), "lecun_normal(in_axis=(0, 1))"),
    ],
)
def test_the_repr_is_the_call(init, text):
    assert repr(init) == text
    assert hash(init) is not None


def test_a_module_that_holds_one_is_traced_once():
    traces = []

    class Counted(nn.Module):
        kernel_init: initializers.normal

        @nn.compact
        def __call__(self):
            traces.append(1)
            return self.param("w", self.kernel_init, (3,))

    jitted = nn.jit(Counted)
    for _ in range(3):
        jitted(initializers.normal(std=0.1)).init(jax.random.key(0))
    assert len(traces) == 1
    jitted(initializers.normal(std=0.2)).init(jax.random.key(0))
    assert len(traces) == 2


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: initializers.kaiming_normal(0.2, nonlinearity="relu"),
            ValueError,
            "nonlinearity 'relu' takes no parameter, got 0.2; "
            "a negative slope needs nonlinearity 'leaky_relu'",
        ),
        (
            lambda: initializers.kaiming_uniform(mode="fan"),
            ValueError,
            "unknown mode 'fan'; legal modes: fan_in, fan_out, fan_avg, fan_geo_avg",
        ),
        (lambda: initializers.normal(std=-1), ValueError, "std must not be negative, got -1.0"),
        (lambda: initializers.normal(float("nan")), ValueError, "mean must be finite, got nan"),
        (
            lambda: initializers.uniform(1, 0),
            ValueError,
            "high must not lie below low, got [1.0, 0.0)",
        ),
        (
            lambda: initializers.xavier_normal(gain=float("inf")),
            ValueError,
            "gain must be finite, got inf",
        ),
        (
            lambda: initializers.normal()(jax.random.key(0), (2,), "int32"),
            TypeError,
            "normal(mean=0.0, std=1.0) draws floating-point numbers, it cannot make a int32",
        ),
        (
            lambda: initializers.normal()(None, (2,)),
            TypeError,
            "normal(mean=0.0, std=1.0) needs a key, e.g. jax.random.key(0)",
        ),
    ],
)
def test_bad_arguments(call, kind, message):
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        call()
