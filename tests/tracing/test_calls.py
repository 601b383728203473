"""Calls: what jit, remat and shard_map ask for is kept."""

import functools
import re
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jinit.tracing import evaluate, trace
from tests.tracing.interpreting import (
    W,
    X,
    halve_products,
    interpreted,
    product_dtypes,
    recording,
    same,
    squared,
    unchanged,
)


def lowered(fn, *args):
    return jax.jit(fn).lower(*args).as_text(debug_info=True)


def always_alike(path):
    return ()


# jit


@jax.jit
def layer(x, w):
    return jnp.tanh(x @ w)


def stack(layer):
    return lambda x, w: functools.reduce(layer, [w, -w, w], x)


@pytest.mark.parametrize("options", [{}, {"alike": always_alike}], ids=["inlined", "called"])
def test_a_jit_keeps_its_name(options):
    run = interpreted(lambda x, w: layer(x, w) + 1, **options)
    assert "jit(layer)" in lowered(run, X, W)


@pytest.mark.cases
@pytest.mark.parametrize("fn", [stack(layer), stack(jax.checkpoint(layer))], ids=["jit", "remat"])
def test_equal_calls_are_evaluated_once_and_give_the_same(fn):
    names = []
    run = interpreted(fn, recording(names), alike=always_alike)
    same(run(X, W), fn(X, W))
    assert names == ["neg", "dot_general", "tanh"]
    for derive in (jax.grad, lambda f: jax.grad(squared(jax.grad(f)))):
        same(derive(squared(run))(X, W), derive(squared(fn))(X, W), rtol=1e-4)
    batch = jnp.stack([X, -X])
    over = functools.partial(jax.vmap, in_axes=(0, None))
    same(over(run)(batch, W), over(fn)(batch, W))


def test_equal_calls_are_one_function_of_the_lowered_program():
    text = lowered(interpreted(stack(layer), alike=always_alike), X, W)
    assert text.count("call @layer") == 3
    assert text.count("func.func private @layer") == 1


def test_calls_that_are_not_alike_or_have_other_shapes_are_evaluated_apart():
    names = []
    run = interpreted(stack(layer), recording(names), alike=lambda path: path)
    same(run(X, W), stack(layer)(X, W))
    assert names.count("dot_general") == 3
    names.clear()
    both = interpreted(
        lambda x, w: layer(x, w).sum() + layer(x[:2], w).sum(),
        recording(names),
        alike=always_alike,
    )
    both(X, W)
    assert names.count("dot_general") == 2


def test_a_call_that_closes_over_a_loop_s_values_is_not_shared_beyond_it():
    """The rule adds the latest iota, which inside the scan is a value of the scan's own."""
    latest = []

    def rule(view, values):
        if view.equation.primitive.name == "iota":
            latest[:] = view.bind(values)
            return list(latest)
        if view.equation.primitive.name == "tanh":
            return [jnp.tanh(values[0]) + latest[0]]
        return None

    def shifted(x, w):
        return layer(x + jax.lax.broadcasted_iota(jnp.float32, (8, 4), 1), w)

    def fn(x, w):
        scanned = jax.lax.scan(lambda c, v: (shifted(c, v), None), x, jnp.stack([w, w]))[0]
        return shifted(scanned, w)

    shift, wanted = jnp.arange(4.0)[None], X
    for _ in range(3):
        wanted = jnp.tanh((wanted + shift) @ W) + shift
    same(jax.jit(interpreted(fn, rule, alike=always_alike))(X, W), wanted)


def test_what_is_shared_may_not_reap():
    message = r"neither reap nor be planted anything, but it was at \[\(1, 0\)\], below the call"
    with pytest.raises(ValueError, match=message):
        interpreted(lambda x, w: layer(-x, w), reaping, alike=always_alike)(X, W)
    planted = {(1, 0): jnp.float32(1)}
    with pytest.raises(ValueError, match=message):
        interpreted(lambda x, w: layer(-x, w), halve_products, planted=planted, alike=always_alike)(
            X, W
        )


def test_donation_is_kept():
    step = jax.jit(lambda x, w: (x + 1, w), donate_argnums=0)
    traced = trace(step, X, W)

    def run(x, w):
        return evaluate(traced.jaxpr, traced.consts, [x, w], unchanged)[0]

    (call,) = jax.make_jaxpr(run)(X, W).jaxpr.eqns
    assert call.params["donated_invars"] == (True, False)
    x = X + 0
    run(x, W)
    assert x.is_deleted()


def reaping(view, values):
    if view.equation.primitive.name != "dot_general":
        return None
    (product,) = view.bind(values)
    view.reap(product.sum())
    return [product if view.planted is None else product * view.planted]


def test_shardings_pinned_by_an_inner_jit_survive():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, P("d"))
    inner = jax.jit(lambda a: a @ W, in_shardings=sharding, out_shardings=sharding)
    traced = trace(inner, X)

    def run(x):
        planted = {(0, 0): jnp.float32(2)}
        return evaluate(traced.jaxpr, traced.consts, [x], reaping, planted=planted)

    (call,) = [e for e in jax.make_jaxpr(run)(X).jaxpr.eqns if "in_shardings" in e.params]
    for pinned in (call.params["in_shardings"], call.params["out_shardings"]):
        assert [s for s in pinned if isinstance(s, NamedSharding)] == [sharding]
    (out,), reaped = jax.jit(run)(X)
    assert out.sharding.is_equivalent_to(sharding, 2)
    same(out, 2 * X @ W)
    np.testing.assert_allclose(reaped[0, 0], (X @ W).sum(), rtol=1e-5)


# remat


def two_products(x, w):
    return jnp.sin(checkpoint_name(jnp.sin(x @ w), "kept") @ w)


POLICIES = {
    "everything recomputed": None,
    "products": jax.checkpoint_policies.dots_saveable,
    "names": jax.checkpoint_policies.save_only_these_names("kept"),
    "all": jax.checkpoint_policies.everything_saveable,
}
each_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


def saved(fn, *args):
    """How many values of the first axis's size a function saves for its derivative."""
    return sum(leaf.shape == X.shape for leaf in jax.tree.leaves(jax.vjp(fn, *args)[1]))


@each_policy
@pytest.mark.parametrize("prevent_cse", [True, False])
def test_a_remat_keeps_its_policy(policy, prevent_cse):
    fn = jax.checkpoint(two_products, policy=policy, prevent_cse=prevent_cse)
    run = interpreted(fn)
    assert saved(run, X, W) == saved(fn, X, W)
    gradients = [jax.grad(squared(f), argnums=(0, 1)) for f in (run, fn)]
    same(*(g(X, W) for g in gradients))
    texts = [lowered(g, X, W) for g in gradients]
    barriers = [text.count("optimization_barrier") for text in texts]
    assert barriers[0] == barriers[1]
    assert (barriers[0] > 0) == prevent_cse
    products = [text.count("stablehlo.dot_general") for text in texts]
    assert products[0] == products[1]


def test_the_policies_differ():
    counts = [saved(jax.checkpoint(two_products, policy=p), X, W) for p in POLICIES.values()]
    assert len(set(counts)) > 2


@each_policy
def test_a_remat_inside_a_gradient_still_prevents_cse(policy):
    """Else XLA merges what is computed again with what was, and nothing is saved."""
    gradient = jax.grad(squared(jax.checkpoint(two_products, policy=policy)))
    texts = [lowered(f, X, W) for f in (interpreted(gradient), gradient)]
    barriers = [text.count("optimization_barrier") for text in texts]
    assert barriers[0] == barriers[1]


def test_a_remat_with_static_arguments_and_a_prevent_cse_an_argument():
    plain = jax.checkpoint(lambda n, x, w: n * jnp.sin(x @ w), static_argnums=0)
    each = jax.checkpoint(two_products, prevent_cse=(True, False))
    for fn in (lambda x, w: plain(3, x, w), each):
        same(jax.grad(squared(interpreted(fn)))(X, W), jax.grad(squared(fn))(X, W))


def test_a_rule_may_close_over_arrays_inside_a_remat():
    shift = jnp.arange(4.0)[None] * jnp.ones((8, 1))

    def rule(view, values):
        if view.equation.primitive.name == "sin":
            return [jnp.sin(values[0]) + shift]
        return None

    fn = jax.checkpoint(lambda x: jnp.sin(x @ W))
    wanted = jax.grad(lambda x: jnp.sum((jnp.sin(x @ W) + shift) ** 2))(X)
    same(jax.grad(squared(interpreted(fn, rule)))(X), wanted)
    same(jax.jit(jax.grad(squared(interpreted(fn, rule))))(X), wanted)


def test_what_is_planted_and_reaped_passes_through_a_remat():
    traced = trace(jax.checkpoint(lambda x: jnp.sin(x @ W)), X)

    def total(factor):
        outputs, reaped = evaluate(
            traced.jaxpr, traced.consts, [X], reaping, planted={(0, 0): factor}
        )
        return outputs[0].sum(), reaped

    slope, reaped = jax.grad(total, has_aux=True)(jnp.float32(2))
    np.testing.assert_allclose(slope, jnp.sum(jnp.cos(2 * X @ W) * (X @ W)), rtol=1e-4)
    np.testing.assert_allclose(reaped[0, 0], (X @ W).sum(), rtol=1e-5)


# shard_map


def mesh_of(shape, kind=AxisType.Auto):
    return jax.make_mesh(shape, ("d", "m")[: len(shape)], axis_types=(kind,) * len(shape))


def mapped(fn, shape=(8,), **options):
    specs = {"in_specs": (P("d"), P()), "out_specs": P("d"), **options}
    return jax.shard_map(fn, mesh=mesh_of(shape), **specs)


def with_sum(x, w):
    y = jnp.tanh(x @ w)
    return y * (1 + jax.lax.psum(jnp.sum(y * y), "d") / 32)


def with_gather(x, w):
    return jax.lax.all_gather(x @ w, "d", tiled=True)[:1] + jnp.sin(x)


def scanned_shards(x, w):
    inner = mapped(with_sum)
    return jax.lax.scan(lambda c, v: (jnp.sin(inner(c, v)), None), x, jnp.stack([w, -w]))[0]


def with_rules(x, w):
    f = jax.custom_vjp(lambda x, w: x @ w)
    f.defvjp(lambda x, w: (x @ w, (x, w)), lambda s, ct: (
        2 * ct @ s[1].T, jax.lax.psum(3 * s[0].T @ ct, "d")))  # fmt: skip
    return jax.nn.relu(f(x, w))


def partly_manual(x, w):
    return jnp.tanh(x @ w) * jax.lax.axis_index("d")


def two_axes(x, w):
    return jax.lax.psum(x @ w, "m") + jax.lax.pmax(jax.lax.stop_gradient(x.sum()), ("d", "m"))


def nested_shards(x, w):
    mesh = mesh_of((4, 2))

    def outer(x, w):
        inner = jax.shard_map(
            lambda x, w: jax.lax.psum(x @ w, "m"), in_specs=(P(None, "m"), P("m")),
            out_specs=P(), axis_names={"m"},
        )  # fmt: skip
        return jnp.sin(inner(x, w))

    return jax.shard_map(
        outer, mesh=mesh, in_specs=(P("d"), P()), out_specs=P("d"), axis_names={"d"}
    )(x, w)


SHARDED = {
    "psum": mapped(with_sum),
    "unchecked": mapped(with_sum, check_vma=False),
    "gather": mapped(with_gather),
    "in jit": jax.jit(mapped(with_sum)),
    "in scan": scanned_shards,
    "in remat": jax.checkpoint(mapped(with_sum)),
    "custom rules": mapped(with_rules),
    "partly manual": mapped(partly_manual, shape=(4, 2), axis_names={"d"}),
    "two axes": mapped(two_axes, shape=(4, 2), in_specs=(P("d", "m"), P("m"))),
    "nested": nested_shards,
    "gradient inside": mapped(jax.grad(lambda x, w: jnp.sum(jnp.sin(x @ w) ** 2))),
    "vmap inside": mapped(lambda x, w: jax.vmap(lambda r: jnp.sin(r @ w))(x)),
    "reduced": mapped(lambda x, w: jax.lax.pmean((x @ w).sum(), "d"), out_specs=P()),
}
DIFFERENTIABLE = {k: fn for k, fn in SHARDED.items() if k != "nested"}  # JAX itself fails
each_shard_map = pytest.mark.parametrize("fn", SHARDED.values(), ids=SHARDED)
each_differentiable = pytest.mark.parametrize("fn", DIFFERENTIABLE.values(), ids=DIFFERENTIABLE)


@pytest.mark.cases
@each_shard_map
def test_a_shard_map_gives_the_same_values(fn):
    fn = jax.jit(fn)
    run = interpreted(fn)
    same(jax.jit(run)(X, W), fn(X, W))
    assert jax.eval_shape(run, X, W) == jax.eval_shape(fn, X, W)


@pytest.mark.cases
@each_differentiable
def test_it_has_the_same_gradients(fn):
    fn = jax.jit(fn)
    run = interpreted(fn)
    slope, wanted = (jax.jit(jax.grad(squared(f), argnums=(0, 1))) for f in (run, fn))
    same(slope(X, W), wanted(X, W), rtol=1e-4, atol=1e-5)
    same(jax.jit(interpreted(wanted))(X, W), wanted(X, W), rtol=1e-4, atol=1e-5)


@pytest.mark.cases
@each_differentiable
def test_products_in_a_shard_map_are_half_forward_and_backward(fn):
    def whole(x, w):
        return jax.tree.map(jnp.tanh, fn(x, w))

    run = interpreted(whole, halve_products)
    slope = jax.grad(squared(run), argnums=(0, 1))
    assert set(product_dtypes(slope, X, W)) == {"bfloat16"}
    exact = jax.jit(jax.grad(squared(whole), argnums=(0, 1)))(X, W)
    for low, wanted in zip(jax.jit(slope)(X, W), exact, strict=True):
        size = np.abs(wanted).max() + 1e-6
        np.testing.assert_allclose(low / size, wanted / size, atol=0.1)


def test_a_shard_map_keeps_its_mesh_its_specs_and_its_checks():
    def only(fn):
        (equation,) = jax.make_jaxpr(fn)(X, W).jaxpr.eqns
        return {k: v for k, v in equation.params.items() if k != "jaxpr"}

    for name in ("psum", "unchecked", "partly manual", "two axes"):
        assert only(interpreted(SHARDED[name])) == only(SHARDED[name]), name


def test_explicit_shardings_and_a_context_mesh():
    mesh = mesh_of((8,), AxisType.Explicit)
    with jax.set_mesh(mesh):
        x = jax.device_put(X, NamedSharding(mesh, P("d")))
        fn = jax.shard_map(with_sum, in_specs=(P("d"), P()), out_specs=P("d"))
        for f in (fn, jax.grad(squared(fn))):
            out, wanted = jax.jit(interpreted(f))(x, W), jax.jit(f)(x, W)
            same(out, wanted)
            assert jax.typeof(out) == jax.typeof(wanted)


def test_nothing_is_reaped_from_a_shard_map():
    fn = SHARDED["psum"]
    traced = trace(fn, X, W)
    outputs, reaped = jax.jit(lambda *a: evaluate(traced.jaxpr, traced.consts, a, reaping))(X, W)
    assert reaped == {}
    same(outputs[0], fn(X, W))


# source lines


def culprit(x):
    return jnp.log(x) * 2  # the culprit


@pytest.mark.parametrize(
    "wrap",
    [
        lambda f: f,
        jax.jit,
        jax.checkpoint,
        lambda f: lambda x: jax.lax.scan(lambda c, _: (f(c), None), x, None, length=2)[0],
        lambda f: lambda x: jax.lax.cond(x.sum() > 0, f, f, x),
        lambda f: lambda x: jax.lax.while_loop(lambda c: c.sum() > 0, f, x),
        lambda f: mapped(f, in_specs=P("d")),
    ],
    ids=["plain", "jit", "remat", "scan", "cond", "while", "shard_map"],
)
@pytest.mark.parametrize("options", [{}, {"alike": always_alike}], ids=["inlined", "called"])
def test_an_error_inside_names_the_user_s_line(wrap, options):
    def rule(view, values):
        if view.equation.primitive.name == "mul":
            return view.bind([values[0], jnp.ones((7, 7))])
        return None

    with pytest.raises(TypeError) as failure:
        jax.jit(interpreted(wrap(culprit), rule, **options))(X)
    assert "the culprit" in "".join(traceback.format_exception(failure.value))


def test_lowered_operations_name_the_user_s_line_and_scope():
    def fn(x):
        with jax.named_scope("block"):
            return jax.checkpoint(culprit)(x)

    for f in (fn, interpreted(fn), interpreted(fn, alike=always_alike)):
        text = lowered(f, X)
        assert re.search(r"block/(checkpoint|remat\w*)/log", text)
        line = culprit.__code__.co_firstlineno + 1
        assert f'test_calls.py":{line}' in text
