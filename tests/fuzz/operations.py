"""What random programs are made of: operations on values of shape (3, 4).

Each takes the parameters, a value, another one, and data that is not differentiated, and returns a
value of the same shape. They are continuous, and keep values of about one about one, so that a
float32 program says what a half one should return.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, nn
from jax.ad_checkpoint import checkpoint_name

from jinit import amp

ROWS, WIDTH = 3, 4


def _normalized(x, axis):
    mean = x.mean(axis, keepdims=True)
    return (x - mean) * lax.rsqrt(jnp.var(x, axis, keepdims=True) + 0.1)


def _spd(p, x):
    return x @ x.T * 0.2 + 2.0 * jnp.eye(ROWS)


def _convolved(p, x, groups):
    kernel = p["kernel"] if groups == 1 else p["kernel"][:, :1]
    return lax.conv_general_dilated(
        x[None], kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=groups,
    )[0]  # fmt: skip


def _phase(x, y):
    return lax.complex(jnp.cos(x), jnp.sin(y))


def _on_host(x):
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.pure_callback(lambda x: np.tanh(x), shape, x, vmap_method="expand_dims")


OPERATIONS = {
    # products
    "product": lambda p, x, y, d: x @ p["w"],
    "dense": lambda p, x, y, d: jnp.tanh(x @ p["w"] + p["b"][None]),
    "product transposed": lambda p, x, y, d: jnp.einsum("ij,kj->ik", x, p["w"]),
    "product exact": lambda p, x, y, d: jnp.matmul(x, p["w"], precision="highest"),
    "product accumulated": lambda p, x, y, d: jnp.matmul(
        x, p["w"], preferred_element_type=jnp.float32
    ),
    "outer": lambda p, x, y, d: jnp.einsum("i,j->ij", x[:, 0], y[0]),
    "batched product": lambda p, x, y, d: 0.3 * jnp.einsum("ij,ik->ik", x, y),
    "attention": lambda p, x, y, d: nn.softmax(x @ y.T / 2.0, axis=-1) @ y,
    "conv": lambda p, x, y, d: _convolved(p, x, 1),
    "depthwise conv": lambda p, x, y, d: _convolved(p, x, WIDTH),
    "one hot": lambda p, x, y, d: x + nn.one_hot(d["rows"], WIDTH) @ p["w"],
    "mask product": lambda p, x, y, d: 0.5 * (jnp.tril(jnp.ones((ROWS, ROWS))) @ x),
    "embedding": lambda p, x, y, d: x + p["w"][d["rows"]],
    # one by one
    "bias": lambda p, x, y, d: x + p["b"][None],
    "gain": lambda p, x, y, d: x * p["g"][None],
    "sum": lambda p, x, y, d: 0.5 * (x + y),
    "times": lambda p, x, y, d: 0.5 * x * y,
    "divide": lambda p, x, y, d: x / (1.5 + y * y),
    "larger": lambda p, x, y, d: jnp.maximum(x, y),
    "clip": lambda p, x, y, d: jnp.clip(x, -1.5, 1.5),
    "where": lambda p, x, y, d: jnp.where(x > 0, x, 0.5 * x),
    "masked": lambda p, x, y, d: nn.softmax(jnp.where(d["mask"], x, -1e9), axis=-1),
    "relu": lambda p, x, y, d: nn.relu(x) + 0.1 * y,
    "gelu": lambda p, x, y, d: nn.gelu(x),
    "silu": lambda p, x, y, d: nn.silu(x) + nn.softplus(y) * 0.3,
    "sine": lambda p, x, y, d: jnp.sin(x),
    "logistic": lambda p, x, y, d: nn.sigmoid(x),
    "exp": lambda p, x, y, d: jnp.exp(-jnp.abs(x)),
    "log": lambda p, x, y, d: jnp.log1p(jnp.abs(x)) - jnp.log(1.2 + y * y) * 0.5,
    "root": lambda p, x, y, d: jnp.sqrt(1.0 + x**2) - 1.0,
    "power": lambda p, x, y, d: 0.2 * (1.0 + jnp.abs(x)) ** 1.5,
    "cube": lambda p, x, y, d: x - x**3 * 0.05,
    "error function": lambda p, x, y, d: lax.erf(x),
    "angle": lambda p, x, y, d: jnp.arctan2(x, 2.0 + y * y),
    "integers": lambda p, x, y, d: x + 0.1 * d["rows"][:, None].astype(x.dtype),
    "remainder": lambda p, x, y, d: x * (d["rows"] % 2)[:, None],
    # reductions
    "centred": lambda p, x, y, d: x - x.mean(-1, keepdims=True),
    "summed": lambda p, x, y, d: 0.3 * (x + x.sum(0, keepdims=True)),
    # its derivative compares for equality with a value that XLA may compute twice, and otherwise
    "highest": lambda p, x, y, d: x - lax.stop_gradient(x).max(-1, keepdims=True),
    "logsumexp": lambda p, x, y, d: x - nn.logsumexp(x, axis=-1, keepdims=True),
    "product of all": lambda p, x, y, d: x * jnp.prod(1.0 + 0.1 * jnp.tanh(x), -1, keepdims=True),
    "softmax": lambda p, x, y, d: nn.softmax(x, axis=-1),
    "log softmax": lambda p, x, y, d: 0.5 * nn.log_softmax(x, axis=0),
    "layer norm": lambda p, x, y, d: _normalized(x, -1) * p["g"][None] + p["b"][None],
    "batch norm": lambda p, x, y, d: _normalized(x, 0),
    "rms norm": lambda p, x, y, d: (
        x * lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 0.1) * p["g"][None]
    ),
    "unit": lambda p, x, y, d: x / jnp.linalg.norm(x + 2.0, axis=-1, keepdims=True),
    "cumsum": lambda p, x, y, d: 0.4 * jnp.cumsum(x, -1),
    "cumprod": lambda p, x, y, d: jnp.cumprod(1.0 + 0.2 * jnp.sin(x), -1),
    "cummax": lambda p, x, y, d: lax.cummax(x, 0),
    "cumlogsumexp": lambda p, x, y, d: 0.5 * lax.cumlogsumexp(x, 1),
    "pool": lambda p, x, y, d: lax.reduce_window(x, -jnp.inf, lax.max, (2, 1), (1, 1), "SAME"),
    "mean pool": lambda p, x, y, d: (
        0.5 * lax.reduce_window(x, 0.0, lax.add, (1, 2), (1, 1), "SAME")
    ),
    # moved about
    "sort": lambda p, x, y, d: jnp.sort(x, -1),
    "sort pairs": lambda p, x, y, d: sum(lax.sort((x, y), num_keys=1)) * 0.5,
    "top k": lambda p, x, y, d: x + lax.top_k(x, 2)[0].sum(-1, keepdims=True) * 0.2,
    "gather": lambda p, x, y, d: 0.5 * (x[d["rows"]] + y),
    "take along": lambda p, x, y, d: jnp.take_along_axis(x, d["columns"], 1),
    "scatter add": lambda p, x, y, d: x.at[d["rows"]].add(0.3 * y),
    "scatter set": lambda p, x, y, d: x.at[d["apart"]].set(y[:2]),
    "scatter max": lambda p, x, y, d: x.at[d["rows"]].max(y),
    "scatter times": lambda p, x, y, d: x.at[d["apart"], 1:].multiply(
        y[:2, 1:] * 0.5, unique_indices=True
    ),
    "segments": lambda p, x, y, d: x + 0.3 * jax.ops.segment_sum(y, d["rows"], ROWS),
    "dynamic slice": lambda p, x, y, d: x + lax.dynamic_slice_in_dim(y, d["rows"][0], 1, 0) * 0.5,
    "dynamic update": lambda p, x, y, d: lax.dynamic_update_slice_in_dim(x, y[:1], d["rows"][1], 0),
    "rolled": lambda p, x, y, d: jnp.roll(x, 1, 0),
    "turned": lambda p, x, y, d: jnp.concatenate([x[:, 2:], y[:, :2][:, ::-1]], 1),
    "padded": lambda p, x, y, d: jnp.pad(x[1:], ((0, 1), (0, 0)), constant_values=0.5),
    "split": lambda p, x, y, d: jnp.concatenate(jnp.split(x, 2, 1)[::-1], 1),
    # dtypes of the user's own, and what autocast leaves alone
    "by hand": lambda p, x, y, d: x.astype(jnp.bfloat16).astype(jnp.float32) + 0.5 * y,
    "half by hand": lambda p, x, y, d: (x.astype(jnp.float16) @ p["w"].astype(jnp.float16)).astype(
        jnp.float32
    ),
    "reduced": lambda p, x, y, d: lax.reduce_precision(x, 8, 10),
    "complex": lambda p, x, y, d: jnp.real(_phase(x, y) * (1.0 - 0.5j)),
    "complex product": lambda p, x, y, d: jnp.abs(_phase(x, y) @ (p["w"] + 0.5j)) * 0.5,
    "fft": lambda p, x, y, d: jnp.fft.irfft(jnp.fft.rfft(x) * (0.5 - 0.5j), n=WIDTH),
    "cholesky": lambda p, x, y, d: 0.5 * jnp.linalg.cholesky(_spd(p, x)) @ y,
    "solve": lambda p, x, y, d: jnp.linalg.solve(_spd(p, x), y),
    "triangular": lambda p, x, y, d: lax.linalg.triangular_solve(
        jnp.tril(_spd(p, x)), y, left_side=True, lower=True
    ),
    "noise": lambda p, x, y, d: x * jax.random.uniform(d["key"], x.shape),
    "dropped": lambda p, x, y, d: jnp.where(jax.random.bernoulli(d["key"], 0.7, x.shape), x, 0.0),
    "stopped": lambda p, x, y, d: x + 0.5 * lax.stop_gradient(jnp.sin(y @ p["w"])),
    "barrier": lambda p, x, y, d: lax.optimization_barrier((x, y))[0],
    "named": lambda p, x, y, d: checkpoint_name(x @ p["w"], "saved"),
    "callback": lambda p, x, y, d: x + _on_host(lax.stop_gradient(y)),
    "resized": lambda p, x, y, d: jax.image.resize(x[:, :2], (ROWS, WIDTH), "linear"),
    "interpolated": lambda p, x, y, d: jnp.interp(x, jnp.arange(-3.0, 4.0), jnp.arange(7.0) / 3.0),
}


def _applied(wrap):
    """A wrapper of a function of (p, x) that leaves the rest to it."""
    return lambda g, p, x, y, d: wrap(g)(p, x)


def _scanned(g, p, x, y, d):
    def step(carry, sliced):
        w, scale = sliced
        carry = g({**p, "w": w}, carry * scale)
        return carry, carry.sum(0)

    xs = jnp.stack([p["w"], -0.5 * p["w"]]), jnp.array([1.0, 0.5])
    carry, rows = lax.scan(step, x, xs, reverse=True)
    return carry + 0.1 * jnp.pad(rows, ((0, ROWS - 2), (0, 0)))


def _looped(g, p, x, y, d):
    p, x = lax.stop_gradient((p, x))
    return y + lax.fori_loop(0, d["rows"].max() + 1, lambda i, c: g(p, c), x)


def _chosen(g, p, x, y, d):
    return lax.cond(d["mask"][0, 0], lambda p, x: g(p, x), lambda p, x: 0.5 * x, p, x)


def _switched(g, p, x, y, d):
    branches = [lambda p, x: x @ p["w"], g, lambda p, x: jnp.sin(x)]
    return lax.switch(d["rows"][0], branches, p, x)


def _custom_vjp(g, p, x, y, d):
    fn = jax.custom_vjp(g)

    def backward(saved, ct):
        *differentiated, d = saved
        slopes = jax.vjp(lambda p, x: g(p, x, d), *differentiated)[1](ct)
        return *jax.tree.map(lambda s: 0.5 * s, slopes), None

    fn.defvjp(lambda p, x, d: (g(p, x, d), (p, x, d)), backward)
    return fn(p, x, d)  # a rule under jit may not close over traced values


def _custom_jvp(g, p, x, y, d):
    fn = jax.custom_jvp(g)

    @fn.defjvp
    def rule(primals, directions):
        value, slope = jax.jvp(g, primals, directions)
        return value, slope * jnp.cos(value)

    return fn(p, x, d)


def _blocks(g, p, x, y, d):
    for layer in p["layers"]:
        x = x + 0.5 * g({**p, **layer}, x)
    return x


def _partly_saved(g):
    def policy(primitive, *avals, **params):
        # JAX cannot save complex numbers: reduce_precision takes none
        real = all(jnp.issubdtype(aval.dtype, jnp.floating) for aval in avals)
        return real and jax.checkpoint_policies.dots_saveable(primitive, *avals, **params)

    return jax.checkpoint(g, policy=policy)


WRAPPERS = {
    "jit": _applied(jax.jit),
    "jit twice": lambda g, p, x, y, d: (lambda f: f(p, x) - 0.5 * f(p, y))(jax.jit(g)),
    "remat": _applied(jax.checkpoint),
    "remat dots": _applied(_partly_saved),
    "scan": _scanned,
    "while": _looped,
    "cond": _chosen,
    "switch": _switched,
    "custom_vjp": _custom_vjp,
    "custom_jvp": _custom_jvp,
    "vmap": lambda g, p, x, y, d: jax.vmap(g, in_axes=(None, 0))(p, jnp.stack([x, y])).sum(0) * 0.5,
    "map": lambda g, p, x, y, d: lax.map(lambda x: g(p, x), jnp.stack([x, y]))[1],
    "grad": lambda g, p, x, y, d: 0.3 * jax.grad(lambda x: jnp.sum(jnp.sin(g(p, x))))(x) + 0.5 * x,
    "jvp": lambda g, p, x, y, d: 0.3 * sum(jax.jvp(lambda x: g(p, x), (x,), (y,))),
    "blocks": _blocks,
    "half_function": _applied(amp.half_function),
    "float_function": _applied(amp.float_function),
    "promote_function": _applied(amp.promote_function),
    "disable_casts": _applied(lambda g: amp.disable_casts()(g)),
}
