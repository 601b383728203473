"""Functions and blocks whose precision the user chooses."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jinit import amp
from tests.amp.reference import bits, operand_dtypes

HALVES = ["bfloat16", "float16"]
W = jax.random.normal(jax.random.key(0), (8, 8)) / 3
X = jax.random.normal(jax.random.key(1), (4, 8))


def body(x, w):
    """A product, an exp and a sum: one of the half list and two of the float32 list."""
    return jnp.exp(x @ w / 4).sum(-1)


def seen(fn, *args, half="bfloat16"):
    counts = operand_dtypes(amp.autocast(fn, half_dtype=half), *args)
    return {op: set(counts[op]) for op in ("dot_general", "exp", "reduce_sum") if op in counts}


def whole(dtype):
    return {key: {dtype} for key in ("dot_general", "exp", "reduce_sum")}


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(
    ("decorate", "expected"),
    [
        (amp.half_function, "half"),
        (amp.float_function, "float32"),
        (amp.promote_function, "float32"),
        (amp.disable_casts(), "float32"),
    ],
)
def test_a_function_runs_whole_in_its_dtype(half, decorate, expected):
    fn = decorate(body)
    dtype = half if expected == "half" else expected
    assert seen(lambda w, x: fn(x, w), W, X, half=half) == whole(dtype)
    np.testing.assert_allclose(amp.autocast(fn, half_dtype=half)(X, W), body(X, W), rtol=0.05)


def test_promotion_follows_the_arguments():
    fn = amp.promote_function(jnp.exp)
    assert seen(lambda w, x: fn(x @ w), W, X)["exp"] == {"bfloat16"}
    assert seen(lambda w, x: fn(x), W, X)["exp"] == {"float32"}
    both = amp.promote_function(lambda a, b: jnp.exp(a) * b)
    assert seen(lambda w, x: both(x @ w, x), W, X)["exp"] == {"float32"}


def test_without_autocast_they_change_nothing():
    for decorate in (amp.half_function, amp.float_function, amp.promote_function):
        assert bits(decorate(body)(X, W)) == bits(jax.jit(body)(X, W))
    with amp.disable_casts():
        assert bits(body(X, W)) == bits(body(X, W))


NESTED = {
    "half in float": (amp.float_function, amp.half_function, "bfloat16"),
    "float in half": (amp.half_function, amp.float_function, "float32"),
    "half in disabled": (amp.disable_casts(), amp.half_function, "float32"),
    "disabled in half": (amp.half_function, amp.disable_casts(), "float32"),
}


@pytest.mark.parametrize("name", NESTED)
def test_the_innermost_decides_but_off_is_off(name):
    outer, inner, expected = NESTED[name]
    fn = outer(lambda x, w: inner(body)(x, w))
    assert seen(fn, X, W) == whole(expected)


def test_what_follows_a_region_is_cast_by_its_list_again():
    def fn(w, x):
        y = amp.float_function(jnp.exp)(x @ w)
        with amp.disable_casts():
            y = y @ w
        return jnp.exp(amp.half_function(jnp.exp)(y @ w))

    counts = operand_dtypes(amp.autocast(fn), W, X)
    assert counts["dot_general"] == {"bfloat16": 2, "float32": 1}
    assert counts["exp"] == {"float32": 2, "bfloat16": 1}


def scanned(fn):
    return lambda x, w: jax.lax.scan(lambda c, _: (c + fn(x, w).sum(), None), 0.0, None, length=2)[
        0
    ]


TRANSFORMS = {
    "jit": lambda fn: jax.jit(fn),
    "remat": lambda fn: jax.checkpoint(fn),
    "vmap": lambda fn: lambda x, w: jax.vmap(fn, in_axes=(0, None))(x[:, None], w),
    "scan": scanned,
    "cond": lambda fn: lambda x, w: jax.lax.cond(x[0, 0] > 0, fn, fn, x, w),
    "grad": lambda fn: jax.grad(lambda x, w: fn(x, w).sum(), argnums=(0, 1)),
    "grad of vmap of jit": lambda fn: jax.grad(
        lambda x, w: jax.vmap(jax.jit(fn), in_axes=(0, None))(x[:, None], w).sum()
    ),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize(
    ("decorate", "expected"),
    [
        (amp.half_function, "bfloat16"),
        (amp.float_function, "float32"),
        (amp.disable_casts(), "float32"),
    ],
)
def test_regions_survive_transformations(transform, decorate, expected):
    """Inside autocast the products and exps tell; the forward and the backward ones."""
    found = seen(TRANSFORMS[transform](decorate(body)), X, W)
    assert found["dot_general"] == found["exp"] == {expected}


@pytest.mark.parametrize("decorate", [amp.half_function, amp.float_function, amp.disable_casts()])
def test_gradients_outside_agree_with_float32(decorate):
    loss = lambda w: amp.autocast(lambda w: decorate(body)(X, w).sum())(w)  # noqa: E731
    exact = jax.grad(lambda w: body(X, w).sum())(W)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(W), exact, rtol=0.1, atol=0.1)


def test_a_block_inside_a_cached_jit_and_around_one():
    inner = jax.jit(body)

    def fn(w, x):
        with amp.disable_casts():
            first = inner(x, w)
        return first + inner(x, w)

    counts = operand_dtypes(amp.autocast(fn), W, X)
    assert counts["dot_general"] == {"float32": 1, "bfloat16": 1}


def test_calls_of_one_function_are_shared_within_a_region_only():
    layer = jax.jit(body)
    half = amp.half_function(lambda x, w: layer(x, w) + layer(x, w))
    counts = operand_dtypes(amp.autocast(lambda x, w: half(x, w) + layer(x, w)), X, W)
    assert set(counts["exp"]) == {"bfloat16", "float32"}


def test_arguments_that_are_no_arrays_are_passed_on():
    class Mode:
        __hash__ = None

    def fn(x, mode, *, train):
        assert isinstance(mode, Mode | str)
        assert train is True
        return x

    for mode in ("sum", Mode()):
        assert amp.half_function(fn)(X, mode, train=True).shape == X.shape


def test_a_decorated_function_reads_like_the_function_and_is_traced_once(count_compilations):
    traces = []

    @amp.half_function
    def fn(x):
        """Says what."""
        traces.append(1)
        return x

    assert (fn.__name__, fn.__doc__) == ("fn", "Says what.")
    fn(X)
    with count_compilations() as compiled:
        fn(X)
    assert (len(traces), compiled) == (1, [])


def test_ops_that_have_no_half_version_keep_their_dtype_in_a_half_function():
    fn = amp.half_function(lambda x: jnp.linalg.cholesky(x @ x.T + 8 * jnp.eye(4)))
    counts = operand_dtypes(amp.autocast(fn), X)
    assert counts["cholesky"] == {"float32": 1}
    assert counts["dot_general"] == {"bfloat16": 1}


def test_the_op_table_can_be_extended():
    ops = amp.OPS.extend(half=["exp"], float32=["dot_general"], promote=["reduce_sum"])
    for cast in (
        amp.autocast(body, ops=ops),
        amp.autocast(body, _policy(ops)),
    ):
        counts = operand_dtypes(cast, X, W)
        assert counts["dot_general"] == {"float32": 1}
        assert counts["exp"] == counts["reduce_sum"] == {"bfloat16": 1}
    declared = amp.autocast(body, ops=amp.OPS.extend(declared=["dot_general"]))
    assert operand_dtypes(declared, X, W)["dot_general"] == {"float32": 1}
    assert "dot_general" in amp.OPS.half


def _policy(ops):
    model = amp.initialize(body, None, "O1", half_dtype="bfloat16", verbosity=0)
    return dataclasses.replace(model.policy, ops=ops)


def test_initialize_takes_the_op_table(capsys):
    ops = amp.OPS.extend(half=["exp"])
    model = amp.initialize(body, None, "O1", half_dtype="float16", ops=ops, verbose=True)
    assert operand_dtypes(model, X, W)["exp"] == {"float16": 1}
    assert "ops OPS extended" in " ".join(capsys.readouterr().out.split())


def test_the_op_table_refuses_what_it_cannot_mean():
    with pytest.raises(ValueError, match="can go to one list, but given twice: exp, log"):
        amp.OPS.extend(half=["exp", "log"], declared=["log", "exp"])
    with pytest.raises(TypeError, match="half must be an iterable of primitives' names, not 'exp'"):
        amp.OPS.extend(half="exp")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("softmax", "'softmax' is the function jax.nn.softmax and not a primitive."),
        ("matmul", "'matmul' is the function jax.numpy.matmul and not a primitive."),
        ("logsumexp", "'logsumexp' is the function jax.nn.logsumexp and not a primitive."),
        ("dot_generl", "'dot_generl' is not a primitive of JAX, did you mean 'dot_general'?."),
    ],
)
def test_a_name_that_moves_nothing_is_warned_of(name, text):
    with pytest.warns(UserWarning, match=f"^{re.escape(text)} It moves nothing, unless") as caught:
        ops = amp.OPS.extend(float32=[name])
    assert caught[0].filename == __file__
    assert name in ops.float32


def test_names_of_primitives_and_of_ones_own_are_not_warned_of():
    amp.OPS.extend(half=["tanh", "my_kernel", "add", "ragged_dot"], promote=["psum_invariant"])


def test_the_op_table_prints_every_list():
    lines = str(amp.OPS).splitlines()
    for name in ("half", "float32", "declared", "separate"):
        assert any(line.split()[:1] == [name] for line in lines)


def test_a_partial_can_be_decorated():
    fn = amp.half_function(functools.partial(body, w=W))
    assert seen(lambda x: fn(x), X) == whole("bfloat16")
