"""Factories that are called as initializers, and initializers that are called without a key."""

import os
import re

os.environ["KERAS_BACKEND"] = "jax"

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import nnx

from jinit import initializers
from tests.initializers.test_factories import NAMES

KEY, X = jax.random.key(0), jnp.ones((2, 3))
MAKES = "{} makes an initializer and was called as one: write {}"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", [KEY, jax.random.PRNGKey(0), None], ids=["typed", "legacy", "none"])
def test_every_factory_called_as_an_initializer_says_what_to_write(name, key):
    factory = getattr(initializers, name)
    for arguments in [(key, (3, 4), jnp.float32), (key, (3, 4)), ((3, 4), jnp.float32)]:
        if name == "constant" and arguments[0] is not key:
            continue  # a value and its dtype
        with pytest.raises(TypeError, match="makes an initializer and was called as one: write "):
            factory(*arguments)
    with pytest.raises(TypeError, match="makes an initializer"):
        factory(key=key, shape=(3, 4))


@pytest.mark.parametrize("name", ["zeros", "ones", "he_normal", "orthogonal", "normal"])
def test_layers_of_flax_that_are_given_a_factory(name):
    text = re.escape(MAKES.format("", f"{getattr(initializers, name).__name__}()"))
    factory = getattr(initializers, name)
    with pytest.raises(TypeError, match=text):
        nn.Dense(4, kernel_init=factory).init(KEY, X)
    with pytest.raises(TypeError, match=text):
        nnx.Linear(3, 4, kernel_init=factory, rngs=nnx.Rngs(0))


WITHOUT_KEY = (
    "is called with a key and a shape, got {} alone: where a library calls initializers with the "
    "shape, hand it a function that has a key, for Haiku "
)


@pytest.mark.parametrize("name", ["zeros", "he_normal", "truncated_normal"])
def test_haiku_calls_initializers_without_a_key(name):
    def linear(init):
        return hk.transform(lambda x: hk.Linear(4, w_init=init)(x)).init(KEY, X)

    factory = getattr(initializers, name)
    with pytest.raises(TypeError, match="makes an initializer and was called as one"):
        linear(factory)
    with pytest.raises(TypeError, match=re.escape(WITHOUT_KEY.format([3, 4]))):
        linear(factory())
    written = linear(lambda shape, dtype: factory()(hk.next_rng_key(), shape, dtype))
    assert written["linear"]["w"].shape == (3, 4)


def test_keras_calls_initializers_without_a_key():
    for init in (initializers.he_normal(), initializers.he_normal):
        with pytest.raises(TypeError, match=re.escape(WITHOUT_KEY.format((3, 4)))):
            keras.layers.Dense(4, kernel_initializer=init).build((2, 3))
    drawn = lambda shape, dtype: initializers.he_normal()(KEY, shape, dtype)  # noqa: E731
    layer = keras.layers.Dense(4, kernel_initializer=drawn)
    layer.build((2, 3))
    np.testing.assert_array_equal(layer.kernel, initializers.he_normal()(KEY, (3, 4)))


def test_an_initializer_needs_a_shape():
    with pytest.raises(TypeError, match="is called with a key and a shape"):
        initializers.normal()(KEY)


def test_torchs_call_fills_nothing():
    for factory in (initializers.xavier_uniform, initializers.zeros_, initializers.orthogonal_):
        with pytest.raises(TypeError, match=r"fills no array in place|makes an initializer"):
            factory(np.ones((3, 4)))
    with pytest.raises(TypeError, match="constant fills no array in place: write array = constant"):
        initializers.constant_(np.ones((3, 4)), 0.5)
    assert initializers.constant(np.ones(3)).value == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    "take",
    [
        lambda init: initializers.scaled(init, 2.0),
        lambda init: initializers.with_fan(init, fan_in=3),
        lambda init: initializers.reinit(KEY, {"w": X}, {"w": init}),
    ],
)
def test_what_takes_initializers_says_so_too(take):
    with pytest.raises(
        TypeError, match=r"^lecun_normal makes initializers: write lecun_normal\(\)$"
    ):
        take(initializers.lecun_normal)


def test_the_dtype_of_a_factory_is_that_of_a_call_without_one():
    init = initializers.normal(std=0.5, dtype=jnp.bfloat16)
    assert repr(init) == "normal(mean=0.0, std=0.5, dtype='bfloat16')"
    assert init == initializers.normal(std=0.5, dtype="bfloat16")
    assert init(KEY, (3,)).dtype == initializers.scaled(init, 2.0)(KEY, (3,)).dtype == "bfloat16"
    np.testing.assert_array_equal(
        init(KEY, (3,), jnp.float32), initializers.normal(std=0.5)(KEY, (3,))
    )
    assert initializers.zeros(dtype="int8")(None, (2,)).dtype == "int8"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: initializers.normal(std="0.02"), "std must be a number, got '0.02'"),
        (lambda: initializers.uniform(low=None), "low must be a number, got None"),
        (lambda: initializers.variance_scaling("fan_in"), "scale must be a number, got 'fan_in'"),
        (
            lambda: initializers.orthogonal("relu"),
            "gain must be a number, got 'relu'; write gain=calculate_gain('relu')",
        ),
        (lambda: initializers.scaled(2.0, initializers.ones()),
         "scale must be a number, got constant(value=1.0)"),
        (lambda: initializers.dirac(1.5), "groups must be an integer, got 1.5"),
        (lambda: initializers.he_normal(in_axis=0.5), "in_axis must be an integer, got 0.5"),
        (
            lambda: initializers.constant("0.5"),
            "value must be a number or an array of numbers, got '0.5'",
        ),
        (
            lambda: initializers.constant(None),
            "value must be a number or an array of numbers, got None",
        ),
        (lambda: initializers.ones()(KEY, 3), "shape must be a tuple of integers, got 3"),
        (
            lambda: initializers.normal()(KEY, (2.0, 3)),
            "shape must be a tuple of integers, got (2.0, 3)",
        ),
        (
            lambda: initializers.he_normal()(0, (2, 3)),
            "normal(mean=0.0, std=1.0) needs a key, e.g. jax.random.key(0), got 0",
        ),
        (
            lambda: initializers.orthogonal()(np.int32(7), (3, 3)),
            "orthogonal(gain=1.0) needs a key, e.g. jax.random.key(0), got np.int32(7)",
        ),
        (
            lambda: initializers.scaled(jax.nn.initializers.normal, 2.0),
            "an initializer is a function of key, shape and dtype, got normal, which is not called "
            "with these; if it makes an initializer, call it: normal()",
        ),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_kind_is_named(call, message):
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        call()


def test_errors_of_traced_values_are_those_of_jax():
    for call in (
        lambda x: initializers.normal(std=x),
        lambda x: initializers.dirac(x.astype(int)),
        lambda x: initializers.ones()(KEY, (x.astype(int),)),
    ):
        with pytest.raises(jax.errors.JAXTypeError):
            jax.jit(call)(1.0)


ORDER = "; the order is key, params, initializers"
PATTERNS = "initializers must be a dict by pattern, such as {'*/bias': zeros()}, got "


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({"a": X}, KEY, {"a": initializers.zeros()}),
         f"key must be one such as jax.random.key(0), got a dict{ORDER}"),
        ((0, {"a": X}, {"a": initializers.zeros()}),
         f"key must be one such as jax.random.key(0), got an int{ORDER}"),
        ((KEY, {"a": X}, initializers.zeros()), f"{PATTERNS}a constant{ORDER}"),
        ((KEY, {"a": X}, [("a", initializers.zeros())]), f"{PATTERNS}a list{ORDER}"),
        ((KEY, {"a": X}, {("a",): initializers.zeros()}), f"{PATTERNS}a dict{ORDER}"),
    ],
)  # fmt: skip
def test_reinit_says_which_argument_is_wrong(arguments, message):
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        initializers.reinit(*arguments)
