"""Recurrent cells: all gates drawn as one matrix, as Keras draws them, however they are run."""

import functools
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import beta

import jinit
from jinit.initializers import constant, zeros
from tests.defaults.reference import L, built
from tests.initializers.statistics import follows, moments_fit, uniform_cdf

# Flax's cell, its gates in the order in which it makes them, Keras's layer.
CELLS = {
    "LSTMCell": (nn.LSTMCell, "ifgo", L.LSTM),
    "OptimizedLSTMCell": (nn.OptimizedLSTMCell, "ifgo", L.LSTM),
    "GRUCell": (nn.GRUCell, "rzn", L.GRU),
    "SimpleCell": (nn.SimpleCell, ("",), L.SimpleRNN),
}
IN, UNITS = 6, 5
KEY = jax.random.key(3)


def init(cell, inputs=IN):
    x = jnp.ones((1, inputs))
    return cell.init(KEY, cell.initialize_carry(KEY, x.shape), x)["params"]


def drawn(cell, inputs=IN):
    return jinit.keras_defaults()(init)(cell, inputs)


@functools.cache
def in_keras(layer, shape, units, *arguments):
    weights = built(layer(units, *arguments), shape)
    return {path.split("/")[-1]: weight for path, weight in weights.items()}


def joined(params, letter, gates, name="kernel"):
    return np.concatenate([params[letter + gate][name] for gate in gates], axis=-1)


def haar_cdf(n):
    """The distribution of an entry of a random orthonormal n-vector."""
    return lambda x: beta((n - 1) / 2, (n - 1) / 2).cdf((x + 1) / 2)


def orthonormal(matrix, tolerance=1e-6):
    return np.abs(matrix @ matrix.T - np.eye(len(matrix))).max() < tolerance


@pytest.mark.cases
@pytest.mark.parametrize("name", CELLS)
def test_a_cell_is_drawn_as_in_keras(name):
    cell, gates, keras_layer = CELLS[name]
    inputs, units = (330, 320) if len(gates) == 1 else (190, 184)
    params = drawn(cell(units), inputs)
    theirs = in_keras(keras_layer, (1, 2, inputs), units)
    width = len(gates) * units
    limit = math.sqrt(6 / (inputs + width))
    for kernel in (joined(params, "i", gates), theirs["kernel"]):
        assert kernel.shape == (inputs, width)
        assert kernel.size >= 100_000
        assert follows(kernel, uniform_cdf(-limit, limit))
        assert moments_fit(kernel, 0, limit / math.sqrt(3), kurtosis=1.8)
    for kernel in (joined(params, "h", gates), theirs["recurrent_kernel"]):
        assert kernel.shape == (units, width)
        assert kernel.size >= 100_000
        assert orthonormal(kernel, 2e-6)
        assert follows(kernel, haar_cdf(width))
        assert np.std(kernel) == pytest.approx(width**-0.5, rel=1e-3)


@pytest.mark.cases
@pytest.mark.parametrize(
    ("name", "limit"),
    [("LSTMCell", 0.18464), ("GRUCell", 0.20412), ("SimpleCell", 0.27386)],
)
def test_the_golden_limits(name, limit):
    cell, gates, _ = CELLS[name]
    params = drawn(cell(32), 48)
    kernel = joined(params, "i", gates)
    # Of n numbers the largest lies above this share but for a probability of 1e-6.
    assert (1 - math.log(1e6) / kernel.size) * limit < abs(kernel).max() < limit + 5e-6
    assert orthonormal(joined(params, "h", gates))


@pytest.mark.thorough
def test_the_biases_are_those_of_keras():
    # Keras's gates are i, f, c, o in this order too.
    bias = in_keras(L.LSTM, (1, 2, IN), UNITS)["bias"]
    for cell in (nn.LSTMCell, nn.OptimizedLSTMCell):
        params = drawn(cell(UNITS))
        np.testing.assert_array_equal(joined(params, "h", "ifgo", "bias"), bias)
        assert "bias" not in params["ii"]
    params = drawn(nn.GRUCell(UNITS))
    assert not joined(params, "i", "rzn", "bias").any()
    assert not params["hn"]["bias"].any()
    assert not drawn(nn.SimpleCell(UNITS))["i"]["bias"].any()


def test_mgu_has_no_counterpart_and_keeps_its_biases():
    params = drawn(nn.MGUCell(UNITS))
    assert orthonormal(joined(params, "h", "fn"))
    assert abs(joined(params, "i", "fn")).max() < math.sqrt(6 / (IN + 2 * UNITS))
    assert (params["if"]["bias"] == 1).all()
    assert not params["in"]["bias"].any()


@pytest.mark.thorough
def test_a_convolutional_lstm_is_drawn_as_in_keras():
    cell, x = nn.ConvLSTMCell(60, (3, 3)), jnp.ones((1, 4, 4, 55))
    carry = cell.initialize_carry(KEY, x.shape)
    with jinit.keras_defaults():
        params = jax.jit(cell.init)(KEY, carry, x)["params"]
    theirs = in_keras(L.ConvLSTM2D, (1, 2, 4, 4, 55), 60, 3)
    limit = math.sqrt(6 / (9 * (55 + 240)))
    for kernel in (params["ih"]["kernel"], theirs["kernel"]):
        assert kernel.size >= 100_000
        assert follows(kernel, uniform_cdf(-limit, limit))
    for kernel in (params["hh"]["kernel"], theirs["recurrent_kernel"]):
        matrix = np.reshape(kernel, (-1, 240))
        assert matrix.size >= 100_000
        assert orthonormal(matrix.T, 2e-6)
    # The cell adds the forget gate's 1 in its code, Keras in its bias.
    assert not params["ih"]["bias"].any()
    assert not params["hh"]["bias"].any()
    assert theirs["bias"].reshape(4, 60).sum(axis=1).tolist() == [0, 60, 0, 0]


def test_the_golden_limit_of_a_convolutional_lstm():
    cell, x = nn.ConvLSTMCell(8, (3, 3)), jnp.ones((1, 5, 5, 4))
    with jinit.keras_defaults():
        kernel = cell.init(KEY, cell.initialize_carry(KEY, x.shape), x)["params"]["ih"]["kernel"]
    assert 0.98 * 0.13608 < abs(kernel).max() < 0.13608


@pytest.mark.exact
@pytest.mark.cases
@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.OptimizedLSTMCell, nn.GRUCell])
def test_however_a_cell_is_run_it_is_drawn_alike(cell):
    cell, x = nn.RNN(cell(UNITS)), jnp.ones((1, 2, IN))
    with jinit.keras_defaults():
        expected = jax.jit(cell.init)(KEY, x)
        chex.assert_trees_all_equal(cell.init(KEY, x), expected)
        chex.assert_trees_all_equal_shapes(jax.eval_shape(cell.init, KEY, x), expected)
        cell.apply(expected, x)
    wrapped = jinit.keras_defaults().wrap(cell)
    chex.assert_trees_all_equal(jax.jit(wrapped.init)(KEY, x), expected)
    # What applies the cell is the same program as outside: its initializers are not run.
    assert str(jax.make_jaxpr(wrapped.apply)(expected, x)) == str(
        jax.make_jaxpr(cell.apply)(expected, x)
    )


class Unrolled(nn.Module):
    @nn.compact
    def __call__(self, x):
        cell = nn.LSTMCell(UNITS)
        carry = cell.initialize_carry(jax.random.key(0), x.shape)
        for _ in range(3):
            carry, y = cell(carry, x)
        return y


class Stacked(nn.Module):
    transform: type
    options: dict

    @nn.compact
    def __call__(self, x):
        carry = nn.LSTMCell(UNITS).initialize_carry(jax.random.key(0), x.shape)
        cell = self.transform(nn.LSTMCell, **self.options)(UNITS, name="cell")
        return cell(carry, x)[1]


@pytest.mark.thorough
@pytest.mark.parametrize("model", [Unrolled(), Stacked(nn.remat, {}), Stacked(nn.jit, {})])
def test_loops_and_transformed_cells(model):
    x = jnp.ones((1, IN))
    with jinit.keras_defaults():
        params = model.init(KEY, x)["params"]
        model.apply({"params": params}, x)
        gradient = jax.grad(lambda p: model.apply({"params": p}, x).sum())(params)
    (cell,) = params.values()
    assert orthonormal(joined(cell, "h", "ifgo"))
    chex.assert_trees_all_equal_shapes(gradient, params)


def test_an_ensemble_has_different_orthogonal_members():
    options = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
    model = Stacked(nn.vmap, {**options, "in_axes": (None, None), "axis_size": 3})
    with jinit.keras_defaults():
        params = model.init(KEY, jnp.ones((1, IN)))["params"]["cell"]
    members = joined(params, "h", "ifgo")
    assert all(orthonormal(member) for member in members)
    assert abs(members[0] - members[1]).max() > 0.1


@pytest.mark.thorough
def test_layers_of_a_scan_are_drawn_each_for_itself():
    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            carry = nn.LSTMCell(IN).initialize_carry(jax.random.key(0), x.shape)
            scan = nn.scan(
                lambda m, x, _: (nn.LSTMCell(IN, name="cell")(carry, x)[1], None),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=3,
            )
            return scan(self, x, None)[0]

    with jinit.keras_defaults():
        params = Deep().init(KEY, jnp.ones((1, IN)))["params"]["cell"]
    layers = joined(params, "h", "ifgo")
    assert all(orthonormal(layer) for layer in layers)
    assert abs(layers[0] - layers[1]).max() > 0.1


def test_what_was_passed_explicitly_wins():
    explicit = {"recurrent_kernel_init": constant(0.5)}
    params = drawn(nn.LSTMCell(UNITS, **explicit))
    assert (joined(params, "h", "ifgo") == 0.5).all()
    assert (params["hf"]["bias"] == 1).all()
    np.testing.assert_array_equal(
        joined(params, "i", "ifgo"), joined(drawn(nn.LSTMCell(UNITS)), "i", "ifgo")
    )
    assert not drawn(nn.LSTMCell(UNITS, bias_init=zeros()))["hf"]["bias"].any()
    assert not joined(drawn(nn.OptimizedLSTMCell(UNITS, kernel_init=zeros())), "i", "ifgo").any()


def test_a_partitioned_kernel_stays_partitioned():
    boxed = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
    params = drawn(nn.LSTMCell(UNITS, kernel_init=boxed))
    assert params["ii"]["kernel"].names == ("in", "out")
    plain = init(nn.LSTMCell(UNITS, kernel_init=boxed))
    np.testing.assert_array_equal(params["ii"]["kernel"].value, plain["ii"]["kernel"].value)
    assert orthonormal(joined(params, "h", "ifgo"))


def test_a_subclass_follows_the_cell():
    class Mine(nn.LSTMCell):
        @nn.compact
        def __call__(self, carry, inputs):
            return super().__call__(carry, 2 * inputs)

    chex.assert_trees_all_equal(drawn(Mine(UNITS)), drawn(nn.LSTMCell(UNITS)))


def test_half_precision_is_cast_last():
    wide, half = (
        drawn(nn.LSTMCell(UNITS)),
        drawn(nn.LSTMCell(UNITS, param_dtype=jnp.bfloat16, dtype=jnp.bfloat16)),
    )
    chex.assert_trees_all_equal(half, jax.tree.map(lambda p: p.astype(jnp.bfloat16), wide))


@pytest.mark.thorough
def test_flax_alone_draws_other_matrices():
    assert not orthonormal(joined(init(nn.LSTMCell(UNITS)), "h", "ifgo"), 0.5)


def test_an_explicit_part_of_a_cell_is_all_that_is_missing():
    x = jnp.ones((1, IN))
    cell = nn.LSTMCell(UNITS)
    carry = cell.initialize_carry(KEY, x.shape)
    with jinit.keras_defaults():
        whole = cell.init(KEY, carry, x)["params"]
        part = {name: whole[name] for name in ("ii", "hi", "hf", "hg", "ho")}
        _, filled = cell.apply({"params": part}, carry, x, rngs=KEY, mutable=["params"])
    chex.assert_trees_all_equal_shapes(filled["params"], whole)
