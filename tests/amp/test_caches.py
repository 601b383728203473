"""State that follows activations: caches of keys and values, and what the user says is such."""

import functools

import flax
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from jinit import amp
from jinit.amp.casting.activations import find_activations, owner_is_kept
from tests.amp.reference import bits, dtypes, operand_dtypes

LEVELS = ["O2", "O0", "O1", "O3"]  # the quick suite runs the first

pytestmark = pytest.mark.cases
HALVES = ["bfloat16", "float16"]
LENGTH, WIDTH = 6, 16
X = jax.random.normal(jax.random.key(0), (2, LENGTH, WIDTH))
KEY = jax.random.key(1)


def cast(tree, dtype):
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


def at(level, model, half="bfloat16", **keywords):
    return amp.initialize(model, None, level, half_dtype=half, **keywords)


def error(found, wanted):
    """The largest difference over a decoded sequence."""
    return float(abs(found.astype(jnp.float32) - wanted).max())


# linen ------------------------------------------------------------------------------------------


def linen_attention(dtype=None):
    return nn.MultiHeadDotProductAttention(2, decode=True, dtype=dtype)


LINEN = linen_attention().init(KEY, X)


def decode(apply, params, cache, x=X):
    """Decodes token by token; returns the outputs and the cache."""
    outputs = []
    for n in range(x.shape[1]):
        y, updated = apply({"params": params, "cache": cache}, x[:, n : n + 1], mutable=["cache"])
        kept = jax.tree.map(jnp.result_type, cache)
        assert jax.tree.map(jnp.result_type, updated["cache"]) == kept
        cache = updated["cache"]
        outputs.append(y)
    return jnp.concatenate(outputs, 1), cache


@functools.cache
def exact():
    return decode(linen_attention().apply, LINEN["params"], LINEN["cache"])[0]


def own_error(half):
    """That of Flax's own ``dtype=``, whose cache is half."""
    module = linen_attention(half)
    return error(decode(module.apply, LINEN["params"], cast(LINEN["cache"], half))[0], exact())


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("cached", ["float32", "half"])
def test_decoding_is_as_exact_as_with_flax_own_dtype(half, level, cached):
    model = at(level, linen_attention(), half)
    params = model.policy.cast_to_param({"params": LINEN["params"]})["params"]
    cache = cast(LINEN["cache"], half if cached == "half" else "float32")
    found, last = decode(model, params, cache)
    assert found.dtype == jnp.float32
    assert int(last["cache_index"]) == LENGTH
    assert error(found, exact()) <= 1.5 * own_error(half)
    if (level, cached) == ("O0", "float32"):
        assert bits(found) == bits(exact())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("cached", ["float32", "bfloat16"])
def test_a_module_with_its_own_dtype_decodes_where_flax_does(level, cached):
    """Its cache is its own matter: at O0 and O1 it has to be as the module says."""
    model = at(level, linen_attention("bfloat16"))
    params = model.policy.cast_to_param({"params": LINEN["params"]})["params"]
    cache = cast(LINEN["cache"], cached)
    if level in ("O0", "O1") and cached == "float32":
        with pytest.raises(TypeError, match="dynamic_update_slice"):
            decode(model, params, cache)
        return
    assert error(decode(model, params, cache)[0], exact()) <= 1.5 * own_error("bfloat16")


@pytest.mark.parametrize("level", ["O2", "O3"])
def test_a_module_that_says_float32_keeps_a_float32_cache_as_exact_as_it_was(level):
    model = at(level, linen_attention("float32"))
    params = model.policy.cast_to_param({"params": LINEN["params"]})["params"]
    half = jax.tree.map(lambda x: x.astype("bfloat16").astype("float32"), (LINEN["params"], X))
    found, last = decode(model, params, LINEN["cache"])
    wanted, alone = decode(linen_attention().apply, half[0], LINEN["cache"], half[1])
    np.testing.assert_allclose(last["cached_key"], alone["cached_key"], atol=1e-6)
    assert error(found, wanted) < 0.01


class Block(nn.Module):
    """A batch norm, so that types are asked for, and attention that decodes."""

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True, name="statistics")(x)
        return nn.MultiHeadDotProductAttention(2, decode=True, name="attention")(x)


BLOCK = Block().init(KEY, X)


@pytest.mark.parametrize("cached", ["float32", "bfloat16"])
@pytest.mark.parametrize("level", ["O2", "O3"])
def test_types_are_found_with_the_variables_as_they_are_cast(level, cached):
    model = at(level, Block(), keep_fp32=lambda path, kind: kind is nn.BatchNorm)
    variables = {**BLOCK, "cache": cast(BLOCK["cache"], cached)}
    if level == "O3":
        variables = model.policy.cast_to_param(
            variables, {("statistics",): nn.BatchNorm, ("attention",): nn.Module}
        )
    output, updated = model(variables, X[:, :1], mutable=["cache"])
    assert dtypes(updated["cache"]["attention"]) == {cached, "int32"}
    plain, _ = Block().apply(BLOCK, X[:, :1], mutable=["cache"])
    assert error(output, plain) < 0.05
    assert dtypes(model.policy.cast_to_compute(variables)["batch_stats"]) == {"float32"}


@pytest.mark.thorough
@pytest.mark.parametrize("cached", ["float32", "bfloat16"])
def test_the_cache_of_an_attention_that_is_kept_is_float32(cached):
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.MultiHeadDotProductAttention(2, decode=True, name="kept")(x)
            return nn.MultiHeadDotProductAttention(2, decode=True, name="other")(x)

    variables = Two().init(KEY, X)
    model = at("O2", Two(), keep_fp32=lambda path, kind: path.startswith("kept"))
    given = {**variables, "cache": cast(variables["cache"], cached)}
    found, last = decode(model, given["params"], given["cache"])
    rounded = X.astype("bfloat16").astype("float32")  # as every input of a half function
    wanted, alone = decode(Two().apply, variables["params"], variables["cache"], rounded)
    assert error(found, wanted) < 0.05
    if cached == "float32":  # not rounded on the way in or out, token by token
        kept, whole = last["kept"]["cached_key"], alone["kept"]["cached_key"]
        np.testing.assert_allclose(kept, whole, atol=1e-6)
    counts = operand_dtypes(lambda v, x: model(v, x, mutable=["cache"]), given, X[:, :1])[
        "dot_general"
    ]
    assert set(counts) == {"float32", "bfloat16"}


@pytest.mark.parametrize("level", LEVELS)
def test_a_jitted_decoder_compiles_once(level, count_compilations):
    model = at(level, linen_attention())
    step = jax.jit(model.apply, static_argnames="mutable")
    variables = model.policy.cast_to_param(LINEN)
    _, updated = step(variables, X[:, :1], mutable=("cache",))
    with count_compilations() as compiled:
        for n in range(1, 3):
            given = {**variables, **updated}
            _, updated = step(given, X[:, n : n + 1], mutable=("cache",))
    assert compiled == []


@pytest.mark.parametrize("level", LEVELS)
def test_decoding_under_scan(level):
    """The cache is a carry, whose dtype may not change."""
    model = at(level, linen_attention())
    params = model.policy.cast_to_param({"params": LINEN["params"]})["params"]

    def step(cache, token):
        variables = {"params": params, "cache": cache}
        y, updated = model.apply(variables, token[:, None], mutable=["cache"])
        return updated["cache"], y[:, 0]

    _, found = jax.lax.scan(step, LINEN["cache"], jnp.swapaxes(X, 0, 1))
    assert error(jnp.swapaxes(found, 0, 1), exact()) <= 1.5 * own_error("bfloat16")


@pytest.mark.parametrize("level", LEVELS)
def test_frozen_and_captured(level):
    model = at(level, linen_attention())
    variables = flax.core.freeze(model.policy.cast_to_param(LINEN))
    _, updated = model(variables, X[:, :1], mutable=["cache"], capture_intermediates=True)
    assert dtypes(updated["cache"]) == {"float32", "int32"}
    assert "intermediates" in updated


class Memory(nn.Module):
    """A collection of the user's."""

    @nn.compact
    def __call__(self, x):
        y = nn.Dense(WIDTH)(x)
        memory = self.variable("memory", "rows", jnp.zeros, y.shape)
        memory.value = jax.lax.dynamic_update_slice(memory.value, y, (0, 0, 0))
        return y + memory.value


def test_the_user_says_what_a_collection_is():
    variables = Memory().init(KEY, X)
    with pytest.raises(TypeError, match="dynamic_update_slice"):
        at("O2", Memory())(variables, X, mutable=["memory"])
    model = at("O2", Memory(), roles={"memory": "activation"})
    _, updated = model(variables, X, mutable=["memory"])
    assert dtypes(updated) == {"float32"}
    bound = model.bind(variables, mutable=["memory"])
    bound(X)
    assert bits(bound.variables["memory"]) == bits(updated["memory"])
    statistic = at("O2", linen_attention(), roles={"cache": "statistic"})
    with pytest.raises(TypeError, match="dynamic_update_slice"):
        statistic(LINEN, X[:, :1], mutable=["cache"])


def test_a_module_without_parameters_may_have_a_cache():
    class Last(nn.Module):
        @nn.compact
        def __call__(self, x):
            last = self.variable("cache", "last", jnp.zeros, x.shape)
            last.value = jax.lax.dynamic_update_slice(last.value, x, (0, 0, 0))
            return last.value

    variables = Last().init(KEY, X)
    for level in LEVELS:
        _, updated = at(level, Last())(variables, X, mutable=["cache"])
        assert dtypes(updated) == {"float32"}


@pytest.mark.thorough
def test_perturbations_leave_a_half_function_half():
    """They are added to activations, so that the gradient by them is that of the activations."""

    class Perturbed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(self.perturb("hidden", nn.Dense(4)(x)))

    variables, model = Perturbed().init(KEY, X), at("O2", Perturbed())
    assert operand_dtypes(model, variables, X)["dot_general"] == {"bfloat16": 2}

    def loss(variables, apply):
        return (apply(variables, X) ** 2).sum()

    found = jax.grad(loss)(variables, model)["perturbations"]["hidden"]
    wanted = jax.grad(loss)(variables, Perturbed().apply)["perturbations"]["hidden"]
    assert found.dtype == jnp.float32
    assert error(found, wanted) < 0.1


# NNX --------------------------------------------------------------------------------------------


def nnx_attention(cached, dtype=None):
    module = nnx.MultiHeadAttention(2, WIDTH, decode=True, dtype=dtype, rngs=nnx.Rngs(0))
    module.init_cache(X.shape, dtype=cached)
    return module


def decode_nnx(call, module):
    tokens = (X[:, n : n + 1] for n in range(LENGTH))
    return jnp.concatenate([call(module, token) for token in tokens], 1)


def call(module, x):
    return module(x)


def in_one_function(module, level):
    apply_fn = at(level, call)
    return decode_nnx(apply_fn, module), module


def in_a_jitted_function(module, level):
    apply_fn = at(level, call)
    return decode_nnx(nnx.jit(lambda module, x: apply_fn(module, x)), module), module


def as_a_module(module, level):
    model = at(level, module)
    return decode_nnx(call, model), model


def as_a_jitted_module(module, level):
    model = at(level, module)
    return decode_nnx(nnx.jit(call), model), model


def split(module, level):
    """The states as arguments and results, as one writes with nnx.split and nnx.merge."""
    graphdef, params, cache, rest = nnx.split(module, nnx.Param, nnx.Cache, ...)

    def apply_fn(params, cache, x):
        merged = nnx.merge(graphdef, params, cache, rest)
        return merged(x), nnx.state(merged, nnx.Cache)

    model = at(level, apply_fn)
    params, outputs = model.policy.cast_to_param(params), []
    given = jax.tree.map(jnp.result_type, cache)
    for n in range(LENGTH):
        y, cache = model(params, cache, X[:, n : n + 1])
        assert jax.tree.map(jnp.result_type, cache) == given
        outputs.append(y)
    return jnp.concatenate(outputs, 1), nnx.merge(graphdef, params, cache, rest)


NNX_FORMS = [in_one_function, in_a_jitted_function, as_a_module, as_a_jitted_module, split]


@functools.cache
def exact_nnx():
    return decode_nnx(call, nnx_attention("float32"))


def own_nnx_error():
    return error(decode_nnx(call, nnx_attention("bfloat16", "bfloat16")), exact_nnx())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("cached", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", NNX_FORMS)
def test_an_nnx_module_decodes_as_exactly_as_with_its_own_dtype(form, cached, level):
    found, module = form(nnx_attention(cached), level)
    assert error(found, exact_nnx()) <= 1.5 * own_nnx_error()
    assert module.cached_key[...].dtype == cached
    assert int(module.cache_index[...]) == LENGTH
    if (level, cached) == ("O0", "float32") and form not in (
        in_a_jitted_function,
        as_a_jitted_module,
    ):
        assert bits(found) == bits(exact_nnx())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("form", [in_one_function, as_a_module])
def test_an_nnx_module_with_its_own_dtype_decodes(form, level):
    found, _ = form(nnx_attention("bfloat16", "bfloat16"), level)
    assert error(found, exact_nnx()) <= 1.5 * own_nnx_error()


class Rows(nnx.Variable):
    pass


class NnxMemory(nnx.Module):
    def __init__(self):
        self.dense = nnx.Linear(WIDTH, WIDTH, rngs=nnx.Rngs(0))
        self.rows = Rows(jnp.zeros(X.shape))

    def __call__(self, x):
        y = self.dense(x)
        self.rows[...] = jax.lax.dynamic_update_slice(self.rows[...], y, (0, 0, 0))
        return y


def test_the_user_says_what_a_variable_is():
    with pytest.raises(TypeError, match="dynamic_update_slice"):
        at("O2", call)(NnxMemory(), X)
    module = NnxMemory()
    at("O2", call, roles={Rows: "activation"})(module, X)
    assert module.rows[...].dtype == jnp.float32
    assert module.rows[...].any()


# Haiku, and the words of the table ---------------------------------------------------------------


def test_a_cache_of_haiku_is_said_to_be_one():
    def remember(x):
        rows = hk.get_state("rows", X.shape, init=jnp.zeros)
        rows = jax.lax.dynamic_update_slice(rows, hk.Linear(WIDTH)(x), (0, 0, 0))
        hk.set_state("rows", rows)
        return rows

    pair = hk.transform_with_state(remember)
    params, state = pair.init(KEY, X)
    for level in LEVELS:
        for dtype in ("float32", "bfloat16"):
            model = at(level, pair, roles={"state": "activation"})
            _, updated = model.apply(params, cast(state, dtype), None, X)
            assert dtypes(updated) == {dtype}


def test_what_follows_activations_by_its_path():
    tree = {"params": {"w": jnp.ones(2)}, "cache": {"key": jnp.ones(2), "index": jnp.arange(2)}}
    assert find_activations(tree) == {("cache", "key"): jnp.float32}
    assert find_activations({"cache": jnp.ones(2)}) == {}  # a tree of parameters
    assert find_activations({"cache": jnp.ones(2)}, collections=True) == {("cache",): jnp.float32}
    assert find_activations(tree, (("cache", "statistic"),)) == {}
    variable = nnx.Cache(jnp.ones(2, jnp.bfloat16))
    assert find_activations([variable, nnx.Param(jnp.ones(2))]) == {("0",): jnp.bfloat16}


@pytest.mark.parametrize(
    ("kept", "others", "whole"),
    [
        ({("a", "key")}, {("b",)}, True),
        ({("a", "key")}, {("a", "value")}, False),
        (set(), {("a", "key")}, False),
        ({("b",)}, set(), False),
    ],
)
def test_a_cache_is_float32_where_all_of_its_owner_is(kept, others, whole):
    assert owner_is_kept(("a", "cached_key"), kept, others) is whole
