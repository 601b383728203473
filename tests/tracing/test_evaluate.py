"""The interpreter against JAX itself: run unchanged it must change nothing."""

import jax
import jax.numpy as jnp
import pytest

from jinit.tracing import evaluate, trace
from tests.tracing.interpreting import (
    W,
    X,
    branched,
    interpreted,
    looped,
    same,
    scanned,
    squared,
    unchanged,
)


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


@pytest.mark.cases
@pytest.mark.parametrize("name", [*PROGRAMS, "while"])
def test_an_unchanged_program_gives_the_same_values(name):
    fn = looped if name == "while" else PROGRAMS[name]
    same(interpreted(fn)(W, X), fn(W, X))
    same(jax.jit(interpreted(fn))(W, X), fn(W, X))
    assert jax.eval_shape(interpreted(fn), W, X) == jax.eval_shape(fn, W, X)


@pytest.mark.cases
@pytest.mark.parametrize("name", PROGRAMS)
def test_it_differentiates_and_batches_as_the_program_does(name):
    fn = PROGRAMS[name]
    same(
        jax.grad(squared(interpreted(fn)), argnums=(0, 1))(W, X),
        jax.grad(squared(fn), argnums=(0, 1))(W, X),
        rtol=1e-5,
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


def test_a_typed_and_a_legacy_key_pass_through(make_key):
    def fn(key):
        return jax.random.uniform(key, (3,))

    same(interpreted(fn)(make_key(5)), fn(make_key(5)))


def test_tracing_keeps_the_structure_of_the_result():
    traced = trace(lambda p, x: {"y": (p["w"] * x, None)}, {"w": W}, W)
    outputs, _ = evaluate(traced.jaxpr, traced.consts, [W, W], unchanged)
    same(traced.unflatten(outputs), {"y": (W * W, None)})
