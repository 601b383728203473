"""Arguments of the wrong kind: what the error says, before anything is computed."""

import functools
import os
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

X = jax.random.normal(jax.random.key(1), (64, 4))
MODEL = nn.Dense(8)
VARIABLES = MODEL.init(jax.random.key(0), X)
MLP = eqx.nn.MLP(4, 8, 16, 2, key=jax.random.key(0))
ORDER = "; the order is params, apply_fn, dummy_input, dummy_loss"
CALLS = [jinit.empirical_init, jinit.calibrate, functools.partial(jinit.calibrate, mode="explicit")]
IDS = ["empirical_init", "calibrate", "explicit"]


class WithState(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(nn.BatchNorm(use_running_average=False)(nn.Dense(8)(x)))


STATE = WithState().init(jax.random.key(0), X)
MUTABLE = functools.partial(WithState().apply, mutable=["batch_stats"])


def loss(y):
    return jnp.sum(y**2)


def linear(p, x):
    return x @ p["w"]


ALONE = (
    "; pass the arrays alone, for example by equinox.partition(model, equinox.is_array), and "
    "combine them with the rest inside apply_fn"
)
UNBOUND = (
    "which holds no variables; pass those that its init returned before it, as in "
    "jinit.calibrate(variables, model, x, loss)"
)
HIDDEN = (
    ", whose arrays it hides; pass the module itself first, and after it what calls it, as in "
    "jinit.calibrate(model, lambda m, x: jax.vmap(m)(x), x, loss)"
)
WRAPPED = jinit.empirical.wrap_all_leaf_modules(MODEL)
HAIKU = hk.transform(lambda x: hk.Linear(8)(x))
HAIKU_WITH_STATE = hk.transform_with_state(lambda x: hk.Linear(8)(x))
HAIKU_PARAMS = HAIKU.init(jax.random.key(0), X)
HAIKU_CALLED = (
    "apply_fn is called as apply_fn(params, input), but missing a required argument: {}; Haiku's "
    "apply takes "
)
RANDOM_KEY = (
    "a random key after the params: pass what haiku.transform returned in its place, or "
    "lambda p, x: f.apply(p, rng, x)"
)
WRONG = {
    "leaves of other types": (
        ({"w": jnp.eye(4), "name": "dense", "f": {"act": jax.nn.relu}, "of": np.array(["a"])},
         linear, X, loss),
        "params holds leaves that are not arrays: f/act (custom_jvp), name (str), of (ndarray)"
        + ALONE,
    ),
    "a class": (
        (VARIABLES, nn.Dense, X, loss),
        "apply_fn is the class Dense; pass a function of (params, *inputs), such as the apply of "
        "an instance",
    ),
    "params and apply_fn swapped": (
        (MODEL.apply, VARIABLES, X, loss),
        "params is the function apply, which is not a tree of arrays; pass a tree of arrays"
        + ORDER,
    ),
    "a model first": (
        (MODEL, VARIABLES, X, loss),
        f"params is a linen module (Dense), {UNBOUND}",
    ),
    "a linen module without variables": (
        (MODEL, X, loss),
        f"params is a linen module (Dense), {UNBOUND}",
    ),
    "what haiku.transform returned, without params": (
        (HAIKU, X, loss),
        f"params is Haiku's Transformed, {UNBOUND}",
    ),
    "a wrapped model without variables": (
        (WRAPPED, X, loss),
        f"params is a WrappedModel, {UNBOUND}",
    ),
    "a function made of an Equinox module": (
        (jax.vmap(MLP), X, loss),
        f"params is a function made of an Equinox module (MLP){HIDDEN}",
    ),
    "a jitted method of an NNX module": (
        (jax.jit(nnx.Linear(4, 8, rngs=nnx.Rngs(0)).__call__), X, loss),
        f"params is a function made of an NNX object (Linear){HIDDEN}",
    ),
    "a part of an Equinox module's call": (
        (functools.partial(MLP, key=None), X, loss),
        f"params is a function made of an Equinox module (MLP){HIDDEN}",
    ),
    "a module and a function made of it": (
        (MLP, jax.vmap(MLP), X, loss),
        "apply_fn is called as <unnamed function>(params, input), but too many positional "
        f"arguments; it is made of an Equinox module (MLP){HIDDEN}",
    ),
    "Haiku's apply with a key": (
        (HAIKU_PARAMS, HAIKU.apply, X, loss),
        HAIKU_CALLED.format("'x'") + RANDOM_KEY,
    ),
    "Haiku's apply with state": (
        ((HAIKU_PARAMS, {}), HAIKU_WITH_STATE.apply, X, loss),
        HAIKU_CALLED.format("'rng'") + "the state after the params: pass in its place what "
        "haiku.transform_with_state returned, and before it (params, state)",
    ),
    "apply_fn and dummy_input swapped": (
        (VARIABLES, X, MODEL.apply, loss),
        "apply_fn is an array of float32[64, 4]; pass a function of (params, *inputs)" + ORDER,
    ),
    "dummy_input and dummy_loss swapped": (
        (VARIABLES, MODEL.apply, loss, X),
        "dummy_loss is an array of float32[64, 4], which cannot be called; pass a function of "
        "(output) or (output, key)" + ORDER,
    ),
    "apply_fn and dummy_loss swapped": (
        (VARIABLES, loss, X, MODEL.apply),
        "apply_fn is called as loss(params, input), but too many positional arguments; pass a "
        "function of (params, *inputs), and several inputs as a tuple" + ORDER,
    ),
    "no input": (
        (VARIABLES, MODEL.apply, None, loss),
        "dummy_input is None; pass example inputs, or a function that draws them",
    ),
    "the shape of an input": (
        (VARIABLES, MODEL.apply, jax.ShapeDtypeStruct((64, 4), jnp.float32), loss),
        "dummy_input holds shapes; pass arrays, or a function that draws them",
    ),
    "no loss": (
        (VARIABLES, MODEL.apply, X, None),
        "dummy_loss is None, which cannot be called; pass a function of (output) or (output, key)"
        + ORDER,
    ),
    "a model with its apply": (
        (VARIABLES, type("Transformed", (), {"apply": None})(), X, loss),
        "apply_fn is a Transformed; pass its apply",
    ),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS, ids=IDS)
@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_the_argument_is_named(call, arguments, message):
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        call(*arguments)


def test_shapes_have_nothing_to_rescale():
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), X)
    message = (
        "params holds leaves that are not arrays: params/bias (ShapeDtypeStruct), params/kernel "
        "(ShapeDtypeStruct); pass what model.init returned, not its shapes"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        jinit.empirical_init(shapes, MODEL.apply, X, loss)


def test_keys_for_a_function_that_haiku_gives_its_own():
    message = (
        "apply_fn is called as apply_fn(params, input, rngs=...), but got an unexpected keyword "
        "argument 'rngs'; pass a function of (params, *inputs), and several inputs as a tuple, or "
        "leave rngs out where the module draws by itself"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message + ORDER)}$"):
        jinit.calibrate(HAIKU_PARAMS, HAIKU, X, loss, rngs="dropout")


def test_haikus_apply_takes_an_input_for_the_key():
    with pytest.raises(ValueError, match="Apply must be called with an RNG") as caught:
        jinit.calibrate(HAIKU_PARAMS, HAIKU.apply, (X, X), loss)
    assert f"Haiku's apply takes {RANDOM_KEY}" in caught.value.__notes__


def test_haikus_apply_is_taken_where_the_inputs_hold_the_key():
    jinit.empirical_init(HAIKU_PARAMS, HAIKU.apply, lambda key: (key, X), loss)
    jinit.empirical_init(HAIKU_PARAMS, hk.without_apply_rng(HAIKU).apply, X, loss)


@pytest.mark.parametrize("call", CALLS, ids=IDS)
def test_a_wrapped_model_stands_where_its_apply_does(call):
    variables = WRAPPED.init(jax.random.key(0), X)
    found, expected = (call(variables, f, X, loss, samples=1) for f in (WRAPPED, WRAPPED.apply))
    if call is not jinit.empirical_init:
        y = found.apply_fn(found.params, X)
        np.testing.assert_array_equal(y, expected.apply_fn(expected.params, X))
        found, expected = found.params, expected.params
    jax.tree.map(np.testing.assert_array_equal, found, expected)


CARRY = (
    "if its first part is a carry, as of a recurrent layer, let dummy_loss take the second, as in "
    "lambda y: loss(y[1])"
)
STATE_BESIDE = "if its second part is state, as with Flax's mutable=, pass has_aux=True"
CARRIES = {
    "a carry of one array": (nn.GRUCell(4), X, f"{CARRY}; {STATE_BESIDE}"),
    "a carry of two": (nn.LSTMCell(4), (X, X), CARRY),
}


@pytest.mark.parametrize(("cell", "carry", "told"), CARRIES.values(), ids=CARRIES)
def test_a_carry_before_the_output_asks_for_a_loss_of_the_second(cell, carry, told):
    variables = cell.init(jax.random.key(0), carry, X)
    message = rf"^{type(cell).__name__} returned a pair, on which dummy_loss failed \(.*tuple.*\); "
    with pytest.raises(ValueError, match=f"{message}{re.escape(told)}$"):
        jinit.empirical_init(variables, cell, (carry, X), loss)
    jinit.empirical_init(variables, cell, (carry, X), lambda y: loss(y[1]))


def test_has_aux_takes_no_carry_for_the_output():
    cell, carry = CARRIES["a carry of two"][:2]
    variables = cell.init(jax.random.key(0), carry, X)
    message = (
        r"^has_aux=True takes the first part of what LSTMCell returned for the output, a tuple, on "
        r"which dummy_loss failed \(.*\); if its first part is a carry, as of a recurrent layer, "
        r"leave has_aux out, and let dummy_loss take the second, as in lambda y: loss\(y\[1\]\)$"
    )
    with pytest.raises(ValueError, match=message):
        jinit.calibrate(variables, cell, (carry, X), loss, has_aux=True)


@pytest.mark.cases
@pytest.mark.parametrize("call", CALLS, ids=IDS)
@pytest.mark.parametrize("failing", [loss, lambda y: y.mean()])
def test_state_beside_the_output_asks_for_has_aux(call, failing):
    message = (
        r"^apply returned a pair, on which dummy_loss failed \(.*tuple.*\); if its second part is "
        "state, as with Flax's mutable=, pass has_aux=True$"
    )
    with pytest.raises(ValueError, match=message):
        call(STATE, MUTABLE, X, failing)
    call(STATE, MUTABLE, X, failing, has_aux=True)


@pytest.mark.parametrize("call", CALLS, ids=IDS)
def test_has_aux_without_a_pair_is_refused(call):
    """Its first row would be taken for the output."""
    message = (
        "has_aux=True asks for (output, aux), but apply returned an array of float32[64, 8]; leave "
        "has_aux out, or return both, as Flax does with mutable="
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
        call(VARIABLES, MODEL.apply, X, loss, has_aux=True)


def test_a_pair_may_be_the_output():
    tuned = jinit.empirical_init(
        {"w": 7 * jnp.eye(4)}, lambda p, x: (linear(p, x), x), X, lambda y: y[0].sum()
    )
    assert float(jnp.mean(linear(tuned, X) ** 2)) == pytest.approx(1, rel=1e-4)


def test_keys_that_a_model_does_not_take():
    message = (
        "apply_fn is called as linear(params, input, rngs=...), but got an unexpected keyword "
        "argument 'rngs'; pass a function of (params, *inputs), and several inputs as a tuple"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message + ORDER)}$"):
        jinit.empirical_init({"w": jnp.eye(4)}, linear, X, loss, rngs="dropout")


@pytest.mark.parametrize(
    "leaf", [np.float32(2), 2.0, 3, True, np.ones(2, jnp.bfloat16), jax.random.key(0), 1j]
)
def test_numbers_and_keys_are_leaves(leaf):
    tuned = jinit.empirical_init({"w": 7 * jnp.eye(4), "other": leaf}, linear, X, loss)
    assert float(jnp.mean(linear(tuned, X) ** 2)) == pytest.approx(1, rel=1e-4)


def test_an_equinox_model_by_its_arrays():
    params, static = eqx.partition(MLP, eqx.is_array)

    def apply_fn(params, x):
        return jax.vmap(eqx.combine(params, static))(x)

    tuned = jinit.empirical_init(params, apply_fn, X, loss)
    assert float(jnp.mean(apply_fn(tuned, X) ** 2)) == pytest.approx(1, rel=1e-3)


def test_a_keras_model_is_named():
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(8)])
    message = (
        "params is a Keras model (Sequential), which is not a tree of arrays; pass as params "
        "[v.value for v in model.trainable_variables], and as apply_fn a function that calls "
        "model.stateless_call"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message + ORDER)}$"):
        jinit.calibrate(model, lambda m, x: m(x), X, loss)
    message = "params holds leaves that are not arrays: 0 (Variable), 1 (Variable); pass the value"
    with pytest.raises(TypeError, match=re.escape(message)):
        jinit.calibrate(model.weights, lambda p, x: x @ p[0], X, loss)
    with pytest.raises(TypeError, match=r"got a Keras model \(Sequential\)$"):
        jinit.describe(model, X)
    with pytest.raises(TypeError, match=r"^make_model is a Keras model \(Sequential\); pass a"):
        jinit.coord_check(model, [4, 8], X, loss)


@pytest.mark.parametrize("call", CALLS, ids=IDS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": 0}, "key is an int; pass one such as jax.random.key(0)"),
        (
            {"key": np.int32(0)},
            "key is an array of int32[]; pass one such as jax.random.key(0)",
        ),
        ({"exclude": loss}, "exclude is the function loss; pass a text or a list of texts"),
        ({"include": [3]}, "include is a list; pass a text or a list of texts"),
        ({"rngs": 3}, "rngs is an int; pass a text or a list of texts"),
    ],
)
def test_the_option_is_named(call, options, message):
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        call(VARIABLES, MODEL.apply, X, loss, **options)


@pytest.mark.parametrize("shape", [(4,), (64, 4), [64, 4]])
def test_a_shape_in_place_of_an_input_is_noted(shape):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        jinit.empirical_init(VARIABLES, MODEL.apply, shape, loss)
    note = "dummy_input holds single numbers: for inputs of a shape pass jnp.ones(shape)"
    assert note in caught.value.__notes__


def test_coord_check_names_its_key_and_its_input():
    def make_model(width):
        return {"w": jnp.ones((4, width))}, linear

    with pytest.raises(TypeError, match=r"^key is an int; pass one such as"):
        jinit.coord_check(make_model, [4, 8], X, loss, key=0)
    with pytest.raises(TypeError, match=r"^dummy_input is None; pass example inputs"):
        jinit.coord_check(make_model, [4, 8], None, loss)


@pytest.mark.parametrize(
    ("module", "found"),
    [(3, "an int"), (nn.Dense, "the class Dense; call it"), (loss, "the function loss")],
)
def test_normed_names_what_it_cannot_wrap(module, found):
    with pytest.raises(TypeError, match=f"^Normed wraps a linen module, not {found}"):
        jinit.empirical.Normed(module).init(jax.random.key(0), X)


def test_an_error_in_a_dummy_input_says_how_it_was_called():
    """As in a loss in its place, which takes a key and a size for an output and a key."""

    def loss(y, key):
        return jnp.sum(y * jax.random.normal(key, y.shape))

    params = {"w": jnp.eye(4)}
    with pytest.raises(Exception) as caught:  # noqa: PT011
        jinit.empirical_init(params, lambda p, x: x @ p["w"], loss, lambda key: jnp.ones((2, 4)))
    (note,) = [n for n in caught.value.__notes__ if n.startswith("raised by dummy_input, the func")]
    assert note.endswith(
        "loss, which was called with (key, batch_size); the order is params, apply_fn, "
        "dummy_input, dummy_loss"
    )
