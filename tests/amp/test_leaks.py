"""Nothing traced outlives its trace, and functions of any signature are cast."""

import gc

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from jinit import amp
from jinit.empirical import calibrate, empirical_init
from jinit.tracing import roll, trace
from tests.amp.test_autocast import (
    W,
    X,
    batched,
    cond,
    custom_vjp,
    inner_grad,
    jitted_layers,
    product_rules,
    remat,
    scan,
    shard_map,
    total,
    while_loop,
)
from tests.tracing.rolling import run


def custom_jvp(w, x):
    return jax.nn.relu(x @ w) + jnp.linalg.norm(jax.nn.silu(x @ w))


def nested(w, x):
    @jax.checkpoint
    def block(x, w):
        return jax.lax.cond(x[0, 0] > 0, jax.nn.relu, jnp.sin, jax.vmap(jnp.dot, (0, None))(x, w))

    return jax.lax.scan(lambda c, w: (jax.jit(block)(c, w), None), x, jnp.stack([w, -w]))[0]


PROGRAMS = [
    scan, while_loop, cond, remat, custom_vjp, product_rules, custom_jvp, batched, inner_grad,
    jitted_layers, shard_map, nested,
]  # fmt: skip
DIFFERENTIABLE = [fn for fn in PROGRAMS if fn not in (while_loop, shard_map)]
# the gradient of a shard_map leaks in JAX itself


def named(fn):
    return fn.__name__


@pytest.fixture(autouse=True)
def _checking_leaks(capsys):
    gc.collect()
    with jax.checking_leaks():
        yield


@pytest.mark.cases
@pytest.mark.parametrize("fn", PROGRAMS, ids=named)
def test_autocast_leaks_nothing(fn):
    cast = amp.autocast(fn)
    jax.eval_shape(jax.jit(cast), W, X)
    jax.eval_shape(jax.vmap(cast, (0, None)), W[None], X)


@pytest.mark.cases
@pytest.mark.parametrize("fn", DIFFERENTIABLE, ids=named)
def test_its_gradients_leak_nothing(fn):
    cast = amp.autocast(fn)
    jax.eval_shape(jax.jit(jax.grad(total(cast), (0, 1))), W, X)
    jax.eval_shape(jax.vmap(jax.grad(total(cast)), (0, None)), W[None], X)
    jax.eval_shape(amp.autocast(jax.grad(total(fn))), W, X)


@pytest.mark.cases
@pytest.mark.parametrize("fn", PROGRAMS, ids=named)
def test_explain_leaks_nothing(fn):
    amp.explain(fn, W, X)
    if fn in DIFFERENTIABLE:
        amp.explain(amp.autocast(jax.grad(total(fn))), W, X)


def blocks(ws, x):
    for w in ws:
        x = jax.nn.relu(x @ jax.checkpoint(jnp.sin)(w))
    return x


@pytest.mark.thorough
def test_a_rolled_program_leaks_nothing():
    ws = [W * i for i in range(6)]
    rolled = roll(trace(blocks, ws, X), [True] * 6, least_saved=1)
    assert rolled.loops
    chex.assert_trees_all_close(
        jax.jit(lambda ws, x: run(rolled, ws, x))(ws, X), blocks(ws, X), rtol=1e-5, atol=1e-5
    )
    jax.eval_shape(jax.grad(lambda ws: run(rolled, ws, X).sum()), ws)


@pytest.mark.cases
@pytest.mark.parametrize("find", [empirical_init, calibrate])
def test_measuring_leaks_nothing(find):
    params = {"first": W, "second": W}

    def apply_fn(params, x):
        return jnp.tanh(x @ params["first"]) @ params["second"]

    options = {"key": jax.random.key(0), "samples": 1, "batch_size": 8}
    if find is calibrate:
        options["optimizer"] = optax.sgd(0.1)
    find(params, apply_fn, X, lambda y: jnp.mean(y**2), **options)


SIGNATURES = {
    "keywords": (lambda *, w, x: x @ w, (), {"w": W, "x": X}),
    "any keywords": (lambda **named: named["x"] @ named["w"], (), {"w": W, "x": X}),
    "any arguments": (lambda *args: args[1] @ args[0], (W, X), {}),
    "no argument": (lambda: X @ W, (), {}),
    "a default": (lambda x=X: x @ W, (), {}),
}


@pytest.mark.cases
@pytest.mark.parametrize("half", ["bfloat16", "float16"])
@pytest.mark.parametrize(("fn", "args", "named"), SIGNATURES.values(), ids=SIGNATURES.keys())
def test_any_signature_is_cast(fn, args, named, half):
    cast = amp.autocast(fn, half_dtype=half)
    for called in (cast, jax.jit(lambda *a, **k: cast(*a, **k))):
        chex.assert_trees_all_close(called(*args, **named), X @ W, atol=0.05)
    assert {"bfloat16": "bf16", "float16": "f16"}[half] in str(jax.make_jaxpr(cast)(*args, **named))
    found = amp.explain(cast, *args, **named)
    assert "dot_general" in str(found)


@pytest.mark.cases
@pytest.mark.parametrize("region", [amp.half_function, amp.float_function, amp.promote_function])
@pytest.mark.parametrize(("fn", "args", "named"), SIGNATURES.values(), ids=SIGNATURES.keys())
def test_any_signature_is_decorated(fn, args, named, region):
    decorated = region(fn)
    chex.assert_trees_all_close(decorated(*args, **named), X @ W, rtol=1e-5, atol=1e-5)
    result = amp.autocast(lambda *a, **k: decorated(*a, **k))(*args, **named)
    assert result.dtype == jnp.float32
    chex.assert_trees_all_close(result, X @ W, atol=0.05)
    assert "dot_general" in str(amp.explain(decorated, *args, **named))
