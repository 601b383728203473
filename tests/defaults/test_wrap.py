"""Modules that carry the defaults with them."""

import copy

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import jinit
from tests.defaults.test_contexts import FLAX, KERAS, SMALL, Norm, apply


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.LayerNorm()(nn.Dense(4)(x)))


@pytest.mark.thorough
def test_a_wrapped_model_is_the_same_model():
    model = Classifier(name="classifier")
    wrapped = jinit.keras_defaults().wrap(model)
    assert isinstance(wrapped, Classifier)
    assert (type(wrapped).__name__, wrapped.name) == ("Classifier", "classifier")
    plain = model.init(jax.random.key(0), SMALL)
    inside = wrapped.init(jax.random.key(0), SMALL)
    assert jax.tree.map(jnp.shape, plain) == jax.tree.map(jnp.shape, inside)
    assert wrapped == jinit.keras_defaults().wrap(model)
    assert hash(wrapped) == hash(jinit.keras_defaults().wrap(model))
    for copied in (copy.copy(wrapped), copy.deepcopy(wrapped), wrapped.clone()):
        np.testing.assert_array_equal(copied.apply(inside, SMALL), wrapped.apply(inside, SMALL))


def test_a_wrapped_model_inside_another():
    class Parent(nn.Module):
        child: nn.Module

        @nn.compact
        def __call__(self, x):
            return self.child(x), Norm()(x)

    child = jinit.keras_defaults().wrap(Norm())
    inner, outer = Parent(child).apply({}, SMALL)
    assert (inner[0, 1], outer[0, 1]) == (KERAS, FLAX)


def test_a_model_is_wrapped_in_setup():
    class Parent(nn.Module):
        def setup(self):
            self.child = jinit.keras_defaults().wrap(Classifier())

        def __call__(self, x):
            return self.child(x)

    assert "child" in Parent().init(jax.random.key(0), SMALL)["params"]


@pytest.mark.cases
@pytest.mark.parametrize(
    "build",
    [Norm, lambda: nn.Sequential([Norm()]), nn.remat(Norm), nn.jit(Norm), nn.jit(nn.remat(Norm))],
)
def test_what_can_be_wrapped(build):
    model = jinit.keras_defaults().wrap(build())
    assert apply(model) == KERAS
    assert jax.jit(lambda x: apply(model, x))(SMALL) == KERAS
    assert apply(build()) == FLAX


def test_a_wrapped_rnn():
    wrapped = jinit.keras_defaults().wrap(nn.RNN(nn.LSTMCell(3)))
    x = jnp.ones((1, 4, 2))
    variables = wrapped.init(jax.random.key(0), x)
    assert (variables["params"]["cell"]["hf"]["bias"] == 1).all()
    assert jax.jit(wrapped.apply)(variables, x).shape == (1, 4, 3)


def test_a_wrapped_model_trains_outside_the_context():
    model = jinit.keras_defaults().wrap(Classifier())
    x = jax.random.normal(jax.random.key(1), (8, 3))
    y = jnp.arange(8) % 2
    state = TrainState.create(
        apply_fn=model.apply,
        params=model.init(jax.random.key(0), x)["params"],
        tx=optax.sgd(0.1),
    )

    @jax.jit
    def step(state):
        def loss(params):
            logits = state.apply_fn({"params": params}, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        value, gradient = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(grads=gradient), value

    losses = []
    for _ in range(20):
        state, value = step(state)
        losses.append(float(value))
    assert losses[-1] < losses[0]


def test_the_program_is_that_of_explicit_arguments():
    class Explicit(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(nn.LayerNorm(epsilon=1e-3)(nn.Dense(4)(x)))

    variables = Explicit().init(jax.random.key(0), SMALL)
    wrapped = jinit.keras_defaults().wrap(Classifier())
    assert str(jax.make_jaxpr(wrapped.apply)(variables, SMALL)) == str(
        jax.make_jaxpr(Explicit().apply)(variables, SMALL)
    )


class Encoder(nn.Module):
    def setup(self):
        self.dense, self.norm = nn.Dense(4), nn.LayerNorm()

    def encode(self, x):
        return self.norm(self.dense(x))

    def __call__(self, x):
        return self.encode(x)


@pytest.mark.cases
@pytest.mark.parametrize(
    "method", ["encode", Encoder.encode, lambda module, x: module.norm(module.dense(x))]
)
def test_a_method_passed_as_a_function_gets_the_defaults_too(method):
    x = jax.random.normal(jax.random.key(1), (2, 6))
    model = jinit.keras_defaults().wrap(Encoder())
    expected = model.init(jax.random.key(0), x)
    variables = model.init(jax.random.key(0), x, method=method)
    chex.assert_trees_all_equal(variables, expected)
    chex.assert_trees_all_equal(model.apply(variables, x, method=method), model.apply(variables, x))
