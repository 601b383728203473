"""Autocast against float32 in value, and against the op lists in dtype."""

import dataclasses
import gc
import weakref

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jinit.amp import autocast, initialize
from jinit.amp.casting.op_lists import OPS
from tests.benchmarks.precision import (
    Transformer,
    at_level,
    by_hand,
    converts_traced,
    loss_of,
)

HALVES = [jnp.bfloat16, jnp.float16]
W = jax.random.normal(jax.random.key(0), (16, 16)) / 4
X = jax.random.normal(jax.random.key(1), (8, 16))


def dtypes(fn, *args):
    """The result dtypes of every primitive in a function, its inner jaxprs included."""
    found = {}

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            for var in equation.outvars:
                found.setdefault(equation.primitive.name, set()).add(str(var.aval.dtype))
            for inner in jaxprs_in_params(equation.params):
                walk(getattr(inner, "jaxpr", inner))

    walk(jax.make_jaxpr(fn)(*args).jaxpr)
    return found


def scan(w, x):
    return jax.lax.scan(lambda c, v: (jnp.tanh(c @ v), c.sum()), x, jnp.stack([w, -w]))


def while_loop(w, x):
    return jax.lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1] @ w), (0, x))


def cond(w, x):
    return jax.lax.cond(x[0, 0] > 0, lambda a: a @ w, lambda a: -a @ w, x)


def switch(w, x):
    return jax.lax.switch(1, [lambda a: a, lambda a: jnp.exp(a @ w)], x)


def remat(w, x):
    policy = jax.checkpoint_policies.dots_saveable
    return jax.checkpoint(lambda a: jnp.sin(a @ w) @ w, policy=policy)(x)


def softmax(w, x):
    return jax.nn.log_softmax(x @ w)


def activations(w, x):
    return jax.nn.relu(x @ w) + jax.nn.gelu(x @ w) + jax.nn.silu(x @ w) + jax.nn.softplus(x @ w)


@jax.custom_vjp
def scaled_slope(x):
    return jnp.sin(x)


scaled_slope.defvjp(lambda x: (jnp.sin(x), x), lambda x, ct: (2 * jnp.cos(x) * ct,))


def custom_vjp(w, x):
    return scaled_slope(x @ w) @ w


@jax.custom_vjp
def product(x, w):
    return x @ w


product.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, ct: (ct @ saved[1].T, saved[0].T @ ct))


def product_rules(w, x):
    return jnp.tanh(product(x, w))


def jitted_layers(w, x):
    layer = jax.jit(lambda x, w, b: jnp.exp(x @ w + b))
    return layer(layer(layer(x, w, x[:1]) / 8, w, w[:1]) / 8, w, w[:1])


def shard_map(w, x):
    def shard(w, x):
        y = jnp.tanh(x @ w)
        return y * jax.lax.pmean((y * y).mean(), "d")

    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.shard_map(shard, mesh=mesh, in_specs=(P(), P("d")), out_specs=P("d"))(w, x)


def batched(w, x):
    return jax.vmap(lambda row: row[None] @ w)(x)


def inner_grad(w, x):
    return jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w) ** 2))(w)


def inner_jit(w, x):
    return jax.jit(lambda a: jnp.exp(a @ w))(x)


CONSTRUCTS = [
    scan, cond, switch, remat, softmax, activations, custom_vjp, product_rules, batched, inner_grad,
    inner_jit, jitted_layers, shard_map,
]  # fmt: skip


def total(fn):
    return lambda *args: sum(jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(fn(*args)))


def cosine(first, second):
    first, second = np.ravel(first), np.ravel(second)
    return first @ second / np.linalg.norm(first) / np.linalg.norm(second)


@pytest.mark.cases
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("fn", [*CONSTRUCTS, while_loop])
def test_values_agree_with_float32_and_products_are_half(fn, half):
    cast = autocast(fn, half_dtype=half)
    tolerance = {jnp.bfloat16: 0.1, jnp.float16: 0.02}[half]
    declared = jax.eval_shape(fn, W, X)
    assert jax.eval_shape(cast, W, X) == declared
    for run in (cast, jax.jit(cast)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance),
            run(W, X),
            fn(W, X),
        )
    assert dtypes(cast, W, X)["dot_general"] == {str(jnp.dtype(half))}


@pytest.mark.cases
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("fn", CONSTRUCTS)
def test_gradients_agree_with_float32(fn, half):
    cast = autocast(fn, half_dtype=half)
    exact = jax.grad(total(fn), argnums=(0, 1))(W, X)
    for gradient in (
        jax.grad(total(cast), argnums=(0, 1)),
        jax.jit(jax.grad(total(cast), argnums=(0, 1))),
        autocast(jax.grad(total(fn), argnums=(0, 1)), half_dtype=half),
    ):
        for approximate, wanted in zip(gradient(W, X), exact, strict=True):
            assert approximate.dtype == wanted.dtype
            assert cosine(approximate, wanted) > 0.999


@pytest.mark.parametrize("fn", [product_rules, shard_map, jitted_layers])
def test_products_of_derivative_rules_are_half(fn):
    """Forward and backward: one product makes three, and all are bfloat16.

    Every shard has two rows: over one row a gradient of the weights sums nothing.
    """
    x = jnp.concatenate([X, X])
    for gradient in (
        jax.grad(total(autocast(fn)), argnums=(0, 1)),
        autocast(jax.grad(total(fn), argnums=(0, 1))),
    ):
        assert dtypes(gradient, W, x)["dot_general"] == {"bfloat16"}
        exact = jax.make_jaxpr(jax.grad(total(fn), argnums=(0, 1)))(W, x)
        cast = jax.make_jaxpr(gradient)(W, x)
        assert str(cast).count("dot_general[") >= str(exact).count("dot_general[")


def test_collectives_in_a_shard_map_keep_their_list():
    assert dtypes(autocast(shard_map), W, X)["tanh"] == {"bfloat16"}
    names = dtypes(autocast(shard_map), W, X)
    (reduction,) = [name for name in names if name.startswith("psum")]
    assert names[reduction] == {"float32"}


def test_calls_share_a_jaxpr_only_where_tags_agree():
    """The bias of one call is a parameter and that of the other is data, which promotes."""
    layer = jax.jit(lambda x, w, b: x @ w + b)

    def fn(p, x):
        return layer(x, p["w"], p["b"]), layer(x, p["w"], x), layer(x, p["w"], 2.0 * x)

    found = jax.make_jaxpr(autocast(fn))({"w": W, "b": X}, X).jaxpr.eqns[0].params["jaxpr"]
    calls = [e.params["jaxpr"] for e in found.jaxpr.eqns if e.primitive.name in ("jit", "pjit")]
    adds = [str(e.outvars[0].aval.dtype) for c in calls for e in c.jaxpr.eqns
            if e.primitive.name == "add"]  # fmt: skip
    assert adds == ["bfloat16", "float32", "float32"]
    assert len({id(call.jaxpr) for call in calls}) == 2


def test_vmap_outside_agrees_with_a_loop():
    cast = autocast(softmax)
    batch = jnp.stack([X, 2 * X])
    looped = jnp.stack([cast(W, x) for x in batch])
    np.testing.assert_allclose(
        jax.vmap(cast, in_axes=(None, 0))(W, batch), looped, rtol=1e-2, atol=1e-2
    )


def test_sensitive_operations_are_float32():
    def fn(w, x):
        y = x @ w
        return jnp.exp(y), jnp.log1p(jnp.abs(y)), jax.lax.rsqrt(jnp.abs(y)), y.sum(), y**3

    found = dtypes(autocast(fn), W, X)
    for name in ("exp", "log1p", "rsqrt", "reduce_sum", "integer_pow"):
        assert found[name] == {"float32"}, name


def test_a_bias_keeps_a_product_half_and_strong_float32_does_not():
    def layer(p, x, other):
        y = x @ p["w"] + p["b"].reshape(1, -1)
        return jnp.tanh(y), y * other

    found = dtypes(autocast(layer), {"w": W, "b": jnp.ones(16)}, X, X)
    assert found["add"] == {"bfloat16"}
    assert found["tanh"] == {"bfloat16"}
    assert found["mul"] == {"float32"}


def test_literals_and_scalars_made_of_them_do_not_promote():
    def fn(w, x):
        return (2.5 * (x @ w)) / jnp.sqrt(8.0)

    found = dtypes(autocast(fn), W, X)
    assert found["mul"] == {"bfloat16"}
    assert found["div"] == {"bfloat16"}


def test_literals_out_of_the_half_range_promote():
    def masked(w, x):
        return jnp.where(x > 0, x @ w, -1e30), jnp.maximum(x @ w, 1e-8)

    cast = autocast(masked, half_dtype=jnp.float16)
    low, floor = cast(W, X)
    assert bool(jnp.isfinite(low).all())
    assert float(floor.min()) == pytest.approx(1e-8)
    assert dtypes(cast, W, X)["select_n"] == {"float32"}


def test_relu_matches_its_input_and_keeps_its_derivative_at_zero():
    cast = autocast(lambda w, x: jax.nn.relu(x @ w))
    found = dtypes(cast, W, X)
    assert found["max"] == {"bfloat16"}
    assert float(jax.grad(lambda w: cast(w, jnp.zeros((1, 16))).sum())(W).sum()) == 0


def test_a_custom_vjp_keeps_its_rule():
    cast = autocast(lambda w, x: scaled_slope(x @ w))
    twice = jax.grad(lambda x: cast(W, x).sum())(X)
    once = jax.grad(lambda x: jnp.sin(x @ W).sum())(X)
    np.testing.assert_allclose(twice, 2 * once, atol=0.05)


@pytest.mark.thorough
def test_what_is_not_float_is_untouched():
    def fn(w, tokens, key):
        noise = jax.random.normal(key, (4, 16))
        return w[tokens] @ w + noise, tokens + 1, jax.random.bits(key)

    tokens, key = jnp.arange(4), jax.random.key(0)
    cast, plain = autocast(fn)(W, tokens, key), fn(W, tokens, key)
    assert [leaf.dtype for leaf in cast] == [leaf.dtype for leaf in plain]
    np.testing.assert_array_equal(cast[1], plain[1])
    np.testing.assert_array_equal(cast[2], plain[2])


def test_arguments_that_are_not_arrays_are_passed_on():
    def fn(w, x, train, *, mode):
        assert train is True
        assert mode == "sum"
        return x @ w

    assert autocast(fn)(W, X, True, mode="sum").shape == (8, 16)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic=True):
        x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x))
        x = nn.Dropout(0.5, deterministic=deterministic)(x)
        return x + nn.Dense(16)(nn.gelu(nn.Dense(64)(nn.LayerNorm()(x))))


@pytest.mark.thorough
def test_a_flax_transformer_block():
    x = jax.random.normal(jax.random.key(2), (2, 6, 16))
    variables = Block().init(jax.random.key(0), x)
    cast = autocast(Block().apply)
    np.testing.assert_allclose(cast(variables, x), Block().apply(variables, x), atol=0.05)
    found = dtypes(cast, variables, x)
    assert found["dot_general"] == {"bfloat16"}
    assert found["exp"] == {"float32"}
    noisy = cast(variables, x, deterministic=False, rngs={"dropout": jax.random.key(5)})
    assert bool(jnp.isfinite(noisy).all())


@pytest.mark.thorough
def test_a_haiku_net():
    net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([32, 4])(x)))
    params = net.init(jax.random.key(0), X)
    cast = autocast(net.apply)
    with jax.numpy_rank_promotion("allow"):
        np.testing.assert_allclose(cast(params, X), net.apply(params, X), atol=0.05)
        assert dtypes(cast, params, X)["dot_general"] == {"bfloat16"}


def test_a_list_that_is_empty_leaves_the_float32_list_alone():
    def fn(w, x):
        return jnp.exp(x @ w).sum()

    half = W.astype(jnp.bfloat16)
    found = dtypes(autocast(fn, ops=dataclasses.replace(OPS, float32=frozenset())), half, X)
    assert found["dot_general"] == {"bfloat16"}
    assert found["exp"] == {"bfloat16"}


def test_parameters_are_differentiated_in_their_own_dtype():
    gradient = jax.grad(total(autocast(softmax)))(W, X)
    assert gradient.dtype == jnp.float32


def test_a_jitted_step_is_compiled_once(count_compilations):
    step = jax.jit(jax.grad(total(autocast(softmax))))
    other = 2 * W
    step(W, X)
    with count_compilations() as compiled:
        step(other, X)
    assert compiled == []


def test_a_second_eager_call_traces_and_compiles_nothing(count_compilations):
    traces = []

    def fn(w, x, scale, *, offset, key):
        traces.append(1)
        return scale * (x @ w) + offset["by"] + jax.random.normal(key, (8, 16))

    cast = autocast(fn)
    keywords = {"offset": {"by": 1}, "key": jax.random.key(0)}
    cast(W, X, 2, **keywords)
    other = 2 * W
    with count_compilations() as compiled:
        again = cast(other, X, 2, **keywords)
    assert (len(traces), compiled) == (1, [])
    np.testing.assert_allclose(again, fn(2 * W, X, 2, **keywords), atol=0.2, rtol=0.02)


@pytest.mark.parametrize("scale", [True, 1.0, 2])
def test_what_is_no_array_is_told_apart_by_value_and_type(scale):
    traces = []

    def fn(w, scale):
        traces.append(scale)
        return w * scale

    cast = autocast(fn)
    cast(W, 1)
    cast(W, scale)
    assert [type(seen) for seen in traces] == [int, type(scale)]


def test_an_argument_that_cannot_be_hashed_is_passed_on():
    class Mode:
        __hash__ = None

    cast = autocast(lambda w, mode: w if isinstance(mode, Mode) else 0 * w)
    np.testing.assert_array_equal(cast(W, Mode()), W)


def test_a_function_may_close_over_traced_values():
    def loss(w, x):
        cast = autocast(lambda w: jnp.tanh(x @ w))
        return cast(w).sum() + jax.vmap(cast)(w[None]).sum()

    exact = jax.grad(lambda w, x: 2 * jnp.tanh(x @ w).sum(), argnums=(0, 1))(W, X)
    for gradient in (jax.grad(loss, argnums=(0, 1)), jax.jit(jax.grad(loss, argnums=(0, 1)))):
        for approximate, wanted in zip(gradient(W, X), exact, strict=True):
            assert cosine(approximate, wanted) > 0.999


def test_what_was_compiled_goes_with_the_function():
    class Weights:
        pass

    held = Weights()
    alive = weakref.ref(held)
    cast = autocast(lambda w, held=held: w @ w)
    cast(W)
    jax.grad(total(cast))(W)
    del cast, held
    gc.collect()
    assert alive() is None


def test_the_lists_are_disjoint_and_print():
    groups = [OPS.half, OPS.float32, OPS.declared, OPS.separate]
    assert sum(len(group) for group in groups) == len(frozenset().union(*groups))
    assert "dot_general" in str(OPS)


def over_devices(axis_type):
    return jax.make_mesh((8,), ("d",), axis_types=(axis_type,))


@pytest.mark.cases
@pytest.mark.parametrize(
    "fn",
    [
        lambda w, x: jax.nn.relu(x @ w),
        lambda w, x: 2.0 * (x @ w),
        lambda w, x: jax.nn.softmax(x @ w / jnp.sqrt(16.0)),
        lambda w, x: jax.nn.gelu(x @ w),
    ],
)
def test_inside_shard_map(fn):
    mesh, cast = over_devices(jax.sharding.AxisType.Auto), autocast(fn)

    def mapped(f):
        return jax.shard_map(f, mesh=mesh, in_specs=(P(), P("d")), out_specs=P("d"))

    np.testing.assert_allclose(jax.jit(mapped(cast))(W, X), fn(W, X), atol=0.05)
    slope = mapped(lambda w, x: jax.grad(lambda x: jnp.sum(cast(w, x) ** 2))(x))(W, X)
    assert cosine(slope, jax.grad(lambda x: jnp.sum(fn(W, x) ** 2))(X)) > 0.999


def test_a_derivative_rule_keeps_explicit_shardings():
    mesh = over_devices(jax.sharding.AxisType.Explicit)
    with jax.set_mesh(mesh):
        x = jax.device_put(X, NamedSharding(mesh, P("d")))
        cast = autocast(lambda w: jax.nn.relu(x @ w))
        slope = jax.jit(jax.grad(lambda w: cast(w).sum()))(W)
    assert cosine(slope, jax.grad(lambda w: jax.nn.relu(X @ w).sum())(W)) > 0.999


def test_only_the_params_collection_counts_as_parameters():
    """A running sum in float32 must not be rounded to half by what is added to it."""

    def step(variables, x):
        return variables["state"]["sum"] + (x @ variables["params"]["w"]).sum(0)

    variables = {"params": {"w": W}, "state": {"sum": jnp.full(16, 1000.0)}}
    found = dtypes(autocast(step), variables, X)
    assert found["add"] == {"float32"}


def test_a_norm_does_not_overflow_in_float16():
    def norm(w, x):
        return jnp.sqrt(jnp.sum((x @ w) * (x @ w)))

    def same_value(w, x):
        y = x @ w
        return jnp.linalg.norm(y), jnp.sqrt(jnp.sum(y * y))

    large = 300 * X
    for value in autocast(same_value, half_dtype=jnp.float16)(W, large):
        assert float(value) == pytest.approx(float(norm(W, large)), rel=1e-2)


@pytest.mark.cases
@pytest.mark.parametrize(
    "fn",
    [
        lambda w, x: jnp.abs(jax.lax.complex(x @ w, x @ w)),
        lambda w, x: jnp.abs(x @ w + 1j * (x @ w)),
        lambda w, x: jnp.fft.irfft(jnp.fft.rfft(x @ w)),
    ],
)
def test_complex_numbers_pass_through(fn):
    np.testing.assert_allclose(autocast(fn)(W, X), fn(W, X), atol=0.1)
    gradient = jax.grad(lambda w, x: fn(w, x).sum())
    assert cosine(autocast(gradient)(W, X), gradient(W, X)) > 0.999


def test_a_product_that_the_user_made_of_halves_keeps_its_result():
    def fn(w, x):
        low = w.astype(jnp.bfloat16), x.astype(jnp.bfloat16)
        return jnp.matmul(low[1], low[0], preferred_element_type=jnp.float32)

    assert dtypes(autocast(fn), W, X)["dot_general"] == {"float32"}


@pytest.mark.thorough
def test_an_equinox_model():
    model = eqx.nn.MLP(16, 4, 32, 2, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_array)
    apply_fn = lambda params, x: jax.vmap(eqx.combine(params, static))(x)  # noqa: E731
    cast = autocast(apply_fn, half_dtype="float16")
    np.testing.assert_allclose(cast(params, X), apply_fn(params, X), atol=0.05)
    value, gradient = jax.value_and_grad(total(cast))(params, X)
    exact_value, exact = jax.value_and_grad(total(apply_fn))(params, X)
    np.testing.assert_allclose(value, exact_value, rtol=0.02)
    for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(exact), strict=True):
        assert ours.dtype == jnp.float32
        assert cosine(ours, theirs) > 0.999
    assert dtypes(cast, params, X)["dot_general"] == {"float16"}
    assert dtypes(autocast(jax.vmap(model)), X)["dot_general"] == {"bfloat16"}


def test_the_half_dtype_is_checked():
    with pytest.raises(ValueError, match="half_dtype must be 'auto', bfloat16 or float16, not 'i"):
        autocast(lambda w: w, half_dtype="int8")


def test_a_policy_gives_the_half_dtype():
    policy = initialize(lambda w, x: x @ w, None, "O1", half_dtype="float16", verbosity=0).policy
    assert dtypes(autocast(jnp.matmul, policy), W, W)["dot_general"] == {"float16"}
    cast = autocast(jnp.matmul, policy, half_dtype="bfloat16")
    assert dtypes(cast, W, W)["dot_general"] == {"bfloat16"}


def test_a_method_can_be_decorated():
    class Layer:
        @autocast
        def __call__(self, x):
            return x @ W

    assert dtypes(Layer(), X)["dot_general"] == {"bfloat16"}


def test_a_value_goes_up_to_float32_once_for_all_its_uses():
    def fn(w, x):
        y = x @ w
        return jnp.exp(y) + jnp.log(y) + y**3 + y.sum()

    program = jax.make_jaxpr(autocast(fn))(W, X).jaxpr.eqns[0].params["jaxpr"].jaxpr
    up = [e for e in program.eqns if e.primitive.name == "convert_element_type"
          and e.params["new_dtype"] == jnp.float32]  # fmt: skip
    assert len(up) == 1
    slope = jax.grad(lambda x: autocast(lambda x: jnp.exp(x @ W) + jnp.sin(x @ W))(x).sum())(X)
    exact = jax.grad(lambda x: (jnp.exp(x @ W) + jnp.sin(x @ W)).sum())(X)
    assert cosine(slope, exact) > 0.999


@pytest.mark.thorough
def test_the_program_grows_linearly_and_converts_no_more_than_by_hand():
    def sizes(depth):
        tokens = jnp.zeros((2, 9), int)
        model = Transformer(depth, 32)
        variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
        loss_fn = loss_of(at_level("O1", model))
        counts = [converts_traced(f, variables, tokens) for f in (loss_fn, jax.grad(loss_fn))]
        by_hands = loss_of(by_hand(model))
        hands = [converts_traced(f, variables, tokens) for f in (by_hands, jax.grad(by_hands))]
        assert all(ours <= theirs for ours, theirs in zip(counts, hands, strict=True))
        return np.array(
            [len(str(jax.make_jaxpr(loss_fn)(variables, tokens)).split(" = ")), *counts]
        )

    two, three, four = map(sizes, (2, 3, 4))
    np.testing.assert_array_equal(four - three, three - two)
