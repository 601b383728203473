"""Scans, while loops and branches: what is planted, reaped and carried."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jinit.tracing import evaluate, trace
from tests.tracing.interpreting import (
    W,
    X,
    branched,
    halve_products,
    interpreted,
    looped,
    recording,
    same,
    scanned,
    squared,
)


def nested(w, x):
    def layer(carry, v):
        return jax.lax.scan(lambda c, u: (jnp.sin(c @ v * u), c.mean()), carry, jnp.arange(2.0) + 1)

    return jax.lax.scan(layer, x, jnp.stack([w, -w, 2 * w]))


def switched(w, x):
    index = jnp.int32(jnp.abs(x[0, 0]) * 10) - 2  # out of range at either end
    return jax.lax.switch(index, [jnp.sin, lambda a: a @ w, lambda a: jnp.tanh(a @ w @ w)], x)


def deep(w, x, depth=6):
    """Conds within conds."""
    if not depth:
        return jnp.tanh(x @ w)
    return jax.lax.cond(x.sum() > depth, lambda a: deep(w, a, depth - 1), lambda a: a + 1.0, x)


def decided_by_the_batch(w, x):
    return jax.vmap(lambda row: jax.lax.cond(row.sum() > 0, lambda r: r @ w, jnp.sin, row))(x)


def in_each_other(w, x):
    def body(carry, v):
        return jax.lax.cond(carry.sum() > 0, lambda c: looped(v, c)[1], lambda c: -c @ v, carry), 0

    return jax.lax.scan(body, x, jnp.stack([w, -w]))


def counted(w, x):
    return jax.lax.fori_loop(0, 3, lambda i, c: jnp.sin(c @ w + jnp.float32(i)), x)


PROGRAMS = [scanned, nested, branched, switched, deep, decided_by_the_batch, counted]
FORWARD = [*PROGRAMS, looped, in_each_other]


@pytest.mark.cases
@pytest.mark.parametrize("fn", FORWARD)
def test_values_tangents_and_batches_are_the_same(fn):
    run = interpreted(fn)
    for x in (X, -X, 3 * X):
        same(run(W, x), fn(W, x))
    same(jax.jit(run)(W, X), fn(W, X))
    assert jax.eval_shape(run, W, X) == jax.eval_shape(fn, W, X)
    directions = (W + 1, X - 1)

    def derivative(f):
        floats = jax.jvp(f, (W, X), directions)[1]
        return [t for t in jax.tree.leaves(floats) if t.dtype != jax.dtypes.float0]

    same(derivative(run), derivative(fn))
    batch = jnp.stack([X, -X])
    over = [jax.vmap(f, in_axes=(None, 0))(W, batch) for f in (run, fn)]
    same(*over)


@pytest.mark.cases
@pytest.mark.parametrize("fn", PROGRAMS)
def test_first_and_second_derivatives_are_the_same(fn):
    for derive in (jax.grad, lambda f: jax.grad(squared(jax.grad(f)))):
        first, second = (derive(squared(f))(W, X) for f in (interpreted(fn), fn))
        same(first, second, rtol=1e-3, atol=1e-4)
    inside = jax.grad(squared(fn))
    same(interpreted(inside)(W, X), inside(W, X))


@pytest.mark.parametrize("fn", FORWARD)
def test_a_rule_that_changes_dtypes_gets_the_declared_ones_at_the_borders(fn):
    assert jax.eval_shape(interpreted(fn, halve_products), W, X) == jax.eval_shape(fn, W, X)


def test_every_equation_of_nested_branches_is_seen_once():
    names = []
    interpreted(deep, recording(names))(W, X)
    assert names.count("dot_general") == 1
    assert names.count("add") == 6


def test_a_branch_prints_when_it_is_taken(capsys):
    def fn(x):
        def loud(a):
            jax.debug.print("taken")
            return a

        return jax.lax.cond(x.sum() > 0, loud, lambda a: -a, x)

    for x, count in ((jnp.ones(2), 1), (-jnp.ones(2), 0)):
        jax.jit(interpreted(fn))(x)
        jax.effects_barrier()
        assert capsys.readouterr().out.count("taken") == count


def test_what_is_planted_in_a_branch_reaches_that_branch():
    traced = trace(branched, W, X)
    [cond] = [i for i, e in enumerate(traced.jaxpr.eqns) if e.primitive.name == "cond"]
    branches = traced.jaxpr.eqns[cond].params["branches"]
    paths = {
        equation.primitive.name: (cond, number, index)
        for number, branch in enumerate(branches)
        for index, equation in enumerate(branch.jaxpr.eqns)
    }

    def rule(view, values):
        if view.planted is None:
            return None
        (output,) = view.bind(values)
        view.reap(output.sum())
        return [output * view.planted]

    planted = {paths["dot_general"]: jnp.float32(2), paths["sub"]: jnp.float32(3)}
    for x, name, product in (
        (jnp.abs(X), "dot_general", jnp.abs(X) @ W),
        (-jnp.abs(X), "sub", -jnp.abs(X) - W[:1]),
    ):
        (out,), reaped = evaluate(traced.jaxpr, traced.consts, [W, x], rule, planted=planted)
        same(out, product * planted[paths[name]])
        np.testing.assert_allclose(reaped.pop(paths[name]), product.sum(), rtol=1e-5)
        assert [float(v) for v in reaped.values()] == [0.0]


def test_what_is_reaped_in_nested_scans_is_stacked_twice():
    traced = trace(nested, W, X)

    def rule(view, values):
        if view.equation.primitive.name != "dot_general":
            return None
        (product,) = view.bind(values)
        view.reap(product.mean())
        return [product * view.planted]

    seen = []
    evaluate(traced.jaxpr, traced.consts, [W, X], lambda view, values: seen.append(view))
    (path,) = {view.path for view in seen if view.equation.primitive.name == "dot_general"}
    factors = jnp.arange(6.0).reshape(3, 2) + 1
    _, reaped = evaluate(traced.jaxpr, traced.consts, [W, X], rule, planted={path: factors})
    carry, means = X, []
    for i, w in enumerate([W, -W, 2 * W]):
        for j in range(2):
            means.append((carry @ w).mean())
            carry = jnp.sin(carry @ w * factors[i, j] * (j + 1.0))
    np.testing.assert_allclose(reaped[path].ravel(), jnp.array(means), rtol=1e-3, atol=1e-5)


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


def test_a_loop_under_vmap_stops_example_by_example():
    def grow(row):
        return jax.lax.while_loop(
            lambda c: jnp.sum(c**2) < 100.0, lambda c: 1.5 * c + 0.01 * (c @ W), row
        )

    batched = jax.vmap(grow)
    lengths = X * jnp.arange(1.0, 9.0)[:, None]
    same(interpreted(batched)(lengths), batched(lengths))
