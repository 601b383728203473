"""How models are built must not matter: each is drawn as if Keras's initializers were passed.

Every architecture is written once, with the fields that its layers are given as an argument. With
nothing given, inside the context, it must equal the same architecture with Keras's values given
explicitly, outside: bit for bit, for the keys are the same.
"""

import copy
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jinit
from jinit.initializers import uniform, xavier_uniform
from tests.defaults.models import MODELS, Compact, Nested, OtherMethod

KERAS = {"kernel_init": xavier_uniform()}
# Every layer has one shape, so that most programs are compiled once for the whole file.
X = jnp.ones((2, 6))


def leaves(variables):
    return jax.tree.map(np.asarray, nn.meta.unbox(variables))


def same(a, b):
    a, b = leaves(a), leaves(b)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def init(model, *inputs, **kwargs):
    return model.init(jax.random.key(3), *(inputs or (X,)), **kwargs)


@pytest.mark.cases
@pytest.mark.parametrize("name", MODELS)
def test_every_way_to_build_a_model(name):
    build = MODELS[name]
    with jinit.keras_defaults():
        inside = init(build({}))
    assert same(inside, init(build(KERAS)))
    assert not same(inside, init(build({})))
    assert same(init(jinit.keras_defaults().wrap(build({}))), inside)


@pytest.mark.cases
@pytest.mark.parametrize(
    "name",
    ["nested", "scan", "vmap", "nn.jit of a layer", "subclass with its own call", "attention"],
)
def test_what_was_passed_explicitly_wins(name):
    given = {"kernel_init": nn.initializers.lecun_normal()}
    plain = init(MODELS[name](given))
    with jinit.keras_defaults():
        assert same(init(MODELS[name](given)), plain)


def test_the_kernels_of_other_layers():
    conv = nn.Conv(4, (3,))
    with jinit.keras_defaults():
        assert same(init(conv, X[..., None]), init(nn.Conv(4, (3,), **KERAS), X[..., None]))
        embed = init(nn.Embed(5, 3), jnp.arange(2))
    expected = init(nn.Embed(5, 3, embedding_init=uniform(low=-0.05, high=0.05)), jnp.arange(2))
    assert same(embed, expected)


def test_a_subclass_with_a_default_of_its_own_wins():
    class Zeros(nn.Dense):
        kernel_init: nn.initializers.Initializer = nn.initializers.zeros_init()

    class Loose(nn.LayerNorm):
        epsilon: float = 0.5

    with jinit.keras_defaults():
        assert not init(Zeros(3))["params"]["kernel"].any()
        x = jnp.array([[-1.0, 1.0]])
        assert Loose().apply(init(Loose(), x), x)[0, 1] == pytest.approx(1 / 1.5**0.5)


def test_a_subclass_with_other_arguments_and_derived_fans():
    class Reordered(nn.DenseGeneral):
        @nn.compact
        def __call__(self, mask, inputs):
            return super().__call__(inputs)

    x = jnp.ones((3, 2, 5))
    with jinit.keras_defaults():
        kernel = init(Reordered(7, batch_dims=0), None, x)["params"]["kernel"]
        by_name = nn.DenseGeneral(7, batch_dims=(0,)).init(jax.random.key(3), inputs=x)
    np.testing.assert_array_equal(kernel, by_name["params"]["kernel"])
    limit = (6 / (5 + 3 * 7)) ** 0.5
    assert 0.9 * limit < abs(kernel).max() <= limit


def test_a_literal_equal_to_the_default_is_explicit():
    x = jnp.array([[-1e-3, 1e-3]])
    explicit = nn.LayerNorm(epsilon=float("1e-6"))
    with jinit.keras_defaults():
        assert explicit.apply(init(explicit, x), x)[0, 1] == pytest.approx(0.5**0.5, rel=1e-3)


def test_the_default_object_itself_counts_as_nothing_where_it_was_passed_outside():
    default = nn.Dense.__dataclass_fields__["kernel_init"].default
    outside = nn.Dense(3, kernel_init=default)
    plain = init(outside)
    with jinit.keras_defaults():
        assert same(init(outside), init(nn.Dense(3, **KERAS)))
        assert same(init(nn.Dense(3, kernel_init=default)), plain)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, nn.Module.clone, nn.Module.copy])
def test_copies_are_still_left_alone(copied):
    with jinit.keras_defaults():
        assert same(init(copied(nn.Dense(3))), init(nn.Dense(3, **KERAS)))


def test_a_pickled_norm_is_as_documented_no_longer_left_alone():
    loaded = pickle.loads(pickle.dumps(nn.LayerNorm()))
    x = jnp.array([[-1e-3, 1e-3]])
    with jinit.keras_defaults():
        y = loaded.apply(init(loaded, x), x)
    assert y[0, 1] == pytest.approx(0.5**0.5, rel=1e-3)


def test_a_layer_is_no_longer_left_alone_once_pickled():
    with pytest.raises((AttributeError, pickle.PicklingError), match="init"):
        pickle.dumps(nn.Dense(3))
    cloudpickle = pytest.importorskip("cloudpickle")
    loaded = pickle.loads(cloudpickle.dumps(nn.Dense(3)))
    with jinit.keras_defaults():
        assert same(init(loaded), init(nn.Dense(3, kernel_init=nn.initializers.lecun_normal())))


def test_layers_that_were_built_outside():
    model = nn.Sequential([nn.Dense(6), nn.relu, nn.Dense(6)])
    with jinit.keras_defaults():
        inside = init(model)
    assert same(inside, init(nn.Sequential([nn.Dense(6, **KERAS), nn.relu, nn.Dense(6, **KERAS)])))


def test_batch_apply():
    class Model(nn.Module):
        given: dict

        @nn.compact
        def __call__(self, x):
            return nn.BatchApply(nn.Dense(6, **self.given))(x)

    x = jnp.ones((2, 3, 6))
    with jinit.keras_defaults():
        assert same(init(Model({}), x), init(Model(KERAS), x))


def test_partitioned_initializers_are_explicit_and_stay_boxed():
    boxed = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
    plain = init(nn.Dense(3, kernel_init=boxed))
    with jinit.keras_defaults():
        inside = init(nn.Dense(3, kernel_init=boxed))
    assert isinstance(inside["params"]["kernel"], nn.Partitioned)
    assert same(inside, plain)


def test_spectral_norm_wraps_a_layer():
    class Model(nn.Module):
        given: dict

        @nn.compact
        def __call__(self, x):
            return nn.SpectralNorm(nn.Dense(3, **self.given))(x, update_stats=False)

    with jinit.keras_defaults():
        assert same(init(Model({})), init(Model(KERAS)))


@pytest.mark.thorough
def test_attention_with_norms_and_explicit_kernels():
    given = {"kernel_init": nn.initializers.lecun_normal()}
    x = jnp.ones((1, 4, 8))
    plain = init(nn.MultiHeadAttention(2, normalize_qk=True, **given), x)
    with jinit.keras_defaults(norm_epsilon=None):
        assert same(init(nn.MultiHeadAttention(2, normalize_qk=True, **given), x), plain)


@pytest.mark.exact
def test_the_other_ways_to_initialize():
    expected = init(Nested(KERAS))
    model, key = Nested({}), jax.random.key(3)
    with jinit.keras_defaults():
        assert same(jax.jit(model.init)(key, X), expected)
        assert same(model.init(key, X), expected)
        assert same(model.init_with_output(key, X)[1], expected)
        assert same(model.lazy_init(key, jax.ShapeDtypeStruct(X.shape, X.dtype)), expected)
        assert "Dense_0" in model.tabulate(key, X)
        shapes = jax.eval_shape(model.init, key, X)
        assert model.bind(expected)(X).shape == (2, 6)
    assert same(jinit.keras_defaults()(model.init)(key, X), expected)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, expected)
    method = OtherMethod({})
    with jinit.keras_defaults():
        inside = method.init(key, X, method="encode")
    assert same(inside, init(OtherMethod(KERAS)))


def test_remat_differentiates_what_it_applies():
    model = nn.remat(Compact)({})
    with jinit.keras_defaults():
        variables = init(model)
        gradient = jax.grad(lambda v: model.apply(v, X).sum())(variables)
    plain = Compact({})
    assert same(gradient, jax.grad(lambda v: plain.apply(v, X).sum())(variables))


def test_half_precision_parameters():
    with jinit.keras_defaults():
        kernel = init(nn.Dense(4, param_dtype=jnp.bfloat16))["params"]["kernel"]
        wide = init(nn.Dense(4))["params"]["kernel"]
    np.testing.assert_array_equal(kernel, wide.astype(jnp.bfloat16))
