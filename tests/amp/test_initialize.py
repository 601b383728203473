import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jinit import amp
from tests.amp.reference import bits, dtypes, operand_dtypes
from tests.processes import python


def mlp(params, x):
    """A hidden layer with a softmax, so that a product and an exp are seen."""
    return jax.nn.softmax(x @ params["w1"] + params["b1"][None]) @ params["w2"]


PARAMS = {"w1": jnp.ones((4, 8)) / 3, "b1": jnp.ones(8) / 7, "w2": jnp.ones((8, 2)) / 9}
X = jnp.linspace(-1.0, 1.0, 12).reshape(3, 4)


def initialize(level, half="bfloat16", model=mlp, **keywords):
    return amp.initialize(model, None, level, half_dtype=half, verbosity=0, **keywords)


@pytest.mark.cases
@pytest.mark.parametrize("half", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    ("level", "stored", "computed"),
    [("O0", "float32", "float32"), ("O2", "float32", "half"), ("O3", "half", "half")],
)
def test_the_jaxpr_tells_the_levels_apart(half, level, stored, computed):
    names = {"half": half, "float32": "float32"}
    apply_fn = initialize(level, half)
    params = apply_fn.policy.cast_to_param(PARAMS)
    assert dtypes(params) == {names[stored]}
    forward = operand_dtypes(apply_fn, params, X)
    assert forward["dot_general"] == {names[computed]: 2}
    assert forward["exp"] == {names[computed]: 1}
    loss_fn = lambda params, x: apply_fn(params, x).sum()  # noqa: E731
    assert set(operand_dtypes(jax.grad(loss_fn), params, X)["dot_general"]) == {names[computed]}
    assert dtypes(jax.grad(loss_fn)(params, X)) == {names[stored]}
    assert dtypes(jax.eval_shape(apply_fn, params, X)) == {"float32"}


@pytest.mark.cases
@pytest.mark.parametrize("half", ["bfloat16", "float16"])
@pytest.mark.parametrize("level", ["O2", "O3"])
def test_half_levels_equal_a_function_cast_by_hand(half, level):
    cast = lambda tree: jax.tree.map(lambda leaf: leaf.astype(half), tree)  # noqa: E731
    expected = jax.jit(mlp)(cast(PARAMS), cast(X)).astype(jnp.float32)
    apply_fn = initialize(level, half)
    assert bits(apply_fn(apply_fn.policy.cast_to_param(PARAMS), X)) == bits(expected)


def test_o0_is_the_function_itself_and_widens_half_inputs():
    apply_fn = initialize("O0")
    assert bits(apply_fn(PARAMS, X)) == bits(mlp(PARAMS, X))
    half = X.astype(jnp.float16)
    assert bits(apply_fn(PARAMS, half)) == bits(mlp(PARAMS, half.astype(jnp.float32)))


def test_transformations_agree():
    apply_fn = initialize("O2")
    expected = apply_fn(PARAMS, X)
    np.testing.assert_allclose(jax.jit(apply_fn)(PARAMS, X), expected, rtol=1e-2)
    rows = jax.vmap(lambda row: apply_fn(PARAMS, row[None])[0])(X)
    np.testing.assert_allclose(rows, expected, rtol=1e-2)
    half = jax.grad(lambda params: (apply_fn(params, X) ** 2).sum())(PARAMS)
    full = jax.grad(lambda params: (mlp(params, X) ** 2).sum())(PARAMS)
    for name in PARAMS:
        difference = jnp.linalg.norm(half[name] - full[name])
        assert difference <= 0.02 * jnp.linalg.norm(full["w2"])


@pytest.mark.parametrize("given", [jnp.bfloat16, "float16", "float32"])
def test_cast_model_outputs(given):
    apply_fn = initialize("O2", cast_model_outputs=given)
    assert dtypes(jax.eval_shape(apply_fn, PARAMS, X)) == {jnp.dtype(given).name}


@pytest.mark.cases
@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_o1_runs_products_in_half_and_exp_in_float32(half):
    apply_fn = initialize("O1", half)
    assert dtypes(apply_fn.policy.cast_to_param(PARAMS)) == {"float32"}
    forward = operand_dtypes(apply_fn, PARAMS, X)
    assert forward["dot_general"] == {half: 2}
    assert forward["exp"] == {"float32": 1}
    assert dtypes(jax.eval_shape(apply_fn, PARAMS, X)) == {"float32"}
    loss_fn = lambda params, x: apply_fn(params, x).sum()  # noqa: E731
    backward = operand_dtypes(jax.grad(loss_fn), PARAMS, X)
    assert set(backward["dot_general"]) == {half}
    assert dtypes(jax.grad(loss_fn)(PARAMS, X)) == {"float32"}
    np.testing.assert_allclose(apply_fn(PARAMS, X), mlp(PARAMS, X), rtol=0.02)
    assert dtypes(initialize("O1", half, cast_model_outputs=half)(PARAMS, X)) == {half}


@pytest.mark.cases
@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_o2_keeps_batch_norm_float32_and_every_product_half(half):
    model = Net()
    variables = model.init(jax.random.key(0), X)
    apply_fn = initialize("O2", half, model=model)
    call = lambda variables, x: apply_fn(variables, x, train=True, **keywords)  # noqa: E731
    keywords = {"mutable": ["batch_stats"], "rngs": {"dropout": jax.random.key(1)}}
    assert operand_dtypes(call, variables, X)["dot_general"] == {half: 2}
    out, updated = call(variables, X)
    assert dtypes((out, updated)) == {"float32"}
    expected, statistics = model.apply(variables, X, train=True, **keywords)
    np.testing.assert_allclose(out, expected, atol=0.05)
    for ours, theirs in zip(jax.tree.leaves(updated), jax.tree.leaves(statistics), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.01)
    kept = apply_fn.policy.cast_to_compute(variables)["params"]["BatchNorm_0"]
    assert dtypes(kept) == {"float32"}


def test_o1_without_patches_is_the_function_itself():
    apply_fn = initialize("O1", patch_functions=False)
    assert bits(apply_fn(PARAMS, X)) == bits(mlp(PARAMS, X))
    assert initialize("O1", patch_torch_functions=False) == apply_fn


def test_inputs_that_are_not_floating_are_not_touched():
    seen = {}

    def model(params, batch, *, key, train, rate):
        seen.update(batch, key=key, train=train, rate=rate)
        return batch["tokens"], batch["image"] * params

    tokens = jnp.arange(3)
    batch = {"tokens": tokens, "image": np.ones(3), "mask": jnp.array([True, False, True])}
    key = jax.random.key(0)
    out = initialize("O3", model=model)(jnp.ones(3), batch, key=key, train=True, rate=0.5)
    for name, given in {"tokens": tokens, "mask": batch["mask"], "key": key}.items():
        assert (seen[name].shape, seen[name].dtype) == (given.shape, given.dtype)
    np.testing.assert_array_equal(out[0], tokens)
    assert (seen["train"], seen["rate"]) == (True, 0.5)
    assert seen["image"].dtype == jnp.bfloat16
    assert [leaf.dtype for leaf in out] == [jnp.int32, jnp.float32]


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(x))


@pytest.mark.cases
@pytest.mark.parametrize("outputs", [None, "bfloat16"])
def test_a_linen_module_is_its_apply_and_its_statistics_stay_float32(outputs):
    model = Net()
    variables = model.init(jax.random.key(0), X)
    apply_fn = initialize("O3", model=model, cast_model_outputs=outputs)
    stored = apply_fn.policy.cast_to_param(variables)
    rngs = {"dropout": jax.random.key(1)}
    out, updated = apply_fn(stored, X, train=True, mutable=["batch_stats"], rngs=rngs)
    assert out.dtype == jnp.dtype(outputs or "float32")
    assert dtypes(updated) == {"float32"}
    counts = operand_dtypes(apply_fn, stored, X)
    assert counts["dot_general"] == {"bfloat16": 2}
    np.testing.assert_allclose(apply_fn(stored, X), model.apply(variables, X), atol=0.05)


def test_one_or_a_list_comes_back_in_its_form():
    tx = optax.sgd(0.1)
    one = amp.initialize(mlp, tx, "O2", verbosity=0)
    assert isinstance(one, tuple)
    assert isinstance(one[0], type(initialize("O2")))
    assert isinstance(one[1], optax.GradientTransformationExtraArgs)
    models, optimizers = amp.initialize([mlp, Net()], [tx, tx, tx], "O2", verbosity=0)
    assert (type(models), len(models), type(optimizers), len(optimizers)) == (list, 2, list, 3)
    models, optimizers = amp.initialize((mlp,), tx, "O2", verbosity=0)
    assert (type(models), len(models)) == (tuple, 1)
    assert isinstance(optimizers, optax.GradientTransformationExtraArgs)
    assert type(amp.initialize([mlp], None, "O2", verbosity=0)) is list


@pytest.mark.parametrize("level", ["O0", "O1", "O2", "O3"])
@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_the_state_holds_the_loss_scale_at_every_level(level, half):
    _, tx = amp.initialize(mlp, optax.adam(1e-3), level, half_dtype=half, verbosity=0)
    scale = optax.tree.get(optax.chain(optax.identity(), tx).init(PARAMS), "loss_scale")
    dynamic = half == "float16" and level in ("O1", "O2")
    assert (float(scale), scale.dtype, scale.shape) == (65536.0 if dynamic else 1.0, "float32", ())


def test_the_bounds_reach_the_scaler():
    keywords = {"loss_scale": "dynamic", "verbosity": 0, "min_loss_scale": 8.0}
    _, tx = amp.initialize(mlp, optax.sgd(0.1), "O2", max_loss_scale=16.0, **keywords)
    state = tx.init(PARAMS)
    scales = []
    for _ in range(3):
        scales.append(float(state.loss_scale))
        _, state = tx.update(jax.tree.map(lambda leaf: leaf * jnp.nan, PARAMS), state)
    assert scales == [16.0, 8.0, 8.0]


def test_disabled_leaves_the_function_and_the_loss_as_they_are():
    model = Net()
    functions, tx = amp.initialize([mlp, model], optax.adam(1e-3), "O2", enabled=False)
    assert functions[0] is mlp
    assert functions[1] == model.apply
    state = tx.init(PARAMS)
    loss = jnp.float32(0.1)
    assert bits(amp.scale_loss(loss, state)) == bits(loss)
    expected, _ = optax.adam(1e-3).update(PARAMS, optax.adam(1e-3).init(PARAMS), PARAMS)
    assert bits(tx.update(PARAMS, state, PARAMS)[0]) == bits(expected)


def test_equal_functions_share_a_compilation():
    traces = []

    def model(params, x):
        traces.append(1)
        return x * params

    call = jax.jit(lambda apply_fn, params, x: apply_fn(params, x), static_argnums=0)
    for level in ("O2", "O2", "O3", "O2"):
        call(initialize(level, model=model), jnp.ones(3), jnp.ones(3))
    assert len(traces) == 2
    module = Net()
    assert initialize("O2", model=module) == initialize("O2", model=module)
    assert initialize("O2") != initialize("O2", "float16")
    assert initialize("O2") != mlp


def test_a_second_eager_call_at_o1_compiles_nothing_and_a_used_function_pickles(
    count_compilations,
):
    apply_fn = initialize("O1")
    first = apply_fn(PARAMS, X)
    with count_compilations() as compiled:
        second = apply_fn(PARAMS, X)
    assert compiled == []
    assert bits(first) == bits(second)
    assert pickle.loads(pickle.dumps(apply_fn)) == apply_fn


def test_the_wrapped_function_reads_like_the_function():
    apply_fn = initialize("O2")
    assert repr(apply_fn) == "<mlp at O2 with bfloat16>"
    assert repr(initialize("O3", model=Net())) == "<Net.apply at O3 with bfloat16>"
    assert (apply_fn.__name__, apply_fn.__doc__) == ("mlp", mlp.__doc__)
    assert inspect.signature(apply_fn) == inspect.signature(mlp)


@pytest.mark.parametrize("talking", [{"verbose": True}, {"verbosity": 1}])
def test_the_policy_is_printed_where_that_is_asked_for(talking, capsys):
    apply_fn = amp.initialize(mlp, opt_level="O3", **talking)
    assert capsys.readouterr().out == f"{apply_fn.policy}\n"


@pytest.mark.parametrize("silent", [{}, {"verbosity": 0}, {"verbosity": 0, "verbose": True}])
def test_nothing_is_printed_unasked(silent, capsys):
    amp.initialize(mlp, opt_level="O3", **silent)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("models", "optimizers", "error", "text"),
    [
        (3, None, TypeError, "a model must be an apply_fn.* or a module, not int"),
        ([mlp, None], None, TypeError, "a model must be .* not NoneType"),
        (mlp, mlp, TypeError, "an optimizer must be an optax.GradientTransformation, not function"),
        (mlp, optax.MultiSteps(optax.sgd(1.0), 2), TypeError, "its gradient_transformation"),
        (initialize("O2"), None, ValueError, "model <mlp at O2 with bfloat16> was initialized tw"),
    ],
)
def test_what_is_not_a_model_or_an_optimizer(models, optimizers, error, text, capsys):
    with pytest.raises(error, match=text):
        amp.initialize(models, optimizers, "O3")
    assert capsys.readouterr().out == ""


def test_every_optimizer_has_a_scale_for_every_loss():
    _, (first, second) = amp.initialize(mlp, [optax.sgd(0.1)] * 2, num_losses=3, verbosity=0)
    for tx in (first, second):
        assert optax.tree.get(tx.init(PARAMS), "loss_scale").shape == (3,)


def test_importing_amp_does_not_import_flax():
    code = "import sys, jinit.amp; sys.exit('flax' in sys.modules)"
    assert python("-c", code, warn="default").returncode == 0
