"""A default that is passed explicitly is explicit, though it is the same object."""

import copy
import dataclasses
import functools
import threading

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jinit
from jinit.defaults import register
from jinit.initializers import constant

KEY, X = jax.random.key(0), jnp.ones((2, 3, 4))
zeros_init = nn.initializers.zeros_init


class Handing(nn.Module):
    bias_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, bias_init=self.bias_init)(x)


class Making(nn.Module):
    make: object

    @nn.compact
    def __call__(self, x):
        return self.make()(x)


class Below(nn.Dense):
    pass


class Constructed(nn.Dense):
    def __init__(self, features, **given):
        super().__init__(features=features, **given)


def vmapped(**given):
    axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
    return nn.vmap(nn.Dense, in_axes=None, axis_size=2, **axes)(3, **given)


MODELS = {
    "Dense": lambda **given: nn.Dense(3, **given),
    "Conv": lambda **given: nn.Conv(3, (1,), **given),
    "ConvTranspose": lambda **given: nn.ConvTranspose(3, (1,), **given),
    "Einsum": lambda **given: nn.Einsum((4, 3), "bta,ac->btc", **given),
    "DenseGeneral": lambda **given: nn.DenseGeneral(3, **given),
    "partial": lambda **given: functools.partial(nn.Dense, **given)(3),
    "subclass": lambda **given: Below(3, **given),
    "constructor": lambda **given: Constructed(3, **given),
    "clone": lambda **given: nn.Dense(3, **given).clone(name="it"),
    "copied": lambda **given: copy.copy(nn.Dense(3, **given)),
    "deep copied": lambda **given: copy.deepcopy(nn.Dense(3, **given)),
    "module.copy": lambda **given: nn.Dense(3, **given).copy(),
    "jit": lambda **given: nn.jit(nn.Dense)(3, **given),
    "remat": lambda **given: nn.remat(nn.Dense)(3, **given),
    "vmap": vmapped,
    "inside": lambda **given: Making(lambda: nn.Dense(3, **given)),
    "jit inside": lambda **given: Making(lambda: nn.jit(nn.Dense)(3, **given)),
    "Sequential": lambda **given: nn.Sequential([nn.Dense(3, **given)]),
    "WeightNorm": lambda **given: Making(lambda: nn.WeightNorm(nn.Dense(3, **given))),
    "cell": lambda **given: nn.RNN(nn.OptimizedLSTMCell(3, **given)),
    "wrap": lambda **given: jinit.torch_defaults().wrap(Making(lambda: nn.Dense(3, **given))),
}


def biases(model):
    params = nn.meta.unbox(jax.jit(model.init)(KEY, X)["params"])
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [float(abs(leaf).max()) for path, leaf in leaves if path[-1].key == "bias"]


@pytest.mark.cases
@pytest.mark.parametrize("name", MODELS)
def test_zeros_init_is_explicit_and_nothing_is_not(name):
    with jinit.torch_defaults():
        explicit, untouched = MODELS[name](bias_init=zeros_init()), MODELS[name]()
        assert not any(biases(explicit))
        assert all(biases(untouched))


def test_by_position_and_the_bare_function():
    with jinit.torch_defaults():
        given = (3, True, None, jnp.float32, None, nn.Dense.kernel_init, nn.initializers.zeros)
        model = nn.Dense(*given)
        assert biases(model) == [0.0]
        kernel = model.init(KEY, X)["params"]["kernel"]
    np.testing.assert_array_equal(kernel, nn.Dense(3).init(KEY, X)["params"]["kernel"])


@pytest.mark.thorough
def test_a_forget_gate():
    cells = nn.LSTMCell, nn.OptimizedLSTMCell
    with jinit.keras_defaults():
        for cell in cells:
            assert not any(biases(nn.RNN(cell(8, bias_init=zeros_init()))))
            assert sorted(biases(nn.RNN(cell(8)))) == [0, 0, 0, 1]


def test_a_module_that_hands_it_on():
    with jinit.torch_defaults():
        assert biases(Handing(bias_init=zeros_init())) == [0.0]
        assert biases(Handing()) == [1.0]
    assert biases(jinit.torch_defaults().wrap(Handing(bias_init=zeros_init()))) == [0.0]


@pytest.mark.thorough
def test_flaxs_own_layers_hand_on_what_was_left_alone():
    plain = nn.MultiHeadDotProductAttention(2).init(KEY, X)["params"]["query"]["kernel"]
    with jinit.keras_defaults():
        explicit = nn.MultiHeadDotProductAttention(2, kernel_init=nn.Dense.kernel_init)
        left_alone = nn.MultiHeadDotProductAttention(2)
        drawn = [
            model.init(KEY, X)["params"]["query"]["kernel"] for model in (explicit, left_alone)
        ]
    np.testing.assert_array_equal(drawn[0], plain)
    assert not np.array_equal(drawn[1], plain)


def test_a_default_that_a_subclass_declares_anew():
    class Zero(nn.Dense):
        bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()

    class Under(Zero):
        pass

    with jinit.torch_defaults():
        for model in (Zero(3), Under(3), nn.jit(Under)(3)):
            assert biases(model) == [0.0]


def test_a_class_that_is_defined_inside():
    with jinit.torch_defaults():

        class Late(nn.Dense):
            pass

        assert biases(Late(3, bias_init=zeros_init())) == [0.0]
        assert all(biases(Late(3)))
    assert biases(Late(3)) == [0.0]


def test_numbers():
    with jinit.keras_defaults():
        norm = nn.LayerNorm(epsilon=nn.LayerNorm.epsilon)
        assert norm.epsilon == 1e-6
        out = norm.init_with_output(KEY, jnp.array([[-1e-3, 1e-3]]))[0]
    assert out[0, 1] == pytest.approx(0.5**0.5, rel=1e-3)


def test_a_registered_class():
    class Scale(nn.Module):
        scale_init: nn.initializers.Initializer = nn.initializers.ones

        @nn.compact
        def __call__(self, x):
            return self.param("scale", self.scale_init, ())

    with register(Scale, {"scale_init": constant(0.5)}), jinit.keras_defaults():
        assert Scale().init_with_output(KEY, X)[0] == 0.5
        assert Scale(nn.initializers.ones).init_with_output(KEY, X)[0] == 1


def test_nothing_is_different_outside():
    constructors = nn.Dense.__init__, nn.Module.__dict__["__init_subclass__"], Below.__init__
    found = []
    with jinit.torch_defaults():
        explicit = nn.Dense(3, bias_init=zeros_init())
        assert explicit == nn.Dense(3, bias_init=zeros_init())
        assert hash(explicit) == hash(copy.deepcopy(explicit))
        assert explicit != nn.Dense(3)
        thread = threading.Thread(
            target=lambda: found.append(nn.Dense(3, bias_init=zeros_init()).bias_init)
        )
        thread.start()
        thread.join()
    assert found == [nn.initializers.zeros]
    assert biases(explicit) == [0.0]
    assert constructors == (
        nn.Dense.__init__,
        nn.Module.__dict__["__init_subclass__"],
        Below.__init__,
    )


def test_wrong_arguments_are_refused_as_ever():
    with jinit.torch_defaults(), pytest.raises(TypeError, match="unexpected keyword argument 'n'"):
        nn.Dense(n=3)


def test_describe_says_who_decided():
    with jinit.torch_defaults():
        explicit = jinit.describe(nn.Dense(3, bias_init=zeros_init()), X)
        untouched = jinit.describe(nn.Dense(3), X)
    bias = explicit.parameters[0]
    assert (bias.distribution, bias.decided_by) == ("zeros()", "explicit")
    assert untouched.parameters[0].decided_by == "torch"
    assert explicit.notes == untouched.notes == ()


def test_describe_notes_what_cannot_be_told():
    text = (
        "default, or passed as the same object: {}. Of a layer constructed outside "
        "torch_defaults() nobody can tell, and it counts as left alone; construct it inside, or "
        "pass jinit.initializers.zeros()"
    )
    outside = nn.Sequential([nn.Dense(3, bias_init=zeros_init()), nn.Dense(3, use_bias=False)])
    with jinit.torch_defaults():
        described = jinit.describe(outside, X)
    assert described.notes == (text.format("layers[0].bias_init"),)
    assert str(described).endswith(described.notes[0])
    wrapped = jinit.describe(jinit.torch_defaults().wrap(nn.Dense(3)), X)
    assert wrapped.notes == (text.format("bias_init"),)
    assert jinit.describe(outside, X).notes == ()
    with jinit.keras_defaults():
        assert jinit.describe(outside, X).notes == ()


class Setting(nn.Dense):
    """Sets a field to Flax's own default, where it is asked to."""

    zero: bool = True

    def __post_init__(self):
        if self.zero:
            self.bias_init = zeros_init()
        super().__post_init__()


@pytest.mark.cases
@pytest.mark.parametrize("zero", [True, False])
def test_what_a_post_init_sets_is_explicit(zero):
    with jinit.torch_defaults():
        assert [bias == 0 for bias in biases(Setting(3, zero=zero))] == [zero]
        clone = Setting(2, zero=zero).clone(features=3)
        assert [bias == 0 for bias in biases(clone)] == [zero]
    within = jinit.torch_defaults().wrap(Making(lambda: Setting(3, zero=zero)))
    assert [bias == 0 for bias in biases(within)] == [zero]
    assert zero == (biases(Setting(3, zero=zero, bias_init=nn.initializers.ones)) == [0])


def test_a_layer_takes_all_of_its_fields_and_its_parent_by_name():
    fields = {f.name: getattr(nn.Dense(3), f.name) for f in dataclasses.fields(nn.Dense) if f.init}
    with jinit.torch_defaults():
        layer = nn.Dense(**{**fields, "parent": None, "name": None})
        positional = nn.Dense(*[fields[name] for name in list(fields)[:-2]], parent=None)
        assert biases(layer) == [0]
        assert biases(positional) == [0]
