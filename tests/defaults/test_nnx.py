"""The layers of flax.nnx, constructed inside and outside."""

import math
import threading

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.nnx import bridge

import jinit
from jinit.initializers import constant, uniform, xavier_uniform, zeros
from tests.initializers.statistics import follows, uniform_cdf

GLOROT = {"kernel_init": xavier_uniform()}


def rngs():
    return nnx.Rngs(0)


def params(module):
    return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(module, nnx.Param)))


def same(a, b):
    a, b = params(a), params(b)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def inside(build, **given):
    with jinit.keras_defaults():
        return build(rngs=rngs(), **given)


# The layer, and what Keras's defaults are when they are passed outside.
LAYERS = {
    "Linear": (lambda **k: nnx.Linear(6, 4, **k), GLOROT),
    "LinearGeneral": (lambda **k: nnx.LinearGeneral((2, 3), (4, 5), axis=(-2, -1), **k), GLOROT),
    "Conv": (lambda **k: nnx.Conv(4, 6, (3, 3), feature_group_count=2, **k), GLOROT),
    "ConvTranspose": (lambda **k: nnx.ConvTranspose(4, 6, (3,), **k), GLOROT),
    "Embed": (lambda **k: nnx.Embed(6, 4, **k), {"embedding_init": uniform(low=-0.05, high=0.05)}),
    "MultiHeadAttention": (
        lambda **k: nnx.MultiHeadAttention(2, 4, 8, decode=False, **k),
        GLOROT,
    ),
    "Einsum": (
        lambda **k: nnx.Einsum("abc,cde->abde", (4, 2, 3), (2, 3), **k),
        {"kernel_init": xavier_uniform(fans=(4, 6))},
    ),
}


@pytest.mark.cases
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_drawn_as_if_keras_was_passed(name):
    build, given = LAYERS[name]
    assert same(inside(build), build(rngs=rngs(), **given))
    assert not same(inside(build), build(rngs=rngs()))


@pytest.mark.cases
@pytest.mark.parametrize("name", LAYERS)
def test_what_was_passed_explicitly_wins(name):
    build, given = LAYERS[name]
    (field,) = given
    for explicit in (constant(0.5), nnx.initializers.lecun_normal()):
        given = {field: explicit}
        assert same(inside(build, **given), build(rngs=rngs(), **given))


@pytest.mark.parametrize(
    ("build", "limit"),
    [
        (lambda **k: nnx.Linear(400, 256, **k), math.sqrt(6 / 656)),
        (lambda **k: nnx.Conv(80, 160, (3, 3), **k), math.sqrt(6 / (9 * 240))),
        (lambda **k: nnx.Embed(1600, 64, **k), 0.05),
        (
            lambda **k: nnx.LinearGeneral(70, 128, batch_axis={0: 12}, **k),
            math.sqrt(6 / (70 + 12 * 128)),
        ),
        (lambda **k: nnx.MultiHeadAttention(4, 400, **k).query, math.sqrt(6 / 800)),
    ],
)
def test_the_distribution(build, limit):
    weights = max(jax.tree.leaves(params(inside(build))), key=np.size)
    assert weights.size >= 100_000
    assert follows(weights, uniform_cdf(-limit, limit))


def gates(cell, names):
    return np.concatenate([getattr(cell, name).kernel[...] for name in names], axis=1)


def orthonormal(matrix):
    return np.abs(matrix @ matrix.T - np.eye(len(matrix))).max() < 1e-6


def test_lstm_draws_its_gates_as_one():
    cell = inside(nnx.LSTMCell, in_features=48, hidden_features=32)
    assert orthonormal(gates(cell, ("hi", "hf", "hg", "ho")))
    kernel = gates(cell, ("ii", "if_", "ig", "io"))
    assert 0.99 * 0.18464 < abs(kernel).max() < 0.18464 + 5e-6
    assert [float(getattr(cell, h).bias[...].sum()) for h in ("hi", "hf", "hg", "ho")] == [
        *(0, 32, 0, 0)
    ]


def test_lstm_with_explicit_parts():
    cell = inside(
        nnx.LSTMCell, in_features=4, hidden_features=3, recurrent_kernel_init=constant(0.5)
    )
    assert (gates(cell, ("hi", "hf", "hg", "ho")) == 0.5).all()
    assert (cell.hf.bias[...] == 1).all()
    cell = inside(nnx.LSTMCell, in_features=4, hidden_features=3, bias_init=zeros())
    assert not cell.hf.bias[...].any()
    assert orthonormal(gates(cell, ("hi", "hf", "hg", "ho")))


@pytest.mark.cases
@pytest.mark.parametrize(
    ("cell", "limit", "bias"),
    [
        (nnx.OptimizedLSTMCell, 0.18464, [0, 32, 0, 0]),
        (nnx.GRUCell, 0.20412, None),
        (nnx.SimpleCell, 0.27386, None),
    ],
)
def test_cells_with_one_kernel(cell, limit, bias):
    cell = inside(cell, in_features=48, hidden_features=32)
    assert orthonormal(np.asarray(cell.dense_h.kernel[...]))
    assert 0.98 * limit < abs(cell.dense_i.kernel[...]).max() < limit + 5e-6
    if bias is None:
        assert not cell.dense_i.bias[...].any()
    else:
        assert cell.dense_h.bias[...].reshape(4, 32).sum(axis=1).tolist() == bias


def test_norms_keep_epsilon_and_momentum():
    norm = inside(nnx.BatchNorm, num_features=3)
    assert (norm.epsilon, norm.momentum) == (1e-3, 0.99)
    x = jnp.array([[-0.03], [0.03]])
    norm = inside(nnx.BatchNorm, num_features=1)
    assert norm(x)[1, 0] == pytest.approx(0.03 / (0.0009 + 0.001) ** 0.5, rel=1e-4)
    with jinit.keras_defaults(batchnorm_momentum=0.5, norm_epsilon=None):
        norm = nnx.BatchNorm(3, rngs=rngs())
    assert (norm.epsilon, norm.momentum) == (1e-5, 0.5)
    assert inside(nnx.LayerNorm, num_features=3).epsilon == 1e-3
    assert inside(nnx.LayerNorm, num_features=3, epsilon=1e-6).epsilon == 1e-6
    assert inside(nnx.GroupNorm, num_features=32).epsilon == 1e-3
    assert inside(nnx.InstanceNorm, num_features=3).epsilon == 1e-3
    assert inside(nnx.RMSNorm, num_features=3).epsilon == 1e-6
    attention = inside(nnx.MultiHeadAttention, num_heads=2, in_features=4, normalize_qk=True)
    assert attention.query_ln.epsilon == 1e-3


def test_prelu_given_by_position():
    with jinit.keras_defaults():
        assert nnx.PReLU().negative_slope[...] == 0
        assert nnx.PReLU(0.3).negative_slope[...] == np.float32(0.3)


ZEROS = zeros()


def test_subclasses_that_call_the_base():
    class Mine(nnx.Linear):
        def __init__(self, size, *, rngs):
            super().__init__(size, 4, rngs=rngs)

    class Zeros(nnx.Linear):
        def __init__(self, size, *, kernel_init=ZEROS, rngs):
            super().__init__(size, 4, kernel_init=kernel_init, rngs=rngs)

    assert same(inside(Mine, size=6), nnx.Linear(6, 4, rngs=rngs(), **GLOROT))
    assert not inside(Zeros, size=6).kernel[...].any()


class Model(nnx.Module):
    def __init__(self, *, rngs, **given):
        self.first = nnx.Linear(6, 4, rngs=rngs, **given)
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.second = nnx.Linear(4, 6, rngs=rngs, **given)

    def __call__(self, x):
        return self.second(self.norm(self.first(x)))


@pytest.mark.exact
def test_jit_around_the_construction():
    build = nnx.jit(lambda: Model(rngs=rngs()))
    plain = build()
    with jinit.keras_defaults():
        model = build()
    assert same(model, Model(rngs=rngs(), **GLOROT))
    assert model.norm.epsilon == 1e-3
    assert same(build(), plain)


def test_vmap_around_the_construction():
    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=0, out_axes=0)
    def ensemble(keys):
        return nnx.LSTMCell(4, 3, rngs=keys)

    with jinit.keras_defaults():
        cells = ensemble(rngs())
    kernels = [np.asarray(getattr(cells, h).kernel[...]) for h in ("hi", "hf", "hg", "ho")]
    members = np.concatenate(kernels, axis=2)
    assert all(orthonormal(member) for member in members)
    assert abs(members[0] - members[1]).max() > 0.1


def test_eval_shape_around_the_construction():
    with jinit.keras_defaults():
        abstract = nnx.eval_shape(lambda: Model(rngs=rngs()))
    assert abstract.first.kernel.shape == (6, 4)
    assert abstract.norm.epsilon == 1e-3


def test_a_linen_module_as_nnx():
    x = jnp.ones((1, 6))
    with jinit.keras_defaults():
        module = bridge.ToNNX(nn.Dense(4), rngs=rngs()).lazy_init(x)
    explicit = bridge.ToNNX(nn.Dense(4, **GLOROT), rngs=rngs()).lazy_init(x)
    np.testing.assert_array_equal(module.kernel[...], explicit.kernel[...])


def test_an_nnx_module_as_linen():
    x, key = jnp.ones((1, 6)), jax.random.key(0)
    with jinit.keras_defaults():
        variables = bridge.ToLinen(nnx.Linear, args=(6, 4)).init(key, x)
    explicit = bridge.ToLinen(nnx.Linear, args=(6, 4), kwargs=GLOROT).init(key, x)
    np.testing.assert_array_equal(variables["params"]["kernel"], explicit["params"]["kernel"])


def test_partitioned_initializers_are_explicit_and_stay_so():
    boxed = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("x", None))
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        layer = inside(nnx.Linear, in_features=6, out_features=4, kernel_init=boxed)
    assert same(layer, nnx.Linear(6, 4, kernel_init=nnx.initializers.lecun_normal(), rngs=rngs()))
    assert layer.kernel.get_metadata("out_sharding") == ("x", None)


def constructors():
    return {layer: vars(layer).get("__init__") for layer in (nnx.Linear, nnx.LSTMCell, nnx.PReLU)}


def test_an_exception_restores_the_constructors():
    before = constructors()
    with (
        pytest.raises(TypeError, match="in_features"),
        jinit.keras_defaults(),
        jinit.torch_defaults(),
    ):
        nnx.Linear(out_features=4, rngs=rngs())
    assert constructors() == before
    with jinit.keras_defaults():
        assert constructors() != before
    assert constructors() == before
    assert nnx.LayerNorm(3, rngs=rngs()).epsilon == 1e-6


def test_another_thread_is_left_alone_and_may_have_its_own():
    results = {}

    def other():
        results["plain"] = nnx.LayerNorm(3, rngs=rngs()).epsilon
        with jinit.keras_defaults(norm_epsilon=0.5):
            entered.set()
            left.wait(10)
            results["own"] = nnx.LayerNorm(3, rngs=rngs()).epsilon

    entered, left = threading.Event(), threading.Event()
    thread = threading.Thread(target=other)
    with jinit.keras_defaults():
        thread.start()
        assert entered.wait(10)
        results["this"] = nnx.LayerNorm(3, rngs=rngs()).epsilon
    results["outside"] = nnx.LayerNorm(3, rngs=rngs()).epsilon
    left.set()
    thread.join()
    assert results == {"plain": 1e-6, "own": 0.5, "this": 1e-3, "outside": 1e-6}


def test_the_innermost_context_alone_is_in_force():
    with jinit.keras_defaults():
        with jinit.keras_defaults(False, None, 0.1):
            assert nnx.LayerNorm(3, rngs=rngs()).epsilon == 0.1
            assert same(nnx.Linear(6, 4, rngs=rngs()), nnx.Linear(6, 4, rngs=rngs()))
        with jinit.torch_defaults():
            assert nnx.LayerNorm(3, rngs=rngs()).epsilon == 1e-5
        assert nnx.LayerNorm(3, rngs=rngs()).epsilon == 1e-3
