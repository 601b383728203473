"""What describe says of a model, and that it computes nothing."""

import re

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jinit
from jinit.initializers import xavier_uniform

X = jnp.ones((2, 7, 6))


class Model(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = nn.Conv(8, (3,), kernel_init=nn.initializers.lecun_normal())(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.LayerNorm(epsilon=1e-5)(x)
        x = nn.MultiHeadAttention(2, name="attention")(x)
        x = nn.RNN(nn.LSTMCell(4))(x)
        x = nn.PReLU()(x)
        x = nn.jit(nn.Dense)(5, kernel_init=nn.with_partitioning(xavier_uniform(), ("a", "b")))(x)
        w = self.param("w", nn.initializers.constant(2.0), (5,))
        x = x * jnp.broadcast_to(w, x.shape)
        return nn.DenseGeneral((2, 3), axis=(-2, -1), param_dtype=jnp.bfloat16)(x)


def found(description):
    return {p.path: (p.shape, p.distribution, p.fans, p.decided_by) for p in description.parameters}


def numbers(description):
    return {(n.path, n.field): (n.value, n.decided_by) for n in description.norms}


# 1 / (0.87962566 sqrt(fan_in)), the standard deviation before the normal is cut.
def lecun(fan_in):
    std = 1 / 0.87962566103 / fan_in**0.5
    return f"truncated_normal(mean=0, std={std:.4g}, low=-2, high=2, relative=True)"


def glorot(fan_in, fan_out):
    limit = (6 / (fan_in + fan_out)) ** 0.5
    return f"uniform(low=-{limit:.4g}, high={limit:.4g})"


def test_a_model_with_flaxs_defaults():
    parameters = found(jinit.describe(Model(), X))
    assert parameters["Conv_0/kernel"] == ((3, 6, 8), lecun(18), (18, 24), "explicit")
    assert parameters["Conv_0/bias"] == ((8,), "zeros()", None, "default")
    assert parameters["attention/query/kernel"] == ((8, 2, 4), lecun(8), (8, 8), "default")
    assert parameters["attention/out/kernel"] == ((2, 4, 8), lecun(8), (8, 8), "default")
    assert parameters["LSTMCell_0/ii/kernel"] == ((8, 4), lecun(8), (8, 4), "default")
    assert parameters["LSTMCell_0/hi/kernel"][3] == "default"
    assert parameters["PReLU_0/negative_slope"] == ((), "constant(value=0.01)", None, "default")
    assert parameters["JitDense_0/kernel"] == ((4, 5), glorot(4, 5), (4, 5), "explicit")
    assert parameters["w"] == ((5,), "constant(value=2)", None, "explicit")
    assert parameters["DenseGeneral_0/kernel"] == ((7, 5, 2, 3), lecun(35), (35, 6), "default")
    assert parameters["DenseGeneral_0/bias"][1:] == ("zeros()", None, "default")


KERAS = {
    "Conv_0/kernel": ((3, 6, 8), lecun(18), (18, 24), "explicit"),
    "Conv_0/bias": ((8,), "zeros()", None, "default"),
    "attention/query/kernel": ((8, 2, 4), glorot(8, 8), (8, 8), "keras"),
    "attention/query/bias": ((2, 4), "zeros()", None, "default"),
    "LSTMCell_0/ii/kernel": ((8, 4), glorot(8, 16) + "  # all gates as one", (8, 16), "keras"),
    "LSTMCell_0/ho/kernel": ((4, 4), "orthogonal(gain=1)  # all gates as one", None, "keras"),
    "LSTMCell_0/hf/bias": ((4,), "constant(value=1)", None, "keras"),
    "LSTMCell_0/hg/bias": ((4,), "constant(value=0)", None, "keras"),
    "PReLU_0/negative_slope": ((), "constant(value=0)", None, "keras"),
    "JitDense_0/kernel": ((4, 5), glorot(4, 5), (4, 5), "explicit"),
    "DenseGeneral_0/kernel": ((7, 5, 2, 3), glorot(35, 6), (35, 6), "keras"),
}


def test_inside_and_wrapped_are_described_alike():
    wrapped = jinit.describe(jinit.keras_defaults().wrap(Model()), X)
    with jinit.keras_defaults():
        inside = jinit.describe(Model(), X)
    with jinit.global_keras_initializers():
        everywhere = jinit.describe(Model(), X)
    assert wrapped == inside == everywhere
    parameters = found(inside)
    assert {path: parameters[path] for path in KERAS} == KERAS
    assert numbers(inside) == {
        ("BatchNorm_0", "epsilon"): (1e-3, "keras"),
        ("BatchNorm_0", "momentum"): (0.99, "keras"),
        ("LayerNorm_0", "epsilon"): (1e-5, "explicit"),
    }


def test_torch_is_named():
    with jinit.torch_defaults():
        description = jinit.describe(Model(), X)
    parameters = found(description)
    bound = 18**-0.5
    assert parameters["Conv_0/bias"] == (
        (8,),
        f"uniform(low=-{bound:.4g}, high={bound:.4g})",
        None,
        "torch",
    )
    assert parameters["attention/out/bias"] == ((8,), "constant(value=0)", None, "torch")
    assert numbers(description)["BatchNorm_0", "momentum"] == (0.9, "torch")


def test_it_names_every_parameter_of_init_and_computes_nothing(monkeypatch):
    expected = nn.meta.unbox(jax.eval_shape(Model().init, jax.random.key(0), X)["params"])
    monkeypatch.setattr(jax.random, "uniform", None)  # a drawn number would need it
    described = jinit.describe(nn.Dense(3), jax.ShapeDtypeStruct((1, 2), jnp.float32))
    assert len(described.parameters) == 2
    monkeypatch.undo()
    description = jinit.describe(Model(), X)
    shapes = {
        "/".join(key.key for key in path): (leaf.shape, str(leaf.dtype))
        for path, leaf in jax.tree_util.tree_leaves_with_path(expected)
    }
    assert {p.path: (p.shape, p.dtype) for p in description.parameters} == shapes
    assert all(p.distribution != "-" for p in description.parameters)


def test_arguments_that_are_no_arrays():
    by_position = jinit.describe(Model(), X, False)
    assert by_position == jinit.describe(Model(), X, train=False) == jinit.describe(Model(), X)


def test_stacked_layers_show_the_shape_of_the_stack():
    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            scan = nn.scan(
                lambda m, x, _: (nn.Dense(6, name="layer")(x), None),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=3,
            )
            return scan(self, x, None)[0]

    parameters = found(jinit.describe(jinit.keras_defaults().wrap(Deep()), X))
    assert parameters["layer/kernel"] == ((3, 6, 6), glorot(6, 6), (6, 6), "keras")


def test_a_subclass_that_wraps_the_call():
    class Twice(nn.DenseGeneral):
        @nn.compact
        def __call__(self, x):
            return super().__call__(2 * x)

    (_, kernel) = jinit.describe(Twice((2, 3), axis=(-2, -1)), X).parameters
    assert (kernel.distribution, kernel.fans, kernel.decided_by) == (
        lecun(42),
        (42, 6),
        "default",
    )


def test_a_model_that_was_jitted_before():
    model = nn.jit(nn.Dense)(3)
    model.init(jax.random.key(0), X)
    assert jinit.describe(model, X).parameters[1].decided_by == "default"
    assert jinit.describe(model, X).parameters[1].decided_by == "default"


def build():
    rngs = nnx.Rngs(0)
    return nnx.Dict(
        linear=nnx.Linear(3, 4, kernel_init=nnx.initializers.lecun_normal(), rngs=rngs),
        cell=nnx.LSTMCell(6, 4, rngs=rngs),
        fused=nnx.OptimizedLSTMCell(6, 4, rngs=rngs),
        attention=nnx.MultiHeadAttention(2, 4, 8, rngs=rngs),
        batch=nnx.BatchNorm(4, rngs=rngs),
        layer=nnx.LayerNorm(4, epsilon=1e-4, rngs=rngs),
        slope=nnx.PReLU(),
        own=nnx.Param(jnp.zeros(3)),
    )


def test_a_function_that_constructs_an_nnx_module():
    parameters = found(jinit.describe(build))
    assert parameters["linear/kernel"] == ((3, 4), lecun(3), (3, 4), "explicit")
    assert parameters["linear/bias"] == ((4,), "zeros()", None, "default")
    assert parameters["cell/ii/kernel"] == ((6, 4), lecun(6), (6, 4), "default")
    assert parameters["attention/out/kernel"] == ((2, 4, 4), lecun(8), (8, 4), "default")
    assert parameters["own"] == ((3,), "-", None, "-")
    with jinit.keras_defaults():
        inside = jinit.describe(build)
    parameters = found(inside)
    assert parameters["linear/kernel"] == ((3, 4), lecun(3), (3, 4), "explicit")
    assert parameters["cell/ii/kernel"] == (
        (6, 4),
        glorot(6, 16) + "  # all gates as one",
        (6, 16),
        "keras",
    )
    assert parameters["cell/hf/bias"] == ((4,), "constant(value=1)", None, "keras")
    assert parameters["fused/dense_h/bias"] == ((16,), "blocks(0.0, 1.0, 0.0, 0.0)", None, "keras")
    assert parameters["attention/out/kernel"] == ((2, 4, 4), glorot(8, 4), (8, 4), "keras")
    assert parameters["slope/negative_slope"] == ((), "constant(value=0)", None, "keras")
    assert numbers(inside) == {
        ("batch", "epsilon"): (1e-3, "keras"),
        ("batch", "momentum"): (0.99, "keras"),
        ("layer", "epsilon"): (1e-4, "explicit"),
    }


def test_an_nnx_module_knows_its_shapes_and_numbers_alone():
    with jinit.keras_defaults():
        model = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
    description = jinit.describe(model)
    assert found(description)["scale"] == ((4,), "-", None, "-")
    assert numbers(description)["", "epsilon"] == (1e-3, "-")
    plain = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
    assert numbers(jinit.describe(plain))["", "epsilon"] == (1e-5, "default")


class Stacked(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(6, 4, rngs=rngs), nnx.Conv(4, 8, (3,), rngs=rngs)])
        self.norm = nnx.BatchNorm(8, rngs=rngs)

    def __call__(self, x, scale=1.0):
        return self.norm(self.layers[1](self.layers[0](x))) * scale


def test_a_module_that_exists_is_described_by_its_values():
    model = Stacked(nnx.Rngs(0))
    for description in (jinit.describe(model), jinit.describe(model, X, scale=2.0)):
        assert found(description) == {
            "layers/0/bias": ((4,), "-", None, "-"),
            "layers/0/kernel": ((6, 4), "-", (6, 4), "-"),
            "layers/1/bias": ((8,), "-", None, "-"),
            "layers/1/kernel": ((3, 4, 8), "-", (12, 24), "-"),
            "norm/bias": ((8,), "-", None, "-"),
            "norm/scale": ((8,), "-", None, "-"),
        }
        moments = {p.path: (p.mean, p.std) for p in description.parameters}
        kernel = np.asarray(model.layers[0].kernel[...], np.float64)
        assert moments["layers/0/kernel"] == pytest.approx((kernel.mean(), kernel.std()))
        assert moments["norm/scale"] == (1.0, 0.0)
        assert numbers(description)["norm", "epsilon"] == (1e-5, "default")
        assert description.notes == (
            "a module that exists does not know what its values were drawn from; "
            "describe(lambda: Net(nnx.Rngs(0))) says what its constructor draws",
        )
    assert "mean" in str(description).splitlines()[0].split()


def test_a_module_of_traced_values_has_no_mean():
    described = []
    nnx.eval_shape(lambda: described.append(jinit.describe(Stacked(nnx.Rngs(0)))))
    assert {p.mean for p in described[0].parameters} == {None}


def test_an_equinox_module():
    mlp = eqx.nn.MLP(6, 2, 8, 1, key=jax.random.key(0))
    assert found(jinit.describe(mlp, X[0, 0])) == {
        "layers/0/weight": ((8, 6), "-", (6, 8), "-"),
        "layers/0/bias": ((8,), "-", None, "-"),
        "layers/1/weight": ((2, 8), "-", (8, 2), "-"),
        "layers/1/bias": ((2,), "-", None, "-"),
    }
    assert {p.fans for p in jinit.describe(mlp).parameters} == {None}
    with pytest.raises(TypeError, match="contracting dimensions") as caught:
        jinit.describe(mlp, X[0])
    assert any(note.startswith("MLP was called with all of") for note in caught.value.__notes__)


def test_it_prints_and_is_plain_data():
    description = jinit.describe(jinit.keras_defaults().wrap(nn.BatchNorm(False)), X)
    lines = str(description).splitlines()
    assert [line.split() for line in lines if "─" not in line] == [
        ["parameter", "shape", "dtype", "distribution", "fans", "decided", "by"],
        ["bias", "(6,)", "float32", "zeros()", "default"],
        ["scale", "(6,)", "float32", "ones()", "default"],
        ["12", "parameters,", "48", "B"],
        ["norm", "field", "value", "decided", "by"],
        ["epsilon", "0.001", "keras"],
        ["momentum", "0.99", "keras"],
    ]
    assert description.to_dict()["norms"][0] == {
        "path": "",
        "field": "epsilon",
        "value": 1e-3,
        "decided_by": "keras",
    }


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: jinit.describe(hk.transform(lambda x: hk.Linear(2)(x)), X),
            "describe takes a flax.linen module, an NNX module or a function that constructs one, "
            "got Haiku's Transformed; haiku.experimental.tabulate lists its parameters",
        ),
        (
            lambda: jinit.describe(nn.Dense, X),
            "describe takes a flax.linen module, an NNX module or a function that constructs one, "
            "got the class Dense; pass an instance of it",
        ),
        (
            lambda: jinit.describe(nn.Dense(2).apply, X),
            "describe takes a flax.linen module, an NNX module or a function that constructs one, "
            "got the function apply; pass the module itself",
        ),
        (
            lambda: jinit.describe(nnx.Linear),
            "describe calls a function that constructs an NNX module without arguments, but the "
            "class Linear needs in_features, out_features; pass a lambda that gives them",
        ),
        (
            lambda: jinit.describe(lambda width: nnx.Linear(width, 2, rngs=nnx.Rngs(0))),
            "describe calls a function that constructs an NNX module without arguments, but the "
            "function <lambda> needs width; pass a lambda that gives them",
        ),
        (
            lambda: jinit.describe(3),
            "describe takes a flax.linen module, an NNX module or a function that constructs one, "
            "got int",
        ),
        (
            lambda: jinit.describe(nn.Dense(2), (4, 8)),
            "describe takes inputs as arrays or jax.ShapeDtypeStruct, got (4, 8); for inputs of "
            "this shape write jnp.ones((4, 8))",
        ),
        (
            lambda: jinit.describe(build, X),
            "describe takes inputs for a flax.linen module only; an NNX module knows its shapes",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        call()


def test_a_default_of_another_role_was_chosen():
    zeros = nn.initializers.zeros  # which is Dense's own default for the bias
    described = found(jinit.describe(nn.Dense(3, kernel_init=zeros), X))
    assert described["kernel"][1:] == ("zeros()", None, "explicit")
    assert described["bias"][1:] == ("zeros()", None, "default")


def test_a_bridge_under_keras_defaults():
    bridge = nnx.bridge.ToLinen(nnx.LayerNorm, args=(3,))
    with jinit.keras_defaults():
        described = found(jinit.describe(nn.Sequential([bridge, nn.Dense(2)]), jnp.ones((1, 3))))
    assert described["layers_1/kernel"][1:] == (glorot(3, 2), (3, 2), "keras")


def test_norm_numbers_that_are_no_floats():
    layer = nn.BatchNorm(use_running_average=True, momentum=0, epsilon=np.float32(0.25))
    assert numbers(jinit.describe(layer, jnp.ones((1, 2)))) == {
        ("", "epsilon"): (0.25, "explicit"),
        ("", "momentum"): (0.0, "explicit"),
    }


def test_the_scale_of_a_weight_norm_is_its_default():
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.WeightNorm(nn.Dense(2))(x)

    described = found(jinit.describe(Normed(), jnp.ones((1, 3))))
    (scale,) = [each for path, each in described.items() if path.endswith("scale")]
    assert scale[3] == "default"


def test_inputs_by_name_may_be_shapes():
    class Named(nn.Module):
        @nn.compact
        def __call__(self, *, inputs, train):
            return nn.Dense(2)(inputs) if train else inputs

    inputs = jax.ShapeDtypeStruct((1, 3), jnp.float32)
    assert len(jinit.describe(Named(), inputs=inputs, train=True).parameters) == 2


def test_a_function_that_constructs_nothing_is_refused():
    text = "describe takes a function that constructs an NNX module, got one that returns int"
    with pytest.raises(TypeError, match=text):
        jinit.describe(lambda: 3)


def test_a_generator_is_not_decorated():
    def steps():
        yield nn.Dense(2)

    with pytest.raises(TypeError, match="cannot decorate the generator"):
        jinit.keras_defaults()(steps)


def stacked():
    @nnx.vmap
    def linear(key):
        return nnx.Linear(4, 3, rngs=nnx.Rngs(key))

    @nnx.split_rngs(splits=5)
    @nnx.vmap
    def norm(rngs):
        return nnx.BatchNorm(3, rngs=rngs)

    return nnx.Dict(
        linear=linear(jax.random.split(jax.random.key(0), 5)),
        norm=norm(nnx.Rngs(0)),
        jitted=nnx.jit(lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0)))(),
        shapes=nnx.eval_shape(lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0))),
    )


def test_what_transformations_of_nnx_build():
    parameters = found(jinit.describe(stacked))
    assert parameters["linear/kernel"] == ((5, 4, 3), lecun(4), (4, 3), "default")
    with jinit.keras_defaults():
        description = jinit.describe(stacked)
    parameters = found(description)
    assert parameters["linear/kernel"] == ((5, 4, 3), glorot(4, 3), (4, 3), "keras")
    assert parameters["linear/bias"] == ((5, 3), "zeros()", None, "default")
    assert parameters["norm/scale"] == ((5, 3), "ones()", None, "default")
    for name in ("jitted", "shapes"):
        assert parameters[f"{name}/kernel"] == ((2, 3), glorot(2, 3), (2, 3), "keras")
    assert numbers(description)["norm", "epsilon"] == (1e-3, "keras")


def test_a_module_that_an_earlier_description_made_is_not_mixed_up():
    made = []

    def build():
        made.append(nnx.Linear(2, 3, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0)))
        return nnx.Dict(old=made[0], new=nnx.Linear(2, 3, rngs=nnx.Rngs(0)))

    jinit.describe(build)
    assert found(jinit.describe(build))["old/kernel"][1:] == ("-", None, "-")
