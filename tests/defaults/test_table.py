"""The table as data, the repr, and bad input."""

import re

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jinit
from jinit.defaults.tables.layer_table import LayerTable, Role, Row
from jinit.initializers import xavier_uniform, zeros
from tests.processes import python

TABLE = """\
  layer                                 field                   value
 ────────────────────────────────────────────────────────────────────────────────────────────────────────────
  linen.Dense                           kernel_init             xavier_uniform(gain=1.0)
  linen.DenseGeneral                    kernel_init             xavier_uniform(fans=equation)
  linen.Einsum                          kernel_init             xavier_uniform(fans=equation)
  linen.Conv                            kernel_init             xavier_uniform(gain=1.0)
  linen.Conv as linen.ConvLSTMCell.hh   kernel_init             orthogonal(gain=1.0)
  linen.ConvLocal                       kernel_init             xavier_uniform(per position)
  linen.ConvTranspose                   kernel_init             xavier_uniform(gain=1.0)
  linen.Embed                           embedding_init          uniform(low=-0.05, high=0.05)
  linen.LSTMCell                        kernel_init             joint(xavier_uniform(gain=1.0), gates=4)
  linen.LSTMCell                        recurrent_kernel_init   joint(orthogonal(gain=1.0), gates=4)
  linen.LSTMCell                        bias_init               per_gate(0.0, 1.0, 0.0, 0.0)
  linen.OptimizedLSTMCell               kernel_init             joint(xavier_uniform(gain=1.0), gates=4)
  linen.OptimizedLSTMCell               recurrent_kernel_init   joint(orthogonal(gain=1.0), gates=4)
  linen.OptimizedLSTMCell               bias_init               per_gate(0.0, 1.0, 0.0, 0.0)
  linen.GRUCell                         kernel_init             joint(xavier_uniform(gain=1.0), gates=3)
  linen.GRUCell                         recurrent_kernel_init   joint(orthogonal(gain=1.0), gates=3)
  linen.MGUCell                         kernel_init             joint(xavier_uniform(gain=1.0), gates=2)
  linen.MGUCell                         recurrent_kernel_init   joint(orthogonal(gain=1.0), gates=2)
  linen.SimpleCell                      kernel_init             xavier_uniform(gain=1.0)
  linen.SimpleCell                      recurrent_kernel_init   orthogonal(gain=1.0)
  linen.PReLU                           negative_slope_init     0.0
  layers_with_named_axes.Dense          kernel_init             xavier_uniform(gain=1.0)
  layers_with_named_axes.Embed          embedding_init          uniform(low=-0.05, high=0.05)
  nnx.Linear                            kernel_init             xavier_uniform(gain=1.0)
  nnx.LinearGeneral                     kernel_init             xavier_uniform(fans=equation)
  nnx.Einsum                            kernel_init             xavier_uniform(fans=equation)
  nnx.MultiHeadAttention                kernel_init             xavier_uniform(gain=1.0)
  nnx.Conv                              kernel_init             xavier_uniform(gain=1.0)
  nnx.ConvTranspose                     kernel_init             xavier_uniform(gain=1.0)
  nnx.Embed                             embedding_init          uniform(low=-0.05, high=0.05)
  nnx.LSTMCell                          kernel_init             joint(xavier_uniform(gain=1.0), gates=4)
  nnx.LSTMCell                          recurrent_kernel_init   joint(orthogonal(gain=1.0), gates=4)
  nnx.LSTMCell                          bias_init               per_gate(0.0, 1.0, 0.0, 0.0)
  nnx.OptimizedLSTMCell                 kernel_init             xavier_uniform(gain=1.0)
  nnx.OptimizedLSTMCell                 recurrent_kernel_init   orthogonal(gain=1.0)
  nnx.OptimizedLSTMCell                 bias_init               blocks(0.0, 1.0, 0.0, 0.0)
  nnx.GRUCell                           kernel_init             xavier_uniform(gain=1.0)
  nnx.GRUCell                           recurrent_kernel_init   orthogonal(gain=1.0)
  nnx.SimpleCell                        kernel_init             xavier_uniform(gain=1.0)
  nnx.SimpleCell                        recurrent_kernel_init   orthogonal(gain=1.0)
  nnx.PReLU                             negative_slope_init     0.0
  linen.BatchNorm                       momentum                0.99
  nnx.BatchNorm                         momentum                0.99
  linen.BatchNorm                       epsilon                 0.001
  linen.LayerNorm                       epsilon                 0.001
  linen.GroupNorm                       epsilon                 0.001
  linen.InstanceNorm                    epsilon                 0.001
  layers_with_named_axes.LayerNorm      epsilon                 0.001
  nnx.BatchNorm                         epsilon                 0.001
  nnx.LayerNorm                         epsilon                 0.001
  nnx.GroupNorm                         epsilon                 0.001
  nnx.InstanceNorm                      epsilon                 0.001"""  # noqa: E501


def test_the_table_prints():
    assert re.sub("─+", "─", str(jinit.keras_defaults().table)) == re.sub("─+", "─", TABLE)


def test_the_table_is_data():
    rows = {(row.layer, row.field): row.value for row in jinit.keras_defaults().table}
    assert rows[nn.Dense, "kernel_init"] == xavier_uniform()
    assert rows[nn.BatchNorm, "epsilon"] == 1e-3
    assert list(jinit.keras_defaults(False, None, None).table) == []


def test_every_row_knows_the_librarys_default():
    for row in (*jinit.keras_defaults().table, *jinit.torch_defaults().table):
        if issubclass(row.layer, nn.Module):
            assert row.library_default is getattr(row.layer, row.field)
        elif row.layer is nnx.PReLU:
            assert row.library_default == 0.01
        else:
            assert row.library_default is row.layer.__init__.__kwdefaults__[row.field]


def test_the_nearest_base_comes_first():
    class Mine(nn.Dense):
        pass

    near = Row(Mine, "kernel_init", zeros())
    far = Row(nn.Dense, "kernel_init", xavier_uniform())
    part = Row(nn.Dense, "kernel_init", zeros(), Role(nn.Dense, "part"))
    table = LayerTable("mine", (far, part, near))
    assert table.rows_of(Mine) == (part, near, far)
    assert table.rows_of(type("Yours", (Mine,), {})) == (part, near, far)
    assert table.rows_of(nn.Dense) == (part, far)
    assert table.rows_of(nn.Conv) == ()


def test_equal_arguments_share_a_table():
    assert jinit.keras_defaults().table is jinit.keras_defaults(True, 0.99, 0.001).table
    assert jinit.keras_defaults().table is not jinit.keras_defaults(norm_epsilon=1e-4).table


def test_the_repr_is_the_call():
    assert repr(jinit.keras_defaults(norm_epsilon=None, batchnorm_momentum=1)) == (
        "keras_defaults(parameter_initialization=True, batchnorm_momentum=1.0, norm_epsilon=None)"
    )


@pytest.mark.parametrize("momentum", [-0.1, 1.01, float("nan")])
def test_the_momentum_is_a_decay(momentum):
    message = f"batchnorm_momentum is a decay in [0, 1] or None, got {momentum}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        jinit.keras_defaults(batchnorm_momentum=momentum)


@pytest.mark.parametrize("epsilon", [0, -1e-3, float("inf"), float("nan")])
def test_the_epsilon_is_positive(epsilon):
    message = f"norm_epsilon is a positive number or None, got {epsilon}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        jinit.keras_defaults(norm_epsilon=epsilon)


@pytest.mark.parametrize("value", ["0.9", True, [0.9]])
def test_a_number_is_no_text_and_no_bool(value):
    for name, meaning in [
        ("batchnorm_momentum", "a decay in [0, 1]"),
        ("norm_epsilon", "a positive number"),
    ]:
        message = f"{name} is {meaning} or None, got {value!r}"
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            jinit.torch_defaults(**{name: value})


def bound():
    return nn.Dense(2).bind(nn.Dense(2).init(jax.random.key(0), jnp.ones((1, 3))))


@pytest.mark.cases
@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: jinit.keras_defaults(nn.Dense(2).init),
            TypeError,
            "parameter_initialization is a bool, got method; "
            "to decorate a function write keras_defaults()(function)",
        ),
        (
            lambda: jinit.keras_defaults()(3),
            TypeError,
            "keras_defaults() decorates a function such as model.init, got int; "
            "for a module use keras_defaults().wrap(module)",
        ),
        (
            lambda: jinit.keras_defaults().wrap(nn.Dense(2).init),
            TypeError,
            "keras_defaults().wrap takes a flax.linen module, got method; "
            "for a function use keras_defaults()(function)",
        ),
        (
            lambda: jinit.keras_defaults()(linear()),
            TypeError,
            "keras_defaults() decorates a function such as model.init, got Linear; "
            "an NNX module that is constructed keeps what it has; constru"
            "ct it inside: with keras_defaults(): model = Linear(...)",
        ),
        (
            lambda: jinit.keras_defaults().wrap(linear()),
            TypeError,
            "keras_defaults().wrap takes a flax.linen module, got Linear; "
            "an NNX module that is constructed keeps what it has; constru"
            "ct it inside: with keras_defaults(): model = Linear(...)",
        ),
        (
            lambda: jinit.keras_defaults().wrap(eqx.nn.MLP(2, 2, 2, 1, key=jax.random.key(0))),
            TypeError,
            "keras_defaults().wrap takes a flax.linen module, got MLP; "
            "the layers of Equinox are left alone; jinit.initializers.rei"
            "nit draws their leaves anew",
        ),
        (
            lambda: jinit.keras_defaults()(eqx.nn.Linear),
            TypeError,
            "keras_defaults() decorates a function such as model.init, got the class Linear; "
            "the layers of Equinox are left alone; jinit.initializers.rei"
            "nit draws their leaves anew",
        ),
        (
            lambda: jinit.keras_defaults().wrap(bound()),
            ValueError,
            "keras_defaults().wrap takes a module that is not bound, got a bound Dense; "
            "wrap it before init, apply or bind",
        ),
    ],
)
def test_bad_input(call, kind, message):
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        call()


def linear():
    return nnx.Linear(2, 2, rngs=nnx.Rngs(0))


def test_a_class_and_a_module_of_linen_are_wrapped_whichever_way():
    class Norm(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.LayerNorm(use_bias=False, use_scale=False)(x)

    defaults, x = jinit.keras_defaults(), jnp.array([[-0.03, 0.03]])
    models = defaults(Norm)(), defaults.wrap(Norm)(), defaults(Norm()), defaults.wrap(Norm())
    for model in models:
        assert isinstance(model, Norm)
        assert model.apply({}, x)[0, 1] == pytest.approx(0.03 / (0.0009 + 0.001) ** 0.5, rel=1e-4)

    @defaults
    class Decorated(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            return nn.Dense(self.width)(x)

    variables = Decorated(3).init(jax.random.key(0), x)
    limit = (6 / 5) ** 0.5
    assert Decorated.__name__ == "Decorated"
    assert 0.5 * limit < abs(variables["params"]["Dense_0"]["kernel"]).max() < limit


def test_import_jinit_imports_no_flax():
    code = "import sys, jinit; sys.exit('flax' in sys.modules or 'jinit.defaults' in sys.modules)"
    assert python("-c", code, warn="default").returncode == 0
