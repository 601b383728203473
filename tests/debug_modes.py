"""The main calls of the library in JAX's modes: ``python -m tests.debug_modes`` prints the matrix.

A call returns what it computed, which is the same in every mode. A cell that cannot hold has its
reason in ``LIMITS``, with a program without jinit that fails in the same mode.
"""

import contextlib
import functools
import io
import os
import traceback

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jinit
from jinit import amp, initializers
from jinit.reproducibility import get_rng_state, load_rng_state

WIDTH, BATCH = 4, 8
LEVELS = (("O0", "bfloat16"), ("O1", "bfloat16"), ("O1", "float16"), ("O2", "float16"),
          ("O3", "bfloat16"))  # fmt: skip
HALVES = {
    "O1 bfloat16",
    "O1 float16",
    "O2 float16",
    "O3 bfloat16",
    "autocast, grad",
    "value_and_grad",
}
"""The calls that round to half types, each program in its own places."""


def explicit_mesh():
    """Eight devices whose shardings are in the types, as ``jax.make_mesh`` has them by default."""
    return jax.set_mesh(jax.make_mesh((8,), ("d",)))


@contextlib.contextmanager
def checking_leaks():
    """Leaks are looked for where a function is traced, and not where its trace is kept."""
    jax.clear_caches()
    with jax.checking_leaks():
        yield


@contextlib.contextmanager
def quick_compiles():
    """What is compared are programs of a few operations, of which each runs once."""
    option = "jax_disable_most_optimizations"
    before = jax.config.values[option]
    jax.config.update(option, True)
    try:
        yield
    finally:
        jax.config.update(option, before)


MODES = {
    "checking_leaks": checking_leaks,
    "strict dtypes": functools.partial(jax.numpy_dtype_promotion, "strict"),
    "rank raises": functools.partial(jax.numpy_rank_promotion, "raise"),
    "debug_nans": functools.partial(jax.debug_nans, True),
    "key reuse": functools.partial(jax.debug_key_reuse, True),
    "disable_jit": jax.disable_jit,
    "x64": functools.partial(jax.enable_x64, True),
    "rbg": functools.partial(jax.default_prng_impl, "rbg"),
    "explicit mesh": explicit_mesh,
}
DRAWS_DIFFER = {"rbg"}
"""Modes in which the same seed draws other numbers."""


def keys(count):
    return jax.random.split(jax.random.key(0), count)


def params(dtype=jnp.float32):
    """Two layers of width 4, far from calibrated."""
    first, second = (
        2 * np.random.default_rng(seed).standard_normal((WIDTH, WIDTH)) for seed in (1, 2)
    )
    return {
        "a": {"w": jnp.asarray(first, dtype), "b": jnp.zeros(WIDTH, dtype)},
        "b": {"w": jnp.asarray(second, dtype)},
    }


def inputs(dtype=jnp.float32):
    """A batch, which is spread over the devices of a mesh where there is one."""
    batch = jnp.asarray(np.random.default_rng(3).standard_normal((BATCH, WIDTH)), dtype)
    mesh = jax.sharding.get_abstract_mesh()
    return batch if mesh.empty else jax.device_put(batch, jax.P("d"))


def model(params, x):
    hidden = jnp.tanh(x @ params["a"]["w"] + params["a"]["b"][None])
    return hidden @ params["b"]["w"]


def mean_square(params, x):
    return jnp.mean(model(params, x).astype(jnp.float32) ** 2)


def dummy_loss(out, key):
    return jnp.sum(out * jax.random.normal(key, out.shape, out.dtype))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(WIDTH)(nn.LayerNorm()(nn.relu(nn.Dense(WIDTH)(x))))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first, self.norm = nnx.Linear(WIDTH, WIDTH, rngs=rngs), nnx.LayerNorm(WIDTH, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.first(x))


KINDS = {
    "constant": initializers.constant(0.5),
    "normal": initializers.normal(std=0.5),
    "uniform": initializers.uniform(),
    "truncated_normal": initializers.truncated_normal(std=0.5),
    "kaiming_uniform": initializers.kaiming_uniform(),
    "variance_scaling": initializers.variance_scaling(2.0, "fan_avg", "truncated_normal"),
    "orthogonal": initializers.orthogonal(),
    "identity": initializers.identity(),
    "sparse": initializers.sparse(0.5),
}


def draw(kinds):
    return {kind: KINDS[kind](keys(1)[0], (WIDTH, WIDTH), jnp.float32) for kind in kinds}


def keras_linen():
    net = jinit.keras_defaults().wrap(Linen())
    return jax.jit(net.init_with_output)(keys(1)[0], inputs())


def keras_nnx():
    with jinit.keras_defaults():
        made = Nnx(nnx.Rngs(0))
    return nnx.state(made, nnx.Param), made(inputs())


def reinit():
    patterns = {"*": initializers.normal(std=0.1), "*/b": initializers.constant(0.5)}
    return jax.jit(lambda key, tree: initializers.reinit(key, tree, patterns))(keys(1)[0], params())


def describe():
    text = str(jinit.describe(Linen(), inputs()))
    assert "lecun" in text or "truncated_normal" in text
    return ()


QUICK = {"samples": 2, "batch_size": BATCH}


def empirical_init():
    return jinit.empirical_init(params(), model, inputs(), dummy_loss, key=keys(1)[0], **QUICK)


def calibrated(**options):
    return jinit.calibrate(
        params(), model, inputs(), dummy_loss, key=keys(1)[0], **{**QUICK, **options}
    )


def calibrate_fold():
    """Calibrates, and takes a step with the multipliers."""
    result = calibrated(optimizer="sgd")
    str(result.report)
    tx = optax.chain(result.transform(), optax.sgd(0.1))

    @jax.jit
    def step(tree, x):
        grads = jax.grad(mean_square)(tree, x)
        return optax.apply_updates(tree, tx.update(grads, tx.init(tree), tree)[0])

    return result.params, result.multipliers, step(result.params, inputs())


def calibrate_explicit():
    result = calibrated(mode="explicit", optimizer="sgd")
    return result.params, result.apply_fn(result.params, inputs())


def calibrate_zero_head():
    """A layer of zeros, whose gradients are measured as if it were random."""
    tree = params() | {"b": {"w": jnp.zeros((WIDTH, WIDTH), jnp.float32)}}
    result = jinit.calibrate(tree, model, inputs(), dummy_loss, key=keys(1)[0], **QUICK)
    return result.params, result.multipliers


def coord_check():
    def make_model(width):
        tree = {"w": jnp.ones((WIDTH, width)), "v": jnp.ones((width, 1)) / width}
        return tree, lambda params, x: jnp.tanh(x @ params["w"]) @ params["v"]

    check = jinit.coord_check(
        make_model, (2, 4), inputs(), lambda out: jnp.mean(out**2), optimizer=optax.sgd(0.01),
        steps=1, key=keys(1)[0],
    )  # fmt: skip
    return [fit.activation_exponent for fit in check.fits]


def train_step(level, half):
    apply_fn, tx = amp.initialize(
        model, optax.sgd(0.1), level, half_dtype=half, loss_scale="dynamic", verbosity=0
    )
    tree = apply_fn.policy.cast_to_param(params())
    state = tx.init(tree)

    @jax.jit
    def step(tree, state, x):
        def loss_fn(tree, x):
            return jnp.mean(apply_fn(tree, x).astype(jnp.float32) ** 2)

        loss, grads = amp.value_and_grad(loss_fn, state)(tree, x)
        updates, state = tx.update(grads, state, tree)
        return loss, applied(tree, updates), state

    return step(tree, state, inputs())[:2]


def applied(tree, updates):
    """optax.apply_updates, which adds float32 updates to half parameters by promotion."""
    return jax.tree.map(lambda p, u: (p.astype(u.dtype) + u).astype(p.dtype), tree, updates)


def autocast_grad():
    loss = amp.autocast(lambda tree, x: jnp.mean(jax.nn.relu(model(tree, x)) ** 2))
    return jax.jit(jax.value_and_grad(loss))(params(), inputs())


def explain():
    with contextlib.redirect_stdout(io.StringIO()):
        found = amp.explain(jax.grad(mean_square), params(), inputs())
    # Explicit meshes add operations of their own; what is explained are the products.
    return [operation.count for operation in found.operations if operation.op == "dot_general"]


def half_step(transformation, apply=applied):
    tree = params(jnp.bfloat16)

    @jax.jit
    def step(tree, state):
        grads = jax.tree.map(jnp.ones_like, tree)
        updates, state = transformation.update(grads, state, tree)
        return apply(tree, updates), state

    return step(tree, transformation.init(tree))[0]


def float32_updates():
    """What master weights return, added to bfloat16 parameters by optax."""
    tree = params(jnp.bfloat16)
    return optax.apply_updates(tree, jax.tree.map(lambda p: p.astype(jnp.float32), tree))


def adam():
    """Adam on its own."""
    tree, tx = params(), optax.adam(0.1)
    return tx.update(tree, tx.init(tree), tree)[0]


def scaled_grad():
    tx = amp.loss_scaling(optax.sgd(0.1), 1.0)
    tree = params(jnp.bfloat16)

    @jax.jit
    def step(tree, state, x):
        loss, grads = amp.value_and_grad(mean_square, state)(tree, x)
        return loss, applied(tree, tx.update(grads, state, tree)[0])

    return step(tree, tx.init(tree), inputs(jnp.bfloat16))


def rng_state():
    named = dict(zip("ab", keys(2), strict=True))
    loaded = load_rng_state(get_rng_state(named))
    return {name: jax.random.key_data(key) for name, key in loaded.items()}


CALLS = {
    "initializers": lambda: draw(["constant", "truncated_normal", "identity"]),
    "initializers, jit": lambda: jax.jit(lambda: draw(KINDS))(),
    "keras linen": keras_linen,
    "keras nnx": keras_nnx,
    "reinit": reinit,
    "describe": describe,
    "empirical_init": empirical_init,
    "calibrate fold": calibrate_fold,
    "calibrate explicit": calibrate_explicit,
    "calibrate zero head": calibrate_zero_head,
    "coord_check": coord_check,
    **{f"{level} {half}": functools.partial(train_step, level, half) for level, half in LEVELS},
    "autocast, grad": autocast_grad,
    "explain": explain,
    "master_weights": lambda: half_step(amp.master_weights(optax.sgd(0.1))),
    "stochastic_rounding": lambda: half_step(amp.stochastic_rounding(optax.sgd(0.1))),
    "value_and_grad": scaled_grad,
    "adam, loss scaling": lambda: half_step(amp.loss_scaling(optax.adam(0.1), 1.0)),
    "optax.apply_updates": lambda: half_step(
        amp.master_weights(optax.sgd(0.1)), optax.apply_updates
    ),
    "rng_state": rng_state,
}

LIMITS = {
    ("adam, loss scaling", "strict dtypes"): (
        "optax.adam itself promotes its integer count and float32 rates",
        adam,
    ),
    ("optax.apply_updates", "strict dtypes"): (
        "optax.apply_updates itself promotes bfloat16 parameters and float32 updates",
        float32_updates,
    ),
}
"""Reason and proof of each cell that cannot hold: a program without jinit that raises there."""


@functools.cache
def plain(call):
    return jax.device_get(CALLS[call]())


def check(call, mode):
    """Raises unless a call computes the same in a mode as without it."""
    with quick_compiles():
        expected = plain(call)
        with MODES[mode]():
            found = jax.device_get(CALLS[call]())
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        half = call in HALVES or other.dtype.itemsize == 2
        if mode in DRAWS_DIFFER:
            assert np.isfinite(one.astype(np.float64)).all()
        else:
            assert_close(one, other, 2e-2 if half else 1e-4)
        assert one.dtype == other.dtype or mode == "x64", (one.dtype, other.dtype)


def assert_close(found, expected, tolerance):
    assert found.shape == expected.shape
    np.testing.assert_allclose(
        found.astype(np.float64), expected.astype(np.float64), rtol=tolerance, atol=tolerance
    )


def cell(call, mode):
    """The mark of a cell: it holds, cannot hold, or fails."""
    if (call, mode) in LIMITS:
        return "limit"
    try:
        check(call, mode)
    except Exception:
        if os.environ.get("VERBOSE"):
            print(f"=== {call} in {mode}")
            traceback.print_exc(limit=-6)
        return "FAILS"
    return "ok"


def main():
    """Prints the matrix."""
    from jinit._tables import format_table

    rows = [[call, *(cell(call, mode) for mode in MODES)] for call in CALLS]
    print(format_table(["call", *MODES], rows, width=200))
    for (call, mode), (reason, _) in LIMITS.items():
        print(f"{call} in {mode}: {reason}")


if __name__ == "__main__":
    main()
