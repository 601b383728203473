"""apex's tests of op-level casts (tests/L0/run_amp), ported by name.

Basic casts, promotion, the weight cache and recurrent networks. Ported elsewhere: checkpointing,
parameter groups, several models, losses and optimizers, and the kernels of the scaler.

Left out, since they have no meaning in JAX:

- test_basic_casts ``cpu_is_float``: apex casts CPU tensors apart from CUDA ones; a JAX program
  has one set of dtypes wherever it runs.
- test_basic_casts ``bce_raises_by_default``: PyTorch's binary cross-entropy on probabilities is
  banned under amp, since its CUDA kernel has no float32 version for half inputs. In JAX it is an
  expression whose logarithms are float32: ``bce_is_float_with_allow_banned`` is what holds.
- test_promotion ``inplace_exp_is_error_for_half`` and ``inplace_add_matches_self``: arrays are
  not changed in place.
- test_rnn ``rnn_packed_sequence``: there are no packed sequences; masks and lengths take their
  place, and are no floating arrays.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jinit import amp
from tests.amp.reference import operand_dtypes

HALVES = ["bfloat16", "float16"]
INPUTS = ["float32", "half"]
X = jax.random.normal(jax.random.key(0), (4, 8))
W = jax.random.normal(jax.random.key(1), (8, 8)) / 3
IMAGE = jax.random.normal(jax.random.key(2), (2, 6, 6, 8))


def run_layer_test(fn, ops, expected, x, half, given):
    """The dtype of operations and, as in apex, of the input's gradient: the input's."""
    dtype = half if given == "half" else "float32"
    expected = {"half": half, "float": "float32", "match": dtype}[expected]
    x = x.astype(dtype)
    cast = amp.autocast(fn, half_dtype=half, params_argnums=())
    counts = operand_dtypes(cast, x)
    assert {name for op in ops for name in counts[op]} == {expected}
    gradient = jax.grad(lambda x: cast(x).astype(jnp.float32).sum())(x)
    assert gradient.dtype == x.dtype
    assert bool(jnp.isfinite(gradient).all())


CONV = jax.random.normal(jax.random.key(3), (3, 3, 8, 8)) / 8
LABELS = jax.nn.one_hot(jnp.arange(4), 8)


def conv2d(x):
    return jax.lax.conv_general_dilated(
        x, CONV.astype(x.dtype), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def group_norm(x):
    grouped = x.reshape(*x.shape[:-1], 2, 4)
    mean = grouped.mean((1, 2, 4), keepdims=True)
    variance = jnp.square(grouped - mean).mean((1, 2, 4), keepdims=True)
    return ((grouped - mean) * jax.lax.rsqrt(variance + 1e-5)).reshape(x.shape)


def batch_norm(x):
    """With stored statistics, as a matter of its input's dtype alone."""
    return (x - jnp.asarray(0.5, x.dtype)) * jnp.asarray(1.5, x.dtype)


def bce(x):
    probability = jax.nn.sigmoid(x)
    return -(LABELS * jnp.log(probability) + (1 - LABELS) * jnp.log1p(-probability)).mean()


BASIC = {
    "linear_is_half": (lambda x: x @ W.astype(x.dtype), ["dot_general"], "half", X),
    "conv2d_is_half": (conv2d, ["conv_general_dilated"], "half", IMAGE),
    "softmax_is_float": (jax.nn.softmax, ["exp", "reduce_sum"], "float", X),
    "group_norm_is_float": (group_norm, ["reduce_sum", "square", "rsqrt"], "float", IMAGE),
    "mse_loss_is_float": (
        lambda x: jnp.square(x - LABELS.astype(x.dtype)).mean(), ["square", "reduce_sum"],
        "float", X,
    ),
    "relu_is_match": (jax.nn.relu, ["max"], "match", X),
    "batch_norm_is_match": (batch_norm, ["sub", "mul"], "match", X),
    "bce_is_float_with_allow_banned": (bce, ["log", "log1p", "reduce_sum"], "float", X),
    "matmul_method_is_half": (lambda x: x.dot(W.astype(x.dtype)), ["dot_general"], "half", X),
    "matmul_op_is_half": (lambda x: x @ W.astype(x.dtype), ["dot_general"], "half", X),
    "pow_method_is_float": (lambda x: (1 + x * x).__pow__(2.5), ["pow"], "float", X),
    "pow_op_is_float": (lambda x: x**3, ["integer_pow"], "float", X),
    "sum_is_float": (lambda x: x.sum(), ["reduce_sum"], "float", X),
}  # fmt: skip


@pytest.mark.cases
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("given", INPUTS)
@pytest.mark.parametrize("name", BASIC)
def test_basic_casts(name, given, half):
    fn, ops, expected, x = BASIC[name]
    run_layer_test(fn, ops, expected, x, half, given)


PROMOTION = {
    "atan2_matches_widest": (jnp.arctan2, "atan2"),
    "mul_matches_widest": (jnp.multiply, "mul"),
    "cat_matches_widest": (lambda a, b: jnp.concatenate([a, b]), "concatenate"),
}


@pytest.mark.cases
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("wide", [(), (0,), (1,), (0, 1)])
@pytest.mark.parametrize("name", PROMOTION)
def test_promotion(name, wide, half):
    """The two operands come half or float32 out of other operations, as tensors do in apex."""
    fn, op = PROMOTION[name]

    def mixed(x):
        operands = [x if index in wide else x @ W for index in (0, 1)]
        return fn(*operands)

    counts = operand_dtypes(amp.autocast(mixed, half_dtype=half, params_argnums=()), X)
    assert set(counts[op]) == ({"float32"} if wide else {half})
    slope = jax.grad(lambda x: amp.autocast(mixed, half_dtype=half)(x).sum())(X)
    assert slope.dtype == X.dtype


def whitelist(params, x):
    return (x @ params["weight"].T).sum()


def blacklist(params, x):
    return (x + jnp.power(jnp.abs(params["weight"]) + 1, 2.5)).sum()


def promote(params, x):
    return ((x + params["weight"]) * params["weight"]).sum()


MODULES = {"whitelist": whitelist, "blacklist": blacklist, "promote": promote}


@pytest.mark.cases
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("stored", INPUTS)
@pytest.mark.parametrize("name", MODULES)
def test_weight_cache(name, stored, half):
    """Train, evaluate and train at scale 4: the gradient is the weight's dtype, near float32's."""
    module, dtype = MODULES[name], half if stored == "half" else "float32"
    x = jnp.linspace(0.1, 1.0, 64).reshape(8, 8)
    params = {"weight": (jnp.arange(64.0).reshape(8, 8) / 64).astype(dtype)}
    exact = jax.grad(module)({"weight": params["weight"].astype(jnp.float32)}, x)["weight"]
    cast = jax.jit(amp.autocast(module, half_dtype=half))
    for scale in (1.0, None, 4.0):
        if scale is None:
            cast(params, x)
            continue
        gradient = jax.grad(lambda params, s=scale: s * cast(params, x))(params)["weight"]
        assert gradient.dtype == jnp.dtype(dtype)
        np.testing.assert_allclose(
            np.float32(gradient) / scale, exact, rtol=0.02, atol=0.02 * float(jnp.abs(exact).max())
        )


CELLS = {
    "rnn": nn.SimpleCell,
    "gru": nn.GRUCell,
    "lstm": nn.OptimizedLSTMCell,
}


def products_and_others(fn, *args):
    counts = operand_dtypes(fn, *args)
    floats = {
        dtype
        for op, dtypes in counts.items()
        for dtype in dtypes
        if op in ("add", "mul", "sub", "tanh", "logistic")
    }
    return set(counts["dot_general"]), floats


@pytest.mark.cases
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", CELLS)
def test_rnn_cell_is_half(name, half):
    """Under ``half_function`` a cell runs whole in half; without it its products do."""
    cell = CELLS[name](8)
    carry = cell.initialize_carry(jax.random.key(0), X.shape)
    params = cell.init(jax.random.key(1), carry, X)
    whole = amp.autocast(amp.half_function(cell.apply), half_dtype=half)
    assert products_and_others(whole, params, carry, X) == ({half}, {half})
    plain = amp.autocast(cell.apply, half_dtype=half)
    assert products_and_others(plain, params, carry, X)[0] == {half}
    for cast in (whole, plain):
        for ours, exact in zip(
            jax.tree.leaves(cast(params, carry, X)),
            jax.tree.leaves(cell.apply(params, carry, X)),
            strict=True,
        ):
            assert ours.dtype == exact.dtype
            np.testing.assert_allclose(ours, exact, atol=0.03)


@pytest.mark.thorough
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", CELLS)
def test_rnn_layer_is_half(name, half):
    """A layer that is a half function runs whole in half, and its gradient is float32."""
    layer = nn.RNN(CELLS[name](8))
    sequence = jnp.stack([X, -X, 2 * X], axis=1)
    params = layer.init(jax.random.key(1), sequence)
    cast = amp.autocast(amp.half_function(layer.apply), half_dtype=half)
    assert products_and_others(cast, params, sequence) == ({half}, {half})
    loss = lambda fn, params: (fn(params, sequence) ** 2).sum()  # noqa: E731
    gradient = jax.grad(functools.partial(loss, cast))(params)
    exact = jax.grad(functools.partial(loss, layer.apply))(params)
    for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(exact), strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, theirs, rtol=0.1, atol=0.05 * float(jnp.abs(theirs).max()))


@pytest.mark.cases
@pytest.mark.parametrize("level", ["O0", "O1", "O2", "O3"])
@pytest.mark.parametrize("half", HALVES)
def test_larc(level, half):
    """apex's LARC runs at every level: here optax's LARS, five steps, finite and falling."""
    params = {"w": W, "b": jnp.zeros(8)}
    apply_fn, tx = amp.initialize(
        lambda p, x: x @ p["w"] + p["b"].reshape(1, -1),
        optax.lars(0.05, trust_coefficient=0.02),
        level,
        half_dtype=half,
        verbosity=0,
    )
    params = apply_fn.policy.cast_to_param(params)
    state = tx.init(params)
    losses = []
    for _ in range(5):

        def loss_fn(params, state=state):
            loss = ((apply_fn(params, X) - LABELS) ** 2).mean()
            return amp.scale_loss(loss, state), loss

        grads, loss = jax.grad(loss_fn, has_aux=True)(params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(loss))
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
