"""The interpreter against JAX itself: run unchanged it must change nothing."""

import traceback

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jinit.tracing import evaluate, trace

W = jax.random.normal(jax.random.key(0), (4, 4)) / 2
X = jax.random.normal(jax.random.key(1), (3, 4))


def scanned(w, x):
    def body(carry, slice_):
        carry = jnp.tanh(carry @ slice_)
        return carry, carry.sum()

    return jax.lax.scan(body, x, jnp.stack([w, -w, 2 * w]), reverse=True)


def looped(w, x):
    return jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.sin(c[1] @ w)), (0, x))


def branched(w, x):
    return jax.lax.cond(x.sum() > 0, lambda a: a @ w, lambda a: a - w[:1], x)


@jax.custom_vjp
def doubled_slope(x):
    return x * x


doubled_slope.defvjp(lambda x: (x * x, x), lambda x, ct: (4 * x * ct,))


@jax.custom_jvp
def safe_root(x):
    return jnp.sqrt(x)


safe_root.defjvp(lambda p, t: (jnp.sqrt(p[0]), t[0] / (1 + p[0])))

PROGRAMS = {
    "plain": lambda w, x: jnp.exp(x @ w).sum(0),
    "jit": lambda w, x: jax.jit(lambda a: jax.nn.gelu(a @ w))(x),
    "remat": lambda w, x: jax.checkpoint(lambda a: jnp.sin(a @ w) @ w)(x),
    "remat_policy": lambda w, x: jax.checkpoint(
        lambda a: jnp.sin(a @ w), policy=jax.checkpoint_policies.dots_saveable
    )(x),
    "scan": scanned,
    "cond": branched,
    "custom_jvp": lambda w, x: safe_root(jnp.abs(x @ w)) + jax.nn.relu(x),
    "custom_vjp": lambda w, x: doubled_slope(x @ w),
    "vmap": lambda w, x: jax.vmap(lambda row: row @ w)(x),
    "inner_grad": lambda w, x: jax.grad(lambda a: scanned(w, a)[0].sum())(x),
    "scatter": lambda w, x: x.at[0].add(w[0]),
    "random": lambda w, x: x + jax.random.normal(jax.random.key(3), x.shape),
}


def unchanged(view, values):
    return None


def interpreted(fn, rule=unchanged, **options):
    def run(*args):
        traced = trace(fn, *args)
        outputs, _ = evaluate(traced.jaxpr, traced.consts, jax.tree.leaves(args), rule, **options)
        return traced.unflatten(outputs)

    return run


def same(first, second):
    chex.assert_trees_all_close(first, second, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", [*PROGRAMS, "while"])
def test_an_unchanged_program_gives_the_same_values(name):
    fn = looped if name == "while" else PROGRAMS[name]
    same(interpreted(fn)(W, X), fn(W, X))
    same(jax.jit(interpreted(fn))(W, X), fn(W, X))
    assert jax.eval_shape(interpreted(fn), W, X) == jax.eval_shape(fn, W, X)


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_differentiates_and_batches_as_the_program_does(name):
    fn = PROGRAMS[name]

    def loss(f):
        return lambda w, x: sum(jnp.sum(y * y) for y in jax.tree.leaves(f(w, x)))

    same(
        jax.grad(loss(interpreted(fn)), argnums=(0, 1))(W, X),
        jax.grad(loss(fn), argnums=(0, 1))(W, X),
    )
    batch = jnp.stack([X, -X])
    same(
        jax.vmap(interpreted(fn), in_axes=(None, 0))(W, batch),
        jax.vmap(fn, in_axes=(None, 0))(W, batch),
    )


def test_the_rule_sees_every_equation_once_and_may_replace_it():
    seen = []

    def negate_products(view, values):
        seen.append(view.equation.primitive.name)
        if view.equation.primitive.name != "dot_general":
            return None
        return [-view.bind(values)[0]]

    same(interpreted(PROGRAMS["plain"], negate_products)(W, X), jnp.exp(-(X @ W)).sum(0))
    assert seen == ["dot_general", "exp", "reduce_sum"]


def test_what_is_reaped_in_a_scan_is_stacked_and_what_is_planted_is_sliced():
    traced = trace(scanned, W, X)
    [scan] = [i for i, e in enumerate(traced.jaxpr.eqns) if e.primitive.name == "scan"]

    def rule(view, values):
        if view.equation.primitive.name != "dot_general":
            return None
        (product,) = view.bind(values)
        view.reap({"size": jnp.abs(product).sum(), "planted": view.planted})
        return [product * view.planted]

    factors = jnp.array([1.0, 2.0, 3.0])
    _, reaped = evaluate(traced.jaxpr, traced.consts, [W, X], rule, planted={(scan, 0): factors})
    c, sizes = X, []
    for w, factor in list(zip([W, -W, 2 * W], factors, strict=True))[::-1]:
        sizes.append(jnp.abs(c @ w).sum())
        c = jnp.tanh(c @ w * factor)
    np.testing.assert_allclose(reaped[scan, 0]["size"], jnp.array(sizes[::-1]), rtol=1e-6)
    np.testing.assert_array_equal(reaped[scan, 0]["planted"], factors)


def test_the_branch_that_is_not_taken_reaps_zero():
    traced = trace(branched, W, jnp.abs(X))

    def rule(view, values):
        if view.equation.primitive.name not in ("dot_general", "sub"):
            return None
        outputs = view.bind(values)
        view.reap(jnp.ones(()))
        return outputs

    taken = evaluate(traced.jaxpr, traced.consts, [W, jnp.abs(X)], rule)[1]
    other = evaluate(traced.jaxpr, traced.consts, [W, -jnp.abs(X)], rule)[1]
    assert sorted(float(v) for v in taken.values()) == [0.0, 1.0]
    assert {k: 1 - float(v) for k, v in taken.items()} == {k: float(v) for k, v in other.items()}


def test_a_rule_that_changes_dtypes_gets_the_declared_ones_at_loop_borders():
    def halve(view, values):
        if view.equation.primitive.name != "dot_general":
            return None
        low = [v.astype(jnp.bfloat16) for v in values]
        return view.bind(low, preferred_element_type=jnp.dtype(jnp.bfloat16))

    for fn in (scanned, looped, branched):
        declared = jax.eval_shape(fn, W, X)
        assert jax.eval_shape(interpreted(fn, halve), W, X) == declared


def test_shardings_pinned_by_an_inner_jit_survive():
    mesh = Mesh(np.array(jax.devices()[:4]), ("d",))
    sharding = NamedSharding(mesh, P(None, "d"))
    inner = jax.jit(lambda a: a @ W, out_shardings=sharding)

    def rule(view, values):
        if view.equation.primitive.name != "dot_general":
            return None
        (product,) = view.bind(values)
        view.reap(product.sum())
        return [product]

    def run(x):
        traced = trace(inner, x)
        return evaluate(traced.jaxpr, traced.consts, [x], rule)

    (out,), reaped = jax.jit(run)(X)
    assert out.sharding.is_equivalent_to(sharding, 2)
    np.testing.assert_allclose(out, X @ W, rtol=1e-6)
    np.testing.assert_allclose(reaped[0, 0], (X @ W).sum(), rtol=1e-5)


def test_an_error_inside_names_the_user_s_line():
    def fn(x):
        return jnp.log(x) * 2  # the culprit

    def rule(view, values):
        if view.equation.primitive.name == "mul":
            return view.bind([values[0], jnp.ones((7, 7))])
        return None

    with pytest.raises(TypeError) as failure:
        jax.jit(interpreted(fn, rule))(X)
    text = "".join(traceback.format_exception(failure.value))
    assert "the culprit" in text


def test_a_typed_and_a_legacy_key_pass_through(make_key):
    def fn(key):
        return jax.random.uniform(key, (3,))

    same(interpreted(fn)(make_key(5)), fn(make_key(5)))


def test_tracing_keeps_the_structure_of_the_result():
    traced = trace(lambda p, x: {"y": (p["w"] * x, None)}, {"w": W}, W)
    outputs, _ = evaluate(traced.jaxpr, traced.consts, [W, W], unchanged)
    same(traced.unflatten(outputs), {"y": (W * W, None)})


def test_a_loop_under_vmap_stops_example_by_example():
    def grow(row):
        return jax.lax.while_loop(
            lambda c: jnp.sum(c**2) < 100.0, lambda c: 1.5 * c + 0.01 * (c @ W), row
        )

    batched = jax.vmap(grow)
    same(interpreted(lambda w, x: batched(x))(W, X * jnp.arange(1.0, 4.0)[:, None]),
         batched(X * jnp.arange(1.0, 4.0)[:, None]))  # fmt: skip
