"""Rolls functions and compares them to what they were."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun, jaxprs_in_params

from jinit.tracing import roll, trace


def run(rolled, variables, *data):
    """Calls the rolled function as the original is called."""
    traced = rolled.traced
    closed = jax.extend.core.ClosedJaxpr(traced.jaxpr, traced.consts)
    stacked = rolled.stack(jax.tree.leaves(variables))
    return traced.unflatten(jaxpr_as_fun(closed)(*stacked, *jax.tree.leaves(data)))


def lengths(rolled):
    """Lists how many blocks each loop runs."""
    equations = [rolled.traced.jaxpr.eqns[index] for (index,) in sorted(rolled.loops)]
    assert all(equation.primitive.name == "scan" for equation in equations)
    return [equation.params["length"] for equation in equations]


def size(rolled):
    """Counts the equations of the rolled function, those inside others included."""

    def count(jaxpr):
        inner = [j for e in jaxpr.eqns for j in jaxprs_in_params(e.params)]
        return len(jaxpr.eqns) + sum(count(getattr(j, "jaxpr", j)) for j in inner)

    return count(rolled.traced.jaxpr)


def _plain(tree):
    def plain(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key_data(leaf)
        return leaf

    return jax.tree.map(plain, tree)


def _loss(fn):
    """Weighs every output differently, so that none can stand for another."""

    def loss(floats, rest, data):
        output = fn(jax.tree.map(lambda f, r: r if f is None else f, floats, rest,
                                 is_leaf=lambda leaf: leaf is None), *data)  # fmt: skip
        leaves = [y for y in jax.tree.leaves(output) if jnp.issubdtype(y.dtype, jnp.floating)]
        total = sum((i + 1) * jnp.sum(jnp.sin(y.astype(jnp.float32) if y.dtype == jnp.bfloat16
                                              else y)) for i, y in enumerate(leaves))  # fmt: skip
        return total, output

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def check(fn, variables, *data, trainable=None, least_saved=8, tolerance=1e-5):
    """Rolls ``fn`` and compares values and gradients to its own; returns what was rolled."""
    leaves = jax.tree.leaves(variables)
    trainable = [True] * len(leaves) if trainable is None else trainable
    traced = trace(fn, variables, *data)
    rolled = roll(traced, trainable, least_saved=least_saved)
    assert rolled.traced.out_avals == traced.out_avals
    assert sorted(i for group in rolled.groups for i in group) == list(range(len(leaves)))
    chex.assert_trees_all_equal(_plain(rolled.unstack(rolled.stack(leaves))), _plain(list(leaves)))
    floats = jax.tree.map(lambda v: v if jnp.issubdtype(v.dtype, jnp.floating) else None, variables)
    (_, outputs), slopes = _loss(fn)(floats, variables, data)
    call = _loss(lambda v, *d: run(rolled, v, *d))
    (_, rolled_outputs), rolled_slopes = call(floats, variables, data)
    options = {"rtol": tolerance, "atol": tolerance}
    chex.assert_trees_all_close(_plain(rolled_outputs), _plain(outputs), **options)
    largest = max((float(np.abs(np.asarray(s, np.float64)).max()) for s in jax.tree.leaves(slopes)),
                  default=1.0)  # fmt: skip
    options["atol"] *= max(largest, 1.0)
    chex.assert_trees_all_close(rolled_slopes, slopes, **options)
    return rolled
