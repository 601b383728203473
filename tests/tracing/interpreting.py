"""Functions run by the interpreter, and rules to run them under."""

import chex
import jax
import jax.numpy as jnp

from jinit.tracing import evaluate, trace

W = jax.random.normal(jax.random.key(0), (4, 4)) / 2
X = jax.random.normal(jax.random.key(1), (8, 4))


def scanned(w, x):
    def body(carry, slice_):
        carry = jnp.tanh(carry @ slice_)
        return carry, carry.sum()

    return jax.lax.scan(body, x, jnp.stack([w, -w, 2 * w]), reverse=True)


def looped(w, x):
    return jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.sin(c[1] @ w)), (0, x))


def branched(w, x):
    return jax.lax.cond(x.sum() > 0, lambda a: a @ w, lambda a: a - w[:1], x)


def unchanged(view, values):
    return None


def halve_products(view, values):
    """The simplest rule that changes dtypes: products in bfloat16, the rest as it comes."""
    if view.equation.primitive.name == "dot_general":
        low = [value.astype(jnp.bfloat16) for value in values]
        return view.bind(low, preferred_element_type=jnp.dtype(jnp.bfloat16))
    return None


def recording(names):
    """A rule that changes nothing and appends the name of every equation that it sees."""

    def rule(view, values):
        names.append(view.equation.primitive.name)

    return rule


def interpreted(fn, rule=unchanged, **options):
    def run(*args):
        traced = trace(fn, *args)
        outputs, _ = evaluate(traced.jaxpr, traced.consts, jax.tree.leaves(args), rule, **options)
        return traced.unflatten(outputs)

    return run


def same(first, second, rtol=1e-5, atol=1e-6):
    """Equal but for the rounding of another fusion: some units in the last place."""
    chex.assert_trees_all_close(first, second, rtol=rtol, atol=atol)


def squared(fn):
    """A loss of everything a function produces."""
    return lambda *args: sum(jnp.sum(y * y) for y in jax.tree.leaves(fn(*args)))


def product_dtypes(fn, *args):
    """The dtypes of all products in a function, those in inner jaxprs included."""
    found = []

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                found.append(str(equation.outvars[0].aval.dtype))
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                walk(getattr(inner, "jaxpr", inner))

    walk(jax.make_jaxpr(fn)(*args).jaxpr)
    return found
