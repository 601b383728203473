"""Which parameters stay float32 at O2 and O3, and that the rest of the model stays half."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from jinit import amp
from tests.amp.reference import bits, dtypes, operand_dtypes

X = jax.random.normal(jax.random.key(0), (4, 8))
HALVES = ["bfloat16", "float16"]


class Statistics(nn.BatchNorm):
    """A batch norm whose name does not say so."""


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(8)(x)
        x = Statistics(use_running_average=not train, name="first")(x)
        x = jnp.sin(x)
        x = nn.LayerNorm(name="bn")(nn.Dense(8)(x))
        return nn.Dense(4, name="head")(jnp.tanh(x))


VARIABLES = Net().init(jax.random.key(1), X)


def initialize(model, level="O2", half="bfloat16", **keywords):
    return amp.initialize(model, None, level, half_dtype=half, verbosity=0, **keywords)


def computed(model, variables, *inputs):
    """The dtypes of parameters by module as they enter the function."""
    types = model.module_types(variables, *inputs)
    cast = model.policy.cast_to_compute(variables, types)
    return {name: dtypes(leaves) for name, leaves in cast["params"].items()}


@pytest.mark.cases
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("form", [lambda m: m, lambda m: m.apply])
def test_batch_norm_is_found_by_type_in_linen(half, form):
    """Also one without the name, and not a layer norm that is named like one."""
    model = initialize(form(Net()), half=half)
    found = computed(model, VARIABLES, X)
    assert found == {
        "Dense_0": {half}, "first": {"float32"}, "Dense_1": {half}, "bn": {half}, "head": {half},
    }  # fmt: skip
    assert model.module_types(VARIABLES, X)[("bn",)] is nn.LayerNorm


@pytest.mark.cases
@pytest.mark.parametrize("half", HALVES)
def test_after_a_kept_norm_the_stream_is_half_again(half):
    model = initialize(Net(), half=half, keep_fp32=lambda path, kind: kind is nn.LayerNorm)
    counts = operand_dtypes(model, VARIABLES, X)
    assert counts["dot_general"] == {half: 3}
    assert counts["tanh"] == {half: 1}
    assert counts["sin"] == {half: 1}
    assert counts["rsqrt"] == {"float32": 2}
    gradient = jax.grad(lambda variables: model(variables, X).sum())
    assert set(operand_dtypes(gradient, VARIABLES)["dot_general"]) == {half}
    np.testing.assert_allclose(model(VARIABLES, X), Net().apply(VARIABLES, X), atol=0.1)


def test_a_kept_layer_that_is_no_norm_computes_in_float32_and_no_other_does():
    model = initialize(Net(), keep_fp32=lambda path, kind: path.startswith(("Dense_0", "head")))
    assert operand_dtypes(model, VARIABLES, X)["dot_general"] == {"float32": 2, "bfloat16": 1}


@pytest.mark.parametrize("level", ["O2", "O3"])
def test_statistics_stay_float32_and_are_updated_in_float32(level):
    model = initialize(Net(), level)
    stored = model.policy.cast_to_param(VARIABLES, model.module_types(VARIABLES, X))
    out, updated = model(stored, X, train=True, mutable=["batch_stats"])
    assert dtypes((out, updated, stored["batch_stats"])) == {"float32"}
    _, expected = Net().apply(VARIABLES, X, train=True, mutable=["batch_stats"])
    for ours, theirs in zip(jax.tree.leaves(updated), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.02)


def test_the_predicate_sees_every_parameter_with_its_type():
    seen = {}

    def predicate(path, kind):
        seen[path] = kind
        return path == "head/bias"

    model = initialize(Net(), "O3", keep_fp32=predicate)
    stored = model.policy.cast_to_param(VARIABLES, model.module_types(VARIABLES, X))
    assert {path: kind.__name__ for path, kind in seen.items()} == {
        "Dense_0/kernel": "Dense", "Dense_0/bias": "Dense",
        "Dense_1/kernel": "Dense", "Dense_1/bias": "Dense",
        "first/scale": "Statistics", "first/bias": "Statistics",
        "bn/scale": "LayerNorm", "bn/bias": "LayerNorm",
        "head/kernel": "Dense", "head/bias": "Dense",
    }  # fmt: skip
    assert {name: str(x.dtype) for name, x in stored["params"]["head"].items()} == {
        "kernel": "bfloat16",
        "bias": "float32",
    }


def test_a_hand_written_function_is_asked_with_the_path_alone():
    def mlp(params, x):
        y = (x - x.mean(-1, keepdims=True)) * params["norm"]["scale"].reshape(1, -1)
        return jnp.tanh(y @ params["w1"]) @ params["w2"]

    params = {"norm": {"scale": jnp.ones(8)}, "w1": jnp.eye(8), "w2": jnp.eye(8)}
    seen = {}
    model = initialize(
        mlp, keep_fp32=lambda path, kind: seen.setdefault(path, kind) or "norm" in path
    )
    assert operand_dtypes(model, params, X)["dot_general"] == {"bfloat16": 2}
    assert seen == {"norm/scale": None, "w1": None, "w2": None}
    np.testing.assert_allclose(model(params, X), mlp(params, X), atol=0.1)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(8, 8, rngs=rngs)
        self.statistics = nnx.BatchNorm(8, rngs=rngs)
        self.bn = nnx.LayerNorm(8, rngs=rngs)
        self.last = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return self.last(self.bn(self.statistics(self.first(x))))


def nnx_apply():
    graphdef, state = nnx.split(NnxNet(nnx.Rngs(0)))

    def apply_fn(state, x):
        model = nnx.merge(graphdef, state)
        return model(x), nnx.state(model, nnx.BatchStat)

    return apply_fn, state


@pytest.mark.parametrize("half", HALVES)
def test_a_split_nnx_module_trains_with_its_batch_norm_and_statistics_float32(half):
    apply_fn, state = nnx_apply()
    model = initialize(apply_fn, half=half)
    cast = model.policy.cast_to_compute(state, model.module_types(state, X))
    found = {name: dtypes(cast[name]) for name in ("first", "statistics", "bn", "last")}
    assert found == {
        "first": {half}, "statistics": {"float32"}, "bn": {half}, "last": {half},
    }  # fmt: skip
    assert operand_dtypes(model, state, X)["dot_general"] == {half: 2}
    out, updated = model(state, X)
    assert dtypes((out, updated)) == {"float32"}
    expected, _ = apply_fn(state, X)
    np.testing.assert_allclose(out, expected, atol=0.1)


def test_only_the_parameters_of_an_nnx_state_are_cast():
    _, state = nnx_apply()
    stored = initialize(nnx_apply()[0], "O3").policy.cast_to_param(state)
    assert dtypes(nnx.filter_state(stored, nnx.Param)) == {"bfloat16"}
    assert dtypes(nnx.filter_state(stored, nnx.BatchStat)) == {"float32"}


@pytest.mark.cases
@pytest.mark.parametrize("level", ["O2", "O3"])
def test_statistics_of_an_nnx_module_may_be_an_input_of_their_own(level):
    """They stay float32, and what the module writes into them does not reach the caller's."""
    graphdef, params, rest = nnx.split(NnxNet(nnx.Rngs(0)), nnx.Param, ...)

    def apply_fn(params, x, rest):
        model = nnx.merge(graphdef, params, rest)
        return model(x), nnx.state(model, nnx.BatchStat)

    model, before = initialize(apply_fn, level), bits(rest)
    stored = model.policy.cast_to_param(params)

    def loss(params):
        y, updated = model(params, X, rest)
        return jnp.mean(y**2), updated

    slopes, updated = jax.grad(loss, has_aux=True)(stored)
    assert dtypes(slopes) == {"bfloat16" if level == "O3" else "float32"}
    assert dtypes(updated) == {"float32"}
    assert bits(rest) == before != bits(updated)
    expected = apply_fn(params, X, rest)[1]
    for new, old in zip(jax.tree.leaves(updated), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(new, old, atol=0.05)


def test_a_model_is_traced_for_its_types_once(count_compilations):
    traces = []

    class Counted(nn.Module):
        @nn.compact
        def __call__(self, x):
            traces.append(1)
            return nn.LayerNorm()(nn.Dense(8)(x))

    variables = Counted().init(jax.random.key(0), X)
    model = initialize(Counted(), keep_fp32=lambda path, kind: kind is nn.LayerNorm)
    step = jax.jit(model)
    traces.clear()
    for _ in range(3):
        step(variables, X)
    assert len(traces) == 2  # for the types, and for the program
    traces.clear()
    initialize(Counted())(variables, X)
    assert len(traces) == 1  # without statistics there is no batch norm to look for


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        ({"opt_level": "O1", "keep_fp32": len}, "opt_level 'O1' keeps parameters float32 by itsel"),
        ({"opt_level": "O0", "keep_fp32": len}, "opt_level 'O0' keeps everything float32: keep_fp"),
        ({"opt_level": "O2", "keep_fp32": "bn"}, "keep_fp32 must be a function of path and module "
         "type, not 'bn'"),
    ],
)  # fmt: skip
def test_errors(keywords, text):
    with pytest.raises(ValueError, match=text):
        amp.initialize(lambda params, x: x, verbosity=0, **keywords)


@pytest.mark.thorough
@pytest.mark.parametrize("level", ["O1", "O2", "O3"])
@pytest.mark.parametrize("half", HALVES)
def test_decoding_step_by_step_keeps_a_float32_cache(half, level):
    """Flax writes keys into the cache, and wants them of its dtype."""
    attention = nn.MultiHeadDotProductAttention(2, decode=True)
    x = jax.random.normal(jax.random.key(2), (1, 3, 8))
    variables = attention.init(jax.random.key(3), x)
    model = initialize(attention.apply, level, half)
    step, cache = jax.jit(model, static_argnames="mutable"), variables["cache"]
    stored = model.policy.cast_to_param({"params": variables["params"]})
    wanted = variables["cache"]
    for n in range(3):
        token = x[:, n : n + 1]
        found, state = step({**stored, "cache": cache}, token, mutable=("cache",))
        exact, updated = attention.apply(
            {"params": variables["params"], "cache": wanted}, token, mutable=["cache"]
        )
        cache, wanted = state["cache"], updated["cache"]
        assert jax.tree.map(jnp.result_type, cache) == jax.tree.map(jnp.result_type, wanted)
        np.testing.assert_allclose(found, exact, atol=0.05)
