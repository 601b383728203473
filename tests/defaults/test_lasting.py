"""The warning that epsilon and momentum would be lost between init and apply."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import jinit
from jinit.defaults import LostAtApplyWarning

X, KEY = jnp.ones((2, 3)), jax.random.key(0)


def model_class(*layers):
    """A new class of models, which has not been warned about."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            for layer in layers:
                x = layer()(x)
            return x

    return Model


def batch_norm():
    return nn.BatchNorm(use_running_average=False)


@pytest.fixture
def warned():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def test_the_text():
    Model = model_class(lambda: nn.Dense(3), nn.LayerNorm)
    with (
        pytest.warns(LostAtApplyWarning) as caught,
        jinit.keras_defaults(),
    ):
        Model().init(KEY, X)
    assert [str(w.message) for w in caught] == [
        "Model: the LayerNorm at 'LayerNorm_0' takes epsilon=0.001 from keras_defaults() only "
        "while they are active. If apply runs outside, use keras_defaults(...).wrap(model), or "
        "pass None for what Flax's own value should be"
    ]


def test_both_numbers_are_named():
    Model = model_class(batch_norm)
    with (
        pytest.warns(LostAtApplyWarning, match="momentum=0.9 from torch_defaults"),
        jinit.torch_defaults(norm_epsilon=None),
    ):
        Model().init(KEY, X)
    Model = model_class(batch_norm)
    with (
        pytest.warns(LostAtApplyWarning, match="momentum=0.5 and epsilon=0.001"),
        jinit.keras_defaults(batchnorm_momentum=0.5),
    ):
        Model().init(KEY, X)


def test_the_decorator_warns_too_and_under_jit():
    Model = model_class(nn.LayerNorm)
    with pytest.warns(LostAtApplyWarning):
        jinit.keras_defaults()(jax.jit(Model().init))(KEY, X)


def test_once_for_each_class_of_models(warned):
    Model, Other = model_class(nn.LayerNorm, nn.LayerNorm), model_class(nn.LayerNorm)
    with jinit.keras_defaults():
        Model().init(KEY, X)
        Model().init(KEY, X)
        Other().init(KEY, X)
    with jinit.keras_defaults():
        Model(name="again").init(KEY, X)
    assert len(warned) == 2


@pytest.mark.parametrize(
    "layers",
    [
        [lambda: nn.Dense(3)],
        [nn.RMSNorm],
        [lambda: nn.LayerNorm(epsilon=1e-4)],
        [nn.PReLU],
    ],
)
def test_nothing_is_lost_without_such_a_norm(warned, layers):
    with jinit.keras_defaults():
        model_class(*layers)().init(KEY, X)
    assert not warned


def test_what_equals_flaxs_own_value_is_not_lost(warned):
    with jinit.keras_defaults(norm_epsilon=None):
        model_class(batch_norm)().init(KEY, X)
    with jinit.torch_defaults(batchnorm_momentum=None):
        model_class(batch_norm)().init(KEY, X)
    assert not warned


def test_wrap_and_the_whole_process_lose_nothing(warned):
    Model = model_class(nn.LayerNorm)
    jinit.keras_defaults().wrap(Model()).init(KEY, X)
    with jinit.global_keras_initializers():
        Model().init(KEY, X)
    with jinit.keras_defaults():
        jinit.keras_defaults().wrap(Model()).init(KEY, X)
        jinit.describe(Model(), X)
    assert not warned


def test_apply_inside_says_nothing(warned):
    Model = model_class(nn.LayerNorm)
    variables = Model().init(KEY, X)
    with jinit.keras_defaults():
        Model().apply(variables, X)
    assert not warned


def test_a_context_that_the_model_opens_is_there_at_apply(warned):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            with jinit.keras_defaults():
                return nn.LayerNorm()(x)

    Model().init(KEY, X)
    assert not warned
