"""Users' own layers in the table."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jinit
from jinit.defaults import Derived, register
from jinit.initializers import constant, ones, xavier_uniform, zeros

KEY, X = jax.random.key(0), jnp.ones((1, 3))


class Scale(nn.Module):
    scale_init: nn.initializers.Initializer = nn.initializers.zeros
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x):
        return x * self.param("scale", self.scale_init, x.shape) + self.epsilon


class NnxScale(nnx.Module):
    def __init__(self, size, *, scale_init=nn.initializers.zeros, rngs):
        self.scale = nnx.Param(scale_init(rngs.params(), (size,), jnp.float32))


def scale(defaults):
    with defaults:
        return float(Scale().init(KEY, X)["params"]["scale"][0, 0])


@pytest.mark.thorough
def test_a_linen_class_until_it_is_undone():
    undo = register(Scale, {"scale_init": constant(0.5)})
    assert scale(jinit.keras_defaults()) == 0.5
    assert scale(jinit.torch_defaults()) == 0
    undo()
    undo()
    assert scale(jinit.keras_defaults()) == 0
    with register(Scale, {"scale_init": ones()}, "torch"):
        assert scale(jinit.torch_defaults()) == 1
        assert scale(jinit.keras_defaults()) == 0
    assert scale(jinit.torch_defaults()) == 0


def test_an_nnx_class_and_its_subclass():
    class Mine(NnxScale):
        pass

    with register(NnxScale, {"scale_init": constant(0.5)}), jinit.keras_defaults():
        assert NnxScale(2, rngs=nnx.Rngs(0)).scale[0] == 0.5
        assert Mine(2, rngs=nnx.Rngs(0)).scale[0] == 0.5
        assert NnxScale(2, scale_init=ones(), rngs=nnx.Rngs(0)).scale[0] == 1
    assert NnxScale(2, rngs=nnx.Rngs(0)).scale[0] == 0
    assert "__init__" not in vars(Mine)


def test_an_nnx_subclass_goes_before_its_base():
    class Mine(nnx.Linear):
        pass

    with register(Mine, {"kernel_init": constant(0.5)}):
        with jinit.keras_defaults():
            assert Mine(2, 2, rngs=nnx.Rngs(0)).kernel[0, 0] == 0.5
            assert nnx.Linear(2, 2, rngs=nnx.Rngs(0)).kernel[0, 0] != 0.5
        assert "__init__" not in vars(Mine)


def test_a_linen_subclass_goes_before_its_base():
    class Mine(nn.Dense):
        pass

    with register(Mine, {"kernel_init": constant(0.5)}), jinit.keras_defaults():
        assert Mine(2).init(KEY, X)["params"]["kernel"][0, 0] == 0.5
        assert nn.Dense(2).init(KEY, X)["params"]["kernel"][0, 0] != 0.5


def test_a_row_of_the_table_is_replaced():
    with register(nn.Dense, {"kernel_init": zeros()}):
        rows = [r for r in jinit.keras_defaults().table if r.layer is nn.Dense]
        assert [row.value for row in rows] == [zeros()]
        with jinit.keras_defaults():
            assert not nn.Dense(2).init(KEY, X)["params"]["kernel"].any()
    assert jinit.keras_defaults().table.rows_of(nn.Dense)[0].value == xavier_uniform()


def test_the_table_is_the_same_again_once_undone():
    before = jinit.keras_defaults()
    with register(Scale, {"scale_init": ones()}):
        inside = jinit.keras_defaults()
        assert "Scale" in str(inside.table)
        assert jinit.keras_defaults().table is inside.table
        assert scale(before) == 0
    assert jinit.keras_defaults().table is before.table
    assert scale(inside) == 1


def test_none_and_false_leave_alone_what_was_registered():
    with register(Scale, {"scale_init": ones(), "epsilon": 0.25}):
        assert {r.field for r in jinit.keras_defaults().table.rows_of(Scale)} == {
            "scale_init",
            "epsilon",
        }
        (row,) = jinit.keras_defaults(False).table.rows_of(Scale)
        assert (row.field, row.value) == ("epsilon", 0.25)
        (row,) = jinit.keras_defaults(norm_epsilon=None).table.rows_of(Scale)
        assert row.field == "scale_init"
        model = jinit.keras_defaults().wrap(Scale())
        assert model.apply(model.init(KEY, X), X)[0, 0] == 1.25


def test_a_derived_value():
    by_size = Derived(lambda layer, x: constant(1 / x.shape[-1]), "1/size")
    nnx_by_size = Derived(lambda arguments: constant(1 / arguments.size), "1/size")
    with (
        register(Scale, {"scale_init": by_size}),
        register(NnxScale, {"scale_init": nnx_by_size}),
        jinit.keras_defaults(),
    ):
        assert Scale().init(KEY, jnp.ones((1, 4)))["params"]["scale"][0, 0] == 0.25
        assert NnxScale(4, rngs=nnx.Rngs(0)).scale[0] == 0.25


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: register(Scale(), {}),
            TypeError,
            f"register takes a class of flax.linen or flax.nnx modules, got {Scale()!r}",
        ),
        (
            lambda: register(int, {}),
            TypeError,
            "register takes a class of flax.linen or flax.nnx modules, got <class 'int'>",
        ),
        (
            lambda: register(Scale, {"kernel_init": ones(), "bias_init": ones()}),
            ValueError,
            "Scale has no field 'kernel_init', 'bias_init' with a default; "
            "register the class that declares it",
        ),
        (
            lambda: register(NnxScale, {"size": 3}),
            ValueError,
            "NnxScale has no field 'size' with a default; register the class that declares it",
        ),
        (
            lambda: register(nn.Dense, {"kernel_init": "glorot"}),
            TypeError,
            "Dense.kernel_init takes an initializer, a function of key, shape and dtype, "
            "got 'glorot'",
        ),
        (
            lambda: register(nn.Dense, {"bias_init": ones(), "kernel_init": 0.5}),
            TypeError,
            "Dense.kernel_init takes an initializer, a function of key, shape and dtype, got 0.5",
        ),
        (
            lambda: register(nnx.Linear, {"kernel_init": xavier_uniform}),
            TypeError,
            "Linear.kernel_init takes an initializer, a function of key, shape and dtype, "
            f"got {xavier_uniform!r}",
        ),
        (
            lambda: register(nnx.Linear, {"bias_init": ones}),
            TypeError,
            "Linear.bias_init takes an initializer, a function of key, shape and dtype, "
            f"got {ones!r}",
        ),
        (
            lambda: register(nn.LayerNorm, {"epsilon": "1e-3"}),
            TypeError,
            "LayerNorm.epsilon takes a number, got '1e-3'",
        ),
        (
            lambda: register(nn.BatchNorm, {"momentum": True}),
            TypeError,
            "BatchNorm.momentum takes a number, got True",
        ),
        (
            lambda: register(nn.LSTMCell, {"gate_fn": 1}),
            TypeError,
            "LSTMCell.gate_fn takes a function, got 1",
        ),
        (
            lambda: register(nn.Dense, {"use_bias": 0.5}),
            TypeError,
            "Dense.use_bias takes a bool, got 0.5",
        ),
        (
            lambda: register(nn.Dense, {"dtype": ones()}),
            TypeError,
            "Dense.dtype takes no initializer, got constant(value=1.0)",
        ),
        (
            lambda: register(nn.Dense, ones()),
            TypeError,
            "register takes fields as a dict by name, such as {'kernel_init': zeros()}, "
            "got constant(value=1.0)",
        ),
        (
            lambda: register(Scale, {}, "jax"),
            ValueError,
            "unknown system 'jax'; legal: keras, torch",
        ),
    ],
)
def test_bad_input(call, kind, message):
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        call()
