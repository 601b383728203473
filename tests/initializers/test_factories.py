"""Initializers as values: equality, hashing, repr, docstrings, and bad arguments."""

import copy
import doctest
import importlib
import pickle
import pkgutil
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jinit import initializers

FUNCTIONS = {"calculate_gain", "reinit", "with_fan"}
NAMES = sorted(set(initializers.__all__) - FUNCTIONS)
NEEDED = {"constant": (2.0,), "sparse": (0.5,), "scaled": (initializers.normal(), 0.5)}
SYNONYMS = {
    "glorot_normal": "xavier_normal",
    "glorot_uniform": "xavier_uniform",
    "he_normal": "kaiming_normal",
    "he_uniform": "kaiming_uniform",
    "identity": "eye",
}
each_name = pytest.mark.parametrize("name", NAMES)
key = jax.random.key(0)


def make(name):
    return getattr(initializers, name)(*NEEDED.get(name, ()))


def test_the_names_are_sorted_and_there():
    assert initializers.__all__ == sorted(initializers.__all__)
    for name, other in SYNONYMS.items():
        assert getattr(initializers, name) is getattr(initializers, other)


@each_name
def test_equal_arguments_make_equal_initializers(name):
    init = make(name)
    assert init == make(name)
    assert hash(init) == hash(make(name))
    assert pickle.loads(pickle.dumps(init)) == copy.deepcopy(init) == init


def test_different_initializers_differ():
    inits = [make(name) for name in NAMES if name not in SYNONYMS]
    assert len(set(inits)) == len(inits)
    assert initializers.normal(std=2) != initializers.normal(std=3)


@pytest.mark.parametrize(
    ("init", "text"),
    [
        (initializers.zeros(), "constant(value=0.0)"),
        (initializers.constant(np.arange(2)), "constant(value=(0, 1))"),
        (initializers.normal(std=jnp.float32(0.5)), "normal(mean=0.0, std=0.5)"),
        (
            initializers.truncated_normal(relative=True),
            "truncated_normal(mean=0.0, std=1.0, low=-2.0, high=2.0, relative=True)",
        ),
        (
            initializers.kaiming_normal(truncated=True),
            "kaiming_normal(negative_slope=None, mode='fan_in', nonlinearity='leaky_relu', "
            "truncated=True)",
        ),
        (initializers.glorot_uniform(), "xavier_uniform(gain=1.0)"),
        (initializers.lecun_normal(in_axis=[0, 1]), "lecun_normal(in_axis=(0, 1))"),
        (
            initializers.variance_scaling(),
            "variance_scaling(scale=1.0, mode='fan_in', distribution='truncated_normal')",
        ),
        (initializers.orthogonal(out_axis=[1]), "orthogonal(gain=1.0, out_axis=(1,))"),
        (
            initializers.scaled(initializers.eye(), 2),
            "scaled(init=eye(gain=1.0), scale=2.0)",
        ),
    ],
)
def test_the_repr_is_the_call(init, text):
    assert repr(init) == text
    assert eval(text, vars(initializers)) == init


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
        jitted(initializers.normal(std=0.1)).init(key)
    assert len(traces) == 1
    jitted(initializers.normal(std=0.2)).init(key)
    assert len(traces) == 2


@pytest.mark.cases
@pytest.mark.parametrize(
    ("init", "make", "x"),
    [
        (initializers.he_normal(), lambda init: nn.Dense(5, kernel_init=init), (1, 4)),
        (initializers.orthogonal(), lambda init: nn.Dense(5, kernel_init=init), (1, 4)),
        (initializers.delta_orthogonal(), lambda init: nn.Conv(5, (3,), kernel_init=init), (9, 4)),
        (initializers.uniform(), lambda init: nn.Dense(5, bias_init=init), (1, 4)),
    ],
    ids=["dense", "orthogonal", "convolution", "bias"],
)
def test_they_stand_in_linen_layers(init, make, x):
    leaves = make(init).init(key, jnp.ones(x))["params"]
    name = "bias" if isinstance(init, initializers.uniform) else "kernel"
    shape = leaves[name].shape
    boxed = make(nn.with_partitioning(init, (None,) * len(shape))).init(key, jnp.ones(x))
    np.testing.assert_array_equal(boxed["params"][name].value, leaves[name])
    assert abs(leaves[name]).max() > 0


@pytest.mark.parametrize("init", [initializers.he_normal(), initializers.orthogonal()], ids=repr)
def test_they_stand_in_nnx_layers(init):
    kernel = nnx.Linear(4, 5, kernel_init=init, rngs=nnx.Rngs(0)).kernel[...]
    np.testing.assert_array_equal(kernel, init(nnx.Rngs(0).params(), (4, 5)))


@pytest.mark.cases
@pytest.mark.parametrize("module", [m.name for m in pkgutil.iter_modules(initializers.__path__)])
def test_the_examples_in_the_docstrings_run(module):
    module = importlib.import_module(f"jinit.initializers.{module}")
    assert doctest.testmod(module).failed == 0


@each_name
def test_a_docstring_says_what_it_takes_and_gives(name):
    sections = set(re.findall(r"^ *(\w+):$", getattr(initializers, name).__doc__, re.MULTILINE))
    assert {"Returns", "Example", "Source"} <= sections
    assert "Raises" in sections or name in ("constant", "zeros", "ones")


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: initializers.kaiming_normal(negative_slope=0.2, nonlinearity="relu"),
            ValueError,
            "nonlinearity 'relu' takes no parameter, got 0.2; "
            "those that take one: leaky_relu (its negative_slope), elu (its alpha)",
        ),
        (
            lambda: initializers.kaiming_uniform(mode="fan"),
            ValueError,
            "unknown mode 'fan'; legal modes: fan_in, fan_out, fan_avg, fan_geo_avg",
        ),
        (
            lambda: initializers.variance_scaling(distribution="half_normal"),
            ValueError,
            "unknown distribution 'half_normal'; "
            "legal distributions: normal, truncated_normal, uniform",
        ),
        (
            lambda: initializers.variance_scaling(-1.0),
            ValueError,
            "scale must not be negative, got -1.0",
        ),
        (lambda: initializers.normal(std=-1), ValueError, "std must not be negative, got -1.0"),
        (
            lambda: initializers.normal(mean=float("nan")),
            ValueError,
            "mean must be finite, got nan",
        ),
        (
            lambda: initializers.truncated_normal(std=0),
            ValueError,
            "std must be positive, got 0.0",
        ),
        (
            lambda: initializers.truncated_normal(low=2, high=2),
            ValueError,
            "high must lie above low, got [2.0, 2.0]",
        ),
        (
            lambda: initializers.truncated_normal(mean=1.0, std=0.5, low=2e6, high=3e6),
            ValueError,
            "[2000000.0, 3000000.0] begins 4e+06 standard deviations from the mean 1.0: it must "
            "begin within 1e+06",
        ),
        (
            lambda: initializers.uniform(low=1, high=0),
            ValueError,
            "high must not lie below low, got [1.0, 0.0)",
        ),
        (
            lambda: initializers.xavier_normal(gain=float("inf")),
            ValueError,
            "gain must be finite, got inf",
        ),
        (
            lambda: initializers.xavier_uniform(gain=-1),
            ValueError,
            "the gain must not be negative, got -1.0",
        ),
        (
            lambda: initializers.orthogonal(float("nan")),
            ValueError,
            "gain must be finite, got nan",
        ),
        (
            lambda: initializers.normal()(key, (2,), "int32"),
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
