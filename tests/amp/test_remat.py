"""A remat's barrier: XLA would save again what the user recomputes, were it dropped."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jinit.amp import autocast

W = jnp.eye(8) / 2
X = jnp.ones((4, 8))
POLICIES = jax.checkpoint_policies


def block(x, w):
    return jnp.sin(checkpoint_name(jnp.tanh(x @ w), "kept") @ w)


REMATS = {
    "remat": jax.checkpoint(block),
    "products saved": jax.checkpoint(block, policy=POLICIES.dots_saveable),
    "names saved": jax.checkpoint(block, policy=POLICIES.save_only_these_names("kept")),
    "offloaded": jax.checkpoint(
        block, policy=POLICIES.offload_dot_with_no_batch_dims("device", "pinned_host")
    ),
    "an argument each": jax.checkpoint(block, prevent_cse=(True, False)),
    "no barrier": jax.checkpoint(block, prevent_cse=False),
}


def chain(block):
    return lambda w, x: block(block(block(x, w), w), w)


def scan(block):
    return lambda w, x: lax.scan(lambda c, w: (block(c, w), None), x, jnp.stack([w, w]))[0]


def nested(block):
    return lambda w, x: jax.checkpoint(lambda x, w: block(block(x, w), w))(x, w)


def custom_vjp(block):
    fn = jax.custom_vjp(lambda x, w: block(x, w))
    fn.defvjp(lambda x, w: (block(x, w), (x, w)), lambda saved, ct: jax.vjp(block, *saved)[1](ct))
    return lambda w, x: fn(x @ w, w)


def custom_jvp(block):
    fn = jax.custom_jvp(lambda x, w: block(x, w))
    fn.defjvp(lambda primals, directions: jax.jvp(block, primals, directions))
    return lambda w, x: fn(x @ w, w)


def cond(block):
    return lambda w, x: lax.cond(x[0, 0] > 0, block, lambda x, w: x, x, w)


def inner_jit(block):
    return lambda w, x: jax.jit(block)(jax.jit(block)(x, w), w)


def vmap(block):
    return lambda w, x: jax.vmap(lambda row: block(row[None], w))(x)


def barriers(fn, *args):
    return jax.jit(fn).lower(*args).as_text().count("optimization_barrier")


def assert_barriers_stay(fn, least, *args):
    def loss(*args):
        return jnp.sum(fn(*args))

    expected = barriers(jax.grad(loss), *args)
    assert expected >= least
    assert barriers(autocast(jax.grad(loss)), *args) == expected
    assert barriers(jax.grad(autocast(loss)), *args) == expected


@pytest.mark.cases
@pytest.mark.parametrize("remat", REMATS)
@pytest.mark.parametrize(
    "build", [chain, scan, nested, custom_vjp, custom_jvp, cond, inner_jit, vmap],
    ids=lambda build: build.__name__,
)  # fmt: skip
def test_barriers_stay(build, remat):
    assert_barriers_stay(build(REMATS[remat]), remat != "no barrier", W, X)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x = nn.remat(nn.Dense)(8)(jnp.sin(x))
        return x


def test_barriers_of_linen_stay():
    variables = Net().init(jax.random.key(0), X)
    assert_barriers_stay(Net().apply, 3, variables, X)


def test_barriers_of_nnx_stay():
    graph, state = nnx.split(nnx.Linear(8, 8, rngs=nnx.Rngs(0)))

    def apply(state, x):
        layer = nnx.remat(lambda model, x: jnp.sin(model(x)))
        model = nnx.merge(graph, state)
        return layer(model, layer(model, x))

    assert_barriers_stay(apply, 2, state, X)
