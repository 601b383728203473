"""What a newcomer may pass in place of what a function takes, and what the error says."""

import os

os.environ["KERAS_BACKEND"] = "jax"

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

from jinit import amp
from jinit.amp.levels import resolve_half_dtype
from tests.amp.reference import bits

PARAMS = {"w": jnp.ones(2)}
SGD = optax.sgd(0.1)
TX = amp.loss_scaling(SGD)
STATE = TX.init(PARAMS)


def mlp(params, x):
    return x @ params["w"]


def square(params):
    return (params["w"] ** 2).sum()


VALUE, GRADS = amp.value_and_grad(square, STATE)(PARAMS)
KERAS = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(2)])
EQUINOX = eqx.nn.Linear(2, 2, key=jax.random.key(0))
NNX = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
HAIKU = hk.transform(lambda x: hk.Linear(2)(x))
TorchModule = type("Module", (), {"__module__": "torch.nn.modules.module", "__call__": mlp})
TORCH = type("Net", (TorchModule,), {"__module__": "user"})()

DTYPES = {
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
    "fp16": "float16",
    "f16": "float16",
    "half": "float16",
    jnp.bfloat16: "bfloat16",
    jnp.float16: "float16",
    np.float16: "float16",
    np.dtype("float16"): "float16",
}


@pytest.mark.parametrize("given", DTYPES, ids=str)
def test_the_half_dtype_under_every_name(given):
    wanted = jnp.dtype(DTYPES[given])
    assert resolve_half_dtype(given) == wanted
    assert amp.autocast(mlp, half_dtype=given).half_dtype == wanted
    policy = amp.initialize(mlp, opt_level="O2", half_dtype=given, verbosity=0).policy
    assert policy.cast_model_type == wanted
    cast = {"cast_model_type": given, "cast_model_outputs": given}
    assert amp.initialize(mlp, opt_level="O2", verbosity=0, **cast).policy.half_dtype == wanted


def test_an_array_is_not_a_dtype():
    for given in (jnp.float16(1), np.float16(1), np.ones(2, np.float16)):
        with pytest.raises(
            ValueError, match="half_dtype must be 'auto', bfloat16 or float16, not "
        ):
            resolve_half_dtype(given)


@pytest.mark.parametrize("given", ["fp32", "f32", "float32", jnp.float32], ids=str)
def test_float32_under_every_name(given):
    cast = {"cast_model_type": given, "cast_model_outputs": given}
    policy = amp.initialize(mlp, opt_level="O2", verbosity=0, **cast).policy
    assert (policy.cast_model_type, policy.output_dtype) == (jnp.float32, jnp.float32)
    with pytest.raises(ValueError, match="half_dtype must be 'auto', bfloat16 or float16, not "):
        resolve_half_dtype(given)


NO_CONTEXT = "autocast wraps a function and is no context: write fn = amp.autocast(fn)"
ITSELF = "pass the function itself, not what it returns"
A_CLASS = "pass a function, or a method of an instance"
FUNCTIONS = [
    ("cuda", "str 'cuda'", ITSELF),
    (None, "NoneType", ITSELF),
    (0.5, "float 0.5", ITSELF),
    (PARAMS, "dict", ITSELF),
    (jnp.ones(2), "an array of float32[2]", ITSELF),
    ((mlp, mlp), "(function mlp, function mlp)", ITSELF),
    (nn.Dense, "class Dense", A_CLASS),
    (jnp.float16, "class float16", A_CLASS),
    (nn.Dense(2), "a linen module (Dense)", "pass its apply, which takes the variables"),
    (HAIKU, "Transformed", "pass its apply"),
    (SGD, "GradientTransformationExtraArgs", "it is an optimizer"),
    (TORCH, "a torch module (Net)", "write it in JAX"),
]
TAKERS = {
    "autocast": amp.autocast,
    "half_function": amp.half_function,
    "float_function": amp.float_function,
    "promote_function": amp.promote_function,
    "explain": amp.explain,
    "value_and_grad": lambda fn: amp.value_and_grad(fn, STATE),
}


@pytest.mark.parametrize("name", TAKERS)
@pytest.mark.parametrize(
    ("fn", "what", "advice"), FUNCTIONS, ids=[what for _, what, _ in FUNCTIONS]
)
def test_what_is_not_a_function(name, fn, what, advice):
    if name == "autocast" and advice == ITSELF:
        advice = NO_CONTEXT
    with pytest.raises(TypeError) as caught:
        TAKERS[name](fn)
    assert str(caught.value).startswith(f"{name} takes a function, not {what}: {advice}")


def test_whatever_can_be_called_is_a_function():
    bound = nn.Dense(2).bind({"params": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}})
    for model in (EQUINOX, NNX, bound):
        fn = amp.autocast(amp.half_function(model))
        np.testing.assert_allclose(fn(jnp.ones(2)), model(jnp.ones(2)), atol=0.05)


MODEL = "a model must be an apply_fn(variables, *inputs) or a module, not "
MODELS = [
    (
        KERAS,
        "a Keras model (Sequential) (pass a function of (variables, *inputs) that calls model.",
    ),
    (TORCH, "a torch module (Net) (write it in JAX: "),
    (nn.Dense, "class Dense (pass an instance, or a function)"),
    (NNX.__class__, "class Linear (pass an instance, or a function)"),
    ("mlp", "str 'mlp' (pass the function that applies it)"),
    (PARAMS, "dict (pass the function that applies it)"),
    (None, "NoneType (pass the function that applies it)"),
    (
        SGD,
        "GradientTransformationExtraArgs (an optimizer: in amp.initialize models go before "
        "optimizers)",
    ),
]


@pytest.mark.parametrize(("model", "text"), MODELS, ids=[text.split(" (")[0] for _, text in MODELS])
@pytest.mark.parametrize("enabled", [True, False])
def test_what_is_not_a_model(model, text, enabled, capsys):
    for models in (model, [mlp, model]):
        with pytest.raises(TypeError) as caught:
            amp.initialize(models, SGD, enabled=enabled)
        assert str(caught.value).startswith(MODEL + text)
    assert capsys.readouterr().out == ""


def train_state():
    return TrainState.create(apply_fn=mlp, params=PARAMS, tx=SGD)


ORDER = "(in amp.initialize models go before optimizers)"
OPTIMIZERS = [
    (optax.adam, "function adam (call it: optax.adam(...))"),
    (mlp, f"function mlp {ORDER}"),
    (NNX, f"Linear {ORDER}"),
    (HAIKU, f"Transformed {ORDER}"),
    (0.1, "float 0.1 (a learning rate is given to one: optax.adam(0.1))"),
    (nnx.Optimizer(NNX, SGD, wrt=nnx.Param), "Optimizer (pass the optax transformation that it "),
    (train_state(), "TrainState (pass its tx, and what comes back to TrainState.create(tx=...))"),
    (keras.optimizers.Adam(), "Adam (write optax's, as in optax.adam(0.001))"),
    ("adam", "str 'adam' (write one, as in optax.adam(0.001))"),
    ("O2", "str 'O2' (the level is given by name: opt_level='O2')"),
    (STATE, "LossScalingState (a state is made by one: pass what made it)"),
    (PARAMS, "dict (write one, as in optax.adam(0.001))"),
]
WRAPPERS = {
    "initialize": lambda tx: amp.initialize(mlp, tx),
    "loss_scaling": amp.loss_scaling,
    "master_weights": amp.master_weights,
    "stochastic_rounding": amp.stochastic_rounding,
}


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize(("tx", "text"), OPTIMIZERS, ids=[t.split(" (")[0] for _, t in OPTIMIZERS])
def test_what_is_not_an_optimizer(name, tx, text, capsys):
    with pytest.raises(TypeError) as caught:
        WRAPPERS[name](tx)
    expected = f"an optimizer must be an optax.GradientTransformation, not {text}"
    assert str(caught.value).startswith(expected)
    assert capsys.readouterr().out == ""


NOT_A_STATE = "opt_state must be the state of an optimizer, not "
WRITE_STATE = (
    ": write opt_state = tx.init(params), and after a step the state that tx.update returned"
)
STATES = [
    (TX, TypeError, f"{NOT_A_STATE}GradientTransformationExtraArgs{WRITE_STATE}"),
    (SGD, TypeError, f"{NOT_A_STATE}GradientTransformationExtraArgs{WRITE_STATE}"),
    (optax.MultiSteps(SGD, 2), TypeError, f"{NOT_A_STATE}MultiSteps{WRITE_STATE}"),
    (None, TypeError, f"{NOT_A_STATE}NoneType{WRITE_STATE}"),
    (128.0, TypeError, f"{NOT_A_STATE}float 128.0{WRITE_STATE}"),
    ("dynamic", TypeError, f"{NOT_A_STATE}str 'dynamic'{WRITE_STATE}"),
    (mlp, TypeError, f"{NOT_A_STATE}function mlp{WRITE_STATE}"),
    (
        optax.adam(0.1).init(PARAMS),
        ValueError,
        "opt_state holds no loss_scale where one is needed: initialize the optimizer with "
        "amp.initialize or amp.loss_scaling, and give the state of one, not "
        "(ScaleByAdamState, EmptyState)",
    ),
    (PARAMS, ValueError, "opt_state holds no loss_scale where one is needed: "),
    ([STATE, STATE], ValueError, "opt_state holds 2 loss_scale where one is needed: "),
]
STATE_TAKERS = {
    "scale_loss": lambda state: amp.scale_loss(1.0, state),
    "value_and_grad": lambda state: amp.value_and_grad(square, state),
    "unscale": lambda state: amp.unscale(PARAMS, state),
    "state_dict": amp.state_dict,
    "load_state_dict": lambda state: amp.load_state_dict(state, amp.state_dict(STATE)),
}


@pytest.mark.parametrize("name", STATE_TAKERS)
@pytest.mark.parametrize(("state", "error", "text"), STATES)
def test_what_is_not_the_state_of_a_scaled_optimizer(name, state, error, text):
    with pytest.raises(error) as caught:
        STATE_TAKERS[name](state)
    assert str(caught.value).startswith(text)


def grad_of(loss, **keywords):
    return amp.value_and_grad(loss, STATE, **keywords)(PARAMS)


LOSS = "a loss must be a float32 scalar, not "
PAIR = "has_aux=True asks for (loss, aux), but the loss function returned "
CALL_STATE = ": write update(grads, state, params) with the state that init(params) or the last "
MASTERS = amp.master_weights(SGD)
ROUNDED = amp.stochastic_rounding(SGD)
OUTER = (
    "which looks into the gradients before it: loss_scaling must be outermost, amp.loss_scaling("
)
IF_FINITE = optax.apply_if_finite(TX, 3)
ACCUMULATED = optax.MultiSteps(TX, 2).gradient_transformation()
ALONE = (
    "hand over the UnscaledGrads alone, as in loss, grads = amp.value_and_grad(loss_fn, opt_state)("
)
CALLS = {
    "loss None": (lambda: grad_of(lambda p: None), TypeError, f"{LOSS}NoneType: return the loss"),
    "loss dict": (
        lambda: grad_of(lambda p: {"l": 1.0}),
        TypeError,
        f"{LOSS}dict: take the loss al",
    ),
    "loss pair": (
        lambda: grad_of(lambda p: (square(p), 1)),
        TypeError,
        f"{LOSS}(an array of float32[], int 1): take the loss alone, and write has_aux=True where "
        "a function returns (loss, aux)",
    ),
    "loss function": (
        lambda: amp.scale_loss(square, STATE),
        TypeError,
        f"{LOSS}function square: call it, or write amp.value_and_grad(loss_fn, opt_state)",
    ),
    "loss str": (lambda: amp.scale_loss("x", STATE), TypeError, f"{LOSS}str 'x': take the loss al"),
    "loss swapped": (
        lambda: amp.scale_loss(STATE, 1.0),
        TypeError,
        f"{LOSS}LossScalingState: the order is loss, opt_state",
    ),
    "loss half": (
        lambda: grad_of(lambda p: square(p).astype(jnp.bfloat16)),
        ValueError,
        f"{LOSS}bfloat16 of shape (): average it, and cast the model's outputs to float32",
    ),
    "loss vector": (
        lambda: grad_of(lambda p: p["w"]),
        ValueError,
        f"{LOSS}float32 of shape (2,): average it",
    ),
    "aux missing": (lambda: grad_of(square, has_aux=True), TypeError, PAIR),
    "aux triple": (lambda: grad_of(lambda p: (1.0, 2, 3), has_aux=True), TypeError, PAIR),
    "loss_id early": (
        lambda: amp.value_and_grad(square, STATE, 1),
        ValueError,
        "loss_id must be 0, the only loss, not 1: the optimizer has num_losses=1",
    ),
    "unscale None": (
        lambda: amp.unscale(None, STATE),
        TypeError,
        "grads must be a tree of gradients, not NoneType: write grads = jax.grad(loss_fn)(params)",
    ),
    "unscale function": (
        lambda: amp.unscale(jax.grad(square), STATE),
        TypeError,
        "grads must be a tree of gradients, not function square: write",
    ),
    "unscale str": (
        lambda: amp.unscale({"w": jnp.ones(2), "act": "relu"}, STATE),
        TypeError,
        "grads must be a tree of arrays, but not an array is grads['act'] (str 'relu')",
    ),
    "unscale twice": (
        lambda: amp.unscale(GRADS, STATE),
        TypeError,
        "the gradients are unscaled already: hand them to the optimizer",
    ),
    "update pair": (
        lambda: TX.update((VALUE, GRADS), STATE, PARAMS),
        TypeError,
        "grads[1] is unscaled already, and grads is (an array of float32[], UnscaledGrads): "
        f"{ALONE}",
    ),
    "update nothing": (
        lambda: TX.update(None, STATE, PARAMS),
        TypeError,
        "grads must be a tree of gradients, not NoneType",
    ),
    "overflow twice": (
        lambda: TX.update(GRADS, STATE, PARAMS, overflow=GRADS.overflow),
        TypeError,
        "overflow= goes with grads.grads: write it, or hand over grads alone",
    ),
    "overflow bool": (
        lambda: TX.update(GRADS.grads, STATE, PARAMS, overflow=True),
        TypeError,
        "overflow must hold a mark for every loss_id, not bool True: write overflow=grads.overflow",
    ),
    "overflow number": (
        lambda: TX.update(amp.UnscaledGrads(PARAMS, 0.0), STATE, PARAMS),
        TypeError,
        "overflow must hold a mark for every loss_id, not float 0.0: write overflow=grads.overflow",
    ),
    "state of sgd": (
        lambda: TX.update(GRADS, SGD.init(PARAMS), PARAMS),
        TypeError,
        f"loss_scaling takes a LossScalingState, not (EmptyState, EmptyState){CALL_STATE}",
    ),
    "state swapped": (
        lambda: TX.update(STATE, GRADS, PARAMS),
        TypeError,
        f"loss_scaling takes a LossScalingState, not UnscaledGrads{CALL_STATE}",
    ),
    "state None": (
        lambda: TX.update(GRADS, None, PARAMS),
        TypeError,
        f"loss_scaling takes a LossScalingState, not NoneType{CALL_STATE}",
    ),
    "masters' state": (
        lambda: MASTERS.update(PARAMS, SGD.init(PARAMS), PARAMS),
        TypeError,
        f"master_weights takes a MasterWeightsState, not (EmptyState, EmptyState){CALL_STATE}",
    ),
    "rounding's state": (
        lambda: ROUNDED.update(PARAMS, STATE, PARAMS),
        TypeError,
        f"stochastic_rounding takes a StochasticRoundingState, not LossScalingState{CALL_STATE}",
    ),
    "params": (
        lambda: TX.init({"w": jnp.ones(2), "act": jnp.tanh}),
        TypeError,
        "params must be a tree of arrays, but not an array is params['act'] (",
    ),
    "seed": (
        lambda: amp.stochastic_rounding(SGD, 0.1),
        TypeError,
        "seed must be an integer, from which the bits follow, not float 0.1",
    ),
    "seed key": (
        lambda: amp.stochastic_rounding(SGD, jax.random.key(0)),
        TypeError,
        "seed must be an integer, from which the bits follow, not an array of key<fry>[]",
    ),
    "apply_if_finite": (
        lambda: amp.value_and_grad(square, IF_FINITE.init(PARAMS)),
        ValueError,
        f"loss scaling is inside optax.apply_if_finite, {OUTER}optax.apply_if_finite(...))",
    ),
    "apply_if_finite, unscaled": (
        lambda: amp.unscale(PARAMS, optax.chain(SGD, IF_FINITE).init(PARAMS)),
        ValueError,
        f"loss scaling is inside optax.apply_if_finite, {OUTER}optax.apply_if_finite(...))",
    ),
    "MultiSteps": (
        lambda: amp.value_and_grad(square, ACCUMULATED.init(PARAMS)),
        ValueError,
        f"loss scaling is inside optax.MultiSteps, {OUTER}optax.MultiSteps(...)"
        ".gradient_transformation())",
    ),
    "policy": (
        lambda: amp.autocast(mlp, "O1"),
        TypeError,
        "policy must be an amp.Policy, not str 'O1': write half_dtype=... for a dtype, and amp.ini",
    ),
    "policy dtype": (
        lambda: amp.autocast(mlp, jnp.float16),
        TypeError,
        "policy must be an amp.Policy, not class float16: write half_dtype=",
    ),
    "policy of": (
        lambda: amp.autocast(mlp, amp.initialize(mlp, verbosity=0)),
        TypeError,
        "policy must be an amp.Policy, not MixedPrecisionApply mlp: write its .policy",
    ),
    "ops": (
        lambda: amp.autocast(mlp, ops=["exp"]),
        ValueError,
        "ops must be amp.OPS or its extension, not ['exp']",
    ),
    "ops function": (
        lambda: amp.OPS.extend(half=[abs]),
        TypeError,
        "half must hold the names of primitives, as amp.explain shows them, not <built-in function",
    ),
    "ops number": (
        lambda: amp.OPS.extend(half=3),
        TypeError,
        "half must be an iterable of primitives' names, not 3",
    ),
    "argnums": (
        lambda: amp.autocast(mlp, params_argnums="w"),
        ValueError,
        "params_argnums must be positions such as 0 or (0, 1), counted from 0, not 'w'",
    ),
    "argnums negative": (
        lambda: amp.autocast(mlp, params_argnums=(-1,)),
        ValueError,
        "params_argnums must be positions such as 0 or (0, 1), counted from 0, not (-1,)",
    ),
    "argnums beyond": (
        lambda: amp.autocast(jnp.matmul, params_argnums=(2, 5))(jnp.eye(2), jnp.eye(2)),
        ValueError,
        "params_argnums=(2, 5) names none of the 2 positional arguments, which are counted from 0",
    ),
    "disable_casts": (
        lambda: amp.disable_casts(mlp),
        TypeError,
        "disable_casts takes no arguments: write with amp.disable_casts(): or @amp.disable_casts()",
    ),
    "level": (
        lambda: amp.initialize(mlp, opt_level=np.ones(2)),
        ValueError,
        "unknown opt_level array([1., 1.]): the levels are 'O0', 'O1', 'O2' and 'O3'",
    ),
    "keyword": (
        lambda: amp.initialize(mlp, keep_batchnorm=True),
        TypeError,
        "initialize takes no keep_batchnorm=, did you mean keep_batchnorm_fp32=? its arguments: ",
    ),
    "enabled": (
        lambda: amp.initialize(mlp, enabled="no"),
        ValueError,
        "enabled must be True or False, not 'no'",
    ),
    "num_losses": (
        lambda: amp.initialize(mlp, num_losses="two"),
        ValueError,
        "num_losses must be a positive integer, not 'two'",
    ),
    "verbosity": (
        lambda: amp.initialize(mlp, verbosity="loud"),
        ValueError,
        "verbosity must be 0 or 1, not 'loud'",
    ),
    "skip_nonfinite": (
        lambda: amp.loss_scaling(SGD, skip_nonfinite="no"),
        ValueError,
        "skip_nonfinite must be True or False, not 'no'",
    ),
    "scale_factor": (
        lambda: amp.loss_scaling(SGD, scale_factor=2.0),
        TypeError,
        "loss_scaling takes no scale_factor=: write growth_factor=scale_factor, backoff_factor=1/",
    ),
    "dict swapped": (
        lambda: amp.load_state_dict(amp.state_dict(STATE), STATE),
        TypeError,
        "state must be a dictionary, not LossScalingState: the order is opt_state, state",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls(name):
    call, error, text = CALLS[name]
    before = bits(STATE)
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(text)
    assert bits(STATE) == before


def test_loss_scaling_outermost_takes_what_looks_into_updates():
    """What the errors tell to write works, and the scale backs off."""
    for inner in (
        optax.apply_if_finite(SGD, 3),
        optax.MultiSteps(SGD, 1).gradient_transformation(),
        optax.masked(SGD, {"w": True}),
        optax.chain(optax.clip_by_global_norm(1.0), SGD),
    ):
        tx = amp.loss_scaling(inner, init_scale=8.0)
        state = tx.init(PARAMS)
        for factor, scale in ((1.0, 8.0), (jnp.inf, 4.0)):
            _, grads = amp.value_and_grad(lambda p, f=factor: f * square(p), state)(PARAMS)
            updates, state = jax.jit(tx.update)(grads, state, PARAMS)
            assert float(state.loss_scale) == scale
            assert np.isfinite(updates["w"]).all()


@pytest.mark.parametrize("wrap", [
    lambda tx: optax.masked(tx, {"w": True}),
    lambda tx: optax.multi_transform({"all": tx}, {"w": "all"}),
])  # fmt: skip
def test_gradients_and_marks_pass_through_masks(wrap):
    tx = wrap(amp.loss_scaling(SGD, init_scale=8.0))
    state = tx.init(PARAMS)
    _, grads = amp.value_and_grad(lambda p: jnp.inf * square(p), state)(PARAMS)
    updates, state = tx.update(grads.grads, state, PARAMS, overflow=grads.overflow)
    assert float(optax.tree.get(state, "loss_scale")) == 4.0
    assert updates["w"].tolist() == [0.0, 0.0]


def test_models_that_can_be_called_are_gradients_and_states_as_well():
    tx = amp.loss_scaling(SGD, init_scale=8.0)
    arrays = eqx.filter(EQUINOX, eqx.is_array)
    state = tx.init(arrays)
    loss = lambda model: (model(jnp.ones(2)) ** 2).sum()  # noqa: E731
    _, grads = amp.value_and_grad(loss, state)(arrays)
    scaled = jax.grad(lambda model: amp.scale_loss(loss(model), state))(arrays)
    assert bits(amp.unscale(scaled, state)) == bits(grads)


def test_whole_numbers_of_numpy_are_counts():
    tx = amp.loss_scaling(SGD, growth_interval=np.int64(5), skip_nonfinite=np.bool_(True))
    assert float(tx.init(PARAMS).loss_scale) == 2.0**16


def test_a_skipped_step_leaves_what_the_forward_pass_returned_and_where_keeps_the_old():
    norm = nn.BatchNorm(use_running_average=False, momentum=0.5)
    bad = jnp.array([[1.0], [jnp.inf]])
    variables = norm.init(jax.random.key(0), bad)
    tx = amp.loss_scaling(SGD)
    state = tx.init(variables["params"])

    def loss_fn(params):
        y, new = norm.apply({**variables, "params": params}, bad, mutable="batch_stats")
        return (y**2).sum(), new["batch_stats"]

    (_, new), grads = amp.value_and_grad(loss_fn, state, has_aux=True)(variables["params"])
    updates, state = tx.update(grads, state, variables["params"])
    old = variables["batch_stats"]
    assert not np.isfinite(new["mean"]).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))
    finite = optax.tree.get(state, "last_finite").all()
    assert not finite
    assert not grads.finite
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)
    assert bits(kept) == bits(old)


@pytest.mark.parametrize("params_argnums", [(), (0, 7)])
def test_argnums_may_name_none_or_more_than_are_given(params_argnums):
    fn = amp.autocast(lambda w, x=1.0, *, y=1.0: w * x * y, params_argnums=params_argnums)
    assert fn(jnp.ones(2)).shape == (2,)
    assert amp.autocast(lambda *, w: 2 * w, params_argnums=3)(w=jnp.ones(2)).sum() == 4
