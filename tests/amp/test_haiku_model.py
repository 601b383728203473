"""Haiku's transformed functions at a level."""

import pickle
import re

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jinit import amp
from tests.amp.reference import bits, dtypes, operand_dtypes

LEVELS = ["O2", "O0", "O1", "O3"]  # the quick suite runs the first

pytestmark = pytest.mark.cases
X = jax.random.normal(jax.random.key(0), (16, 8))
KEY = jax.random.key(1)


def mlp(x, train=False):
    x = jax.nn.relu(hk.Linear(8)(x))
    if train:
        x = hk.dropout(hk.next_rng_key(), 0.5, x)
    return hk.Linear(2)(x)


def normed(x, train=True):
    x = hk.BatchNorm(True, True, 0.9, name="statistics")(hk.Linear(8)(x), is_training=train)
    calls = hk.get_state("calls", (), jnp.int32, init=jnp.zeros)
    hk.set_state("calls", calls + 1)
    return hk.Linear(2)(jnp.tanh(x))


PLAIN, STATEFUL = hk.transform(mlp), hk.transform_with_state(normed)


def at(level, pair, half="bfloat16", **keywords):
    return amp.initialize(pair, None, level, half_dtype=half, **keywords)


def close(found, wanted, atol=0.06):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(
            np.asarray(mine, np.float32), np.asarray(theirs, np.float32), atol=atol
        )


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
@pytest.mark.parametrize("level", LEVELS)
def test_a_pair_without_state(level, half):
    model = at(level, PLAIN, half)
    params, wanted = model.init(KEY, X), PLAIN.init(KEY, X)
    assert dtypes(params) == {half if level == "O3" else "float32"}
    if level != "O3":
        assert bits(params) == bits(wanted)
    for rng in (None, KEY, jax.random.PRNGKey(0)):
        found = model.apply(params, rng, X)
        close(found, PLAIN.apply(wanted, rng, X))
        assert bits(model(params, rng, X)) == bits(found)
        assert found.dtype == jnp.float32
    close(model.apply(params, KEY, X, train=True), PLAIN.apply(wanted, KEY, X, train=True), 0.2)
    run = "float32" if level == "O0" else half
    assert operand_dtypes(model.apply, params, KEY, X)["dot_general"] == {run: 2}
    if level == "O0":
        assert bits(model.apply(params, KEY, X)) == bits(PLAIN.apply(wanted, KEY, X))


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
@pytest.mark.parametrize("level", LEVELS)
def test_a_pair_with_state_keeps_its_statistics_in_float32(level, half):
    model = at(level, STATEFUL, half)
    (params, state), (plain, before) = model.init(KEY, X), STATEFUL.init(KEY, X)
    assert bits(state) == bits(before)
    assert dtypes(params["linear"]) == {half if level == "O3" else "float32"}
    for _ in range(3):
        (found, state), (wanted, before) = (
            model.apply(params, state, KEY, X),
            STATEFUL.apply(plain, before, KEY, X),
        )
        assert jax.tree.map(jnp.result_type, state) == jax.tree.map(jnp.result_type, before)
        close(found, wanted, 0.1)
        close(state, before, 0.02)
        if level == "O0":
            assert bits((found, state)) == bits((wanted, before))
    assert int(state["~"]["calls"]) == int(before["~"]["calls"]) == 3
    evaluated, _ = model.apply(params, state, None, X, train=False)
    close(evaluated, STATEFUL.apply(plain, before, None, X, train=False)[0], 0.1)
    if level in ("O2", "O3"):
        counts = operand_dtypes(lambda *args: model.apply(*args), params, state, KEY, X)
        assert counts["dot_general"] == {half: 2}
        assert counts["tanh"] == {half: 1}
        assert "float32" in counts["rsqrt"] | counts.get("reduce_sum", {})
        assert half not in counts["rsqrt"]


def convolved(x):
    x = hk.BatchNorm(True, True, 0.9)(hk.Conv1D(4, 3)(x[..., None]), is_training=True)
    return hk.Conv1D(2, 3)(x)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("form", ["pair", "function"])
def test_a_convolution_takes_what_a_kept_norm_returns(level, form):
    """It takes operands of one dtype, where a product of JAX's promotes."""
    pair = hk.transform_with_state(convolved)
    params, state = pair.init(KEY, X)
    wanted, before = pair.apply(params, state, KEY, X)
    if form == "pair":
        model = at(level, pair)
        stored = model.policy.cast_to_param({"params": params})["params"]
        found, updated = model.apply(stored, state, KEY, X)
        close(updated, before, 0.02)
        run = "float32" if level == "O0" else "bfloat16"
        counts = operand_dtypes(lambda *args: model.apply(*args), stored, state, KEY, X)
        assert counts["conv_general_dilated"] == {run: 2}
    else:
        model = at(level, lambda p, x: pair.apply(p, state, KEY, x)[0])
        found = model(model.policy.cast_to_param(params), X)
    close(found, wanted, 0.1)


def test_a_state_of_another_dtype_comes_back_in_it():
    model = at("O2", STATEFUL)
    params, state = model.init(KEY, X)
    half = jax.tree.map(
        lambda leaf: leaf.astype("float16") if leaf.dtype == jnp.float32 else leaf, state
    )
    _, updated = model.apply(params, half, KEY, X)
    assert jax.tree.map(jnp.result_type, updated) == jax.tree.map(jnp.result_type, half)


def test_outputs_in_half_leave_the_state_as_exact_as_it_was():
    model = at("O2", STATEFUL, cast_model_outputs="bfloat16")
    params, state = model.init(KEY, X)
    output, updated = model.apply(params, state, KEY, X)
    assert output.dtype == jnp.bfloat16
    exact = at("O2", STATEFUL).apply(params, state, KEY, X)[1]
    assert bits(updated) == bits(exact)


def remembering(x):
    memory = hk.get_state("memory", (1, 8), init=jnp.zeros)
    y = hk.Linear(8)(x[:1])
    hk.set_state("memory", jax.lax.dynamic_update_slice(memory, y, (0, 0)))
    return y * memory


def test_a_state_that_follows_activations_is_said_to():
    """As a cache: the update needs the dtype of what is written."""
    pair = hk.transform_with_state(remembering)
    params, state = pair.init(KEY, X)
    with pytest.raises(TypeError, match="dynamic_update_slice"):
        at("O2", pair).apply(params, state, None, X)
    model = at("O2", pair, roles={"state": "activation"})
    _, updated = model.apply(params, state, None, X)
    assert dtypes(updated) == {"float32"}
    close(updated, pair.apply(params, state, None, X)[1])


@pytest.mark.parametrize("level", LEVELS)
def test_three_steps_of_training(level, count_compilations):
    def train(pair, tx):
        params, state = pair.init(KEY, X)
        opt_state = tx.init(params)

        @jax.jit
        def step(params, state, opt_state, key):
            def loss_fn(params):
                y, updated = pair.apply(params, state, key, X)
                return ((y - 1) ** 2).mean(), updated

            value_and_grad = amp.value_and_grad(loss_fn, opt_state, has_aux=True)
            (loss, updated), grads = value_and_grad(params)
            updates, new = tx.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), updated, new, loss

        losses = []
        for n, key in enumerate(jax.random.split(KEY, 3)):
            with count_compilations() as compiled:
                params, state, opt_state, loss = step(params, state, opt_state, key)
            assert n == 0 or [name for name in compiled if "step" in name] == []
            losses.append(loss)
        return params, state, losses

    found = train(*amp.initialize(STATEFUL, optax.sgd(0.1), level, half_dtype="bfloat16"))
    wanted = train(STATEFUL, amp.loss_scaling(optax.sgd(0.1), 1.0))
    if level == "O0":
        assert bits(found) == bits(wanted)
    close(found, wanted, 0.05)
    assert found[2][2] < found[2][0]
    assert dtypes(found[0]["linear"]) == {"bfloat16" if level == "O3" else "float32"}


@pytest.mark.thorough
@pytest.mark.parametrize("level", LEVELS)
def test_transformations_and_modes_of_jax(level):
    model = at(level, STATEFUL)
    params, state = model.init(KEY, X)
    wanted = model.apply(params, state, KEY, X)
    close(jax.jit(model.init)(KEY, X), (params, state), 0.01)
    close(jax.jit(model.apply)(params, state, KEY, X), wanted, 0.05)
    shapes = jax.eval_shape(model.apply, params, state, KEY, X)
    assert jax.tree.map(lambda s: (s.shape, s.dtype), shapes) == jax.tree.map(
        lambda x: (x.shape, x.dtype), wanted
    )
    many, _ = jax.vmap(model.apply, (None, None, None, 0))(params, state, KEY, X[None])
    close(many[0], wanted[0], 0.05)
    grads = jax.grad(lambda params: model.apply(params, state, KEY, X)[0].sum())(params)
    exact = jax.grad(lambda p: STATEFUL.apply(p, state, KEY, X)[0].sum())(STATEFUL.init(KEY, X)[0])
    close(grads, exact, 0.5)
    assert jax.tree.map(jnp.result_type, grads) == jax.tree.map(jnp.result_type, params)
    with jax.checking_leaks():
        jax.jit(model.apply)(params, state, KEY, X)
    with jax.enable_x64(True):
        assert model.apply(params, state, KEY, X)[0].dtype == jnp.float32


@pytest.mark.parametrize("level", LEVELS)
def test_strict_promotion(level):
    model = at(level, PLAIN)
    with jax.numpy_dtype_promotion("strict"):
        assert model.apply(model.init(KEY, X), None, X).dtype == jnp.float32


def test_kept_parameters_are_found_by_their_path():
    model = at("O3", STATEFUL, keep_fp32=lambda path, kind: path.startswith("statistics"))
    params, state = model.init(KEY, X)
    assert dtypes(params["statistics"]) == {"float32"}
    assert dtypes(params["linear"]) == {"bfloat16"}
    counts = operand_dtypes(lambda *args: model.apply(*args), params, state, KEY, X)
    assert counts["dot_general"] == {"bfloat16": 2}


def test_a_model_is_equal_to_another_of_its_pair():
    model = at("O2", STATEFUL)
    assert (model, hash(model)) == (at("O2", STATEFUL), hash(at("O2", STATEFUL)))
    assert model != at("O3", STATEFUL)
    assert model != at("O2", hk.transform_with_state(normed))
    assert repr(model) == "<TransformedWithState.apply at O2 with bfloat16>"
    with pytest.raises((AttributeError, pickle.PicklingError)):  # as Haiku's own pair
        pickle.dumps(STATEFUL)


def test_without_a_key_to_apply():
    pair = hk.without_apply_rng(PLAIN)
    model = at("O2", pair)
    params = model.init(KEY, X)
    close(model.apply(params, X), pair.apply(params, X))


def test_explain_takes_the_model_with_its_own_arguments():
    model = at("O2", STATEFUL)
    params, state = model.init(KEY, X)
    rows = amp.explain(model, params, state, KEY, X).operations
    assert {row.dtype for row in rows if row.op == "dot_general"} == {"bfloat16"}
    assert {row.dtype for row in rows if row.op == "rsqrt"} == {"float32"}


def test_in_a_list_and_disabled():
    (first, second), tx = amp.initialize([PLAIN, STATEFUL], optax.sgd(0.1), "O2")
    assert (first.policy.opt_level, second.has_state) == ("O2", True)
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    models = amp.initialize((PLAIN, STATEFUL), opt_level="O2", enabled=False)
    assert models == (PLAIN, STATEFUL)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: amp.initialize(at("O2", PLAIN)),
            ValueError,
            "the model <Transformed.apply at O2 with bfloat16> was initialized twice",
        ),
        (
            lambda: amp.initialize(optax.sgd(0.1), PLAIN),
            TypeError,
            "a model must be an apply_fn(variables, *inputs) or a module, not Gradient",
        ),
        (
            lambda: amp.initialize(mlp, PLAIN),
            TypeError,
            "an optimizer must be an optax.GradientTransformation, not Transformed (in amp.initial",
        ),
        (
            lambda: at("O2", STATEFUL).apply(STATEFUL.init(KEY, X)[0]),
            TypeError,
            "TransformedWithState.apply at O2 with bfloat16 is called as model(params, state, rng, "
            "*inputs) with what init returned, not as model(dict)",
        ),
        (
            lambda: at("O2", PLAIN).apply(X, PLAIN.init(KEY, X)),
            TypeError,
            "Transformed.apply at O2 with bfloat16 is called as model(params, rng, *inputs) with "
            "what init returned, not as model(an array of float32[16, 8], dict)",
        ),
        (
            lambda: at("O2", STATEFUL)(STATEFUL.init(KEY, X)[0], KEY, X),
            TypeError,
            "TransformedWithState.apply at O2 with bfloat16 is called as model(params, state, rng, "
            "*inputs) with what init returned, not as model(dict, an array of key<fry>[], an ",
        ),
    ],
)
def test_errors(call, error, text):
    with pytest.raises(error, match=f"^{re.escape(text)}"):
        call()
