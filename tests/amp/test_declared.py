"""Calls of what was compiled, or lives elsewhere, for given dtypes: they get those they declare."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax
from jax.custom_derivatives import linear_call
from jax.experimental import io_callback
from jax.experimental import pallas as pl
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive, jaxprs_in_params

from jinit import amp
from jinit.tracing import declares_dtypes, structure_of, trace
from tests.fuzz.programs import arguments_of, program_of

# jax 0.12 keeps the body of a custom_root to itself, of which autocast warns
pytestmark = pytest.mark.filterwarnings("ignore:autocast cannot see into call_hi_primitive")

HALVES = "bfloat16", "float16"
SHAPE = jax.ShapeDtypeStruct((4, 4), jnp.float32)
W = jax.random.normal(jax.random.key(0), (4, 4)) / 2
X = jax.random.normal(jax.random.key(1), (4, 4))


def in_float32(x):
    """What a library compiled for float32 would do with another dtype: refuse it."""
    assert x.dtype == np.float32, x.dtype
    return np.sin(x)


def exported(x):
    return export.export(jax.jit(jnp.sin))(SHAPE).call(x)


def pure(x):
    return jax.pure_callback(in_float32, SHAPE, x, vmap_method="sequential")


def ordered(x):
    return io_callback(in_float32, SHAPE, x, ordered=True)


def partitioned(x):
    fn = custom_partitioning(jnp.sin)
    fn.def_partition(
        partition=lambda mesh, args, out: (mesh, jnp.sin, out.sharding, [args[0].sharding]),
        infer_sharding_from_operands=lambda mesh, args, out: args[0].sharding,
        sharding_rule="i j -> i j",
    )
    return fn(x)


def linear_solve(x):
    matrix = 4 * jnp.eye(4) + 0.1 * W
    return lax.custom_linear_solve(
        lambda v: matrix @ v, x, lambda _, b: jnp.linalg.inv(matrix) @ b,
        transpose_solve=lambda _, b: jnp.linalg.inv(matrix).T @ b,
    )  # fmt: skip


def root(x):
    def solve(fn, y):
        return lax.fori_loop(0, 30, lambda _, y: y - 0.3 * fn(y), y)

    def tangent_solve(fn, y):
        return y / fn(jnp.ones_like(y))

    return lax.custom_root(lambda y: y**3 + y - x, jnp.zeros_like(x), solve, tangent_solve)


def linear(x):
    return linear_call(lambda r, v: v @ r, lambda r, ct: ct @ r.T, W, x)


def composed(x):
    return lax.composite(lambda x: jnp.sin(x), "my.sine")(x)


CALLS = [exported, pure, ordered, partitioned, linear_solve, root, linear, composed]
DIFFERENTIABLE = [linear_solve, root, linear]


def after_a_product(call):
    return lambda w, x: 2.0 * call(x @ w)


def equations(fn, *args):
    """Lists the equations of a function, those in inner jaxprs included."""
    found = []

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            found.append(equation)
            for inner in jaxprs_in_params(equation.params):
                walk(getattr(inner, "jaxpr", inner))

    walk(trace(fn, *args).jaxpr)
    return found


def operand_dtypes(name, fn, *args):
    return [
        [str(atom.aval.dtype) for atom in equation.invars]
        for equation in equations(fn, *args)
        if equation.primitive.name == name
    ]


@pytest.mark.cases
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_what_is_called_gets_the_dtypes_that_it_declares(call, half):
    plain = after_a_product(call)
    cast = amp.autocast(plain, half_dtype=half)
    expected = jax.jit(plain)(W, X)
    for run in (cast, jax.jit(cast)):
        result = run(W, X)
        assert result.dtype == jnp.float32
        chex.assert_trees_all_close(result, expected, atol=0.1)
    assert half in str(jax.make_jaxpr(cast)(W, X)) or "bf16" in str(jax.make_jaxpr(cast)(W, X))


@pytest.mark.cases
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("call", DIFFERENTIABLE, ids=lambda call: call.__name__)
def test_its_gradient_is_that_of_float32(call, half):
    def slope(fn):
        return jax.grad(lambda w, x: jnp.sum(jnp.sin(fn(w, x))))(W, X)

    plain = after_a_product(call)
    result = slope(amp.autocast(plain, half_dtype=half))
    assert result.dtype == jnp.float32
    chex.assert_trees_all_close(result, slope(plain), atol=0.15)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("results", [SHAPE, (), (SHAPE, SHAPE)], ids=["one", "none", "two"])
def test_a_foreign_call_gets_float32(half, results):
    foreign = jax.ffi.ffi_call("library.function", results, has_side_effect=True)

    def fn(w, x):
        product = x @ w
        foreign(product, x)
        return product

    cast = amp.autocast(fn, half_dtype=half)
    assert operand_dtypes("ffi_call", cast, W, X) == [["float32", "float32"]]


SIGNATURES = {
    "an aval": SHAPE,
    "a shape of JAX's own": jax.typeof(X),
    "avals": (jax.typeof(X), SHAPE),
    "a function": in_float32,
    "an exported function": export.export(jax.jit(jnp.sin))(SHAPE),
}


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("carried", SIGNATURES.values(), ids=SIGNATURES.keys())
def test_a_primitive_of_any_name_that_carries_a_signature_gets_float32(half, carried):
    library = Primitive("library_call")
    library.def_abstract_eval(lambda x, **_: x)

    def fn(w, x):
        return library.bind(x @ w, anything=carried)

    cast = amp.autocast(fn, half_dtype=half)
    assert operand_dtypes("library_call", cast, W, X) == [["float32"]]


def test_a_primitive_that_carries_no_signature_takes_what_comes():
    library = Primitive("library_call")
    library.def_abstract_eval(lambda x, **_: x)
    numbers = {"axes": (0, 1), "dtype": jnp.dtype("float32"), "kind": jnp.float32, "empty": ()}
    cast = amp.autocast(lambda w, x: library.bind(x @ w, **numbers).astype(jnp.float32))
    assert operand_dtypes("library_call", cast, W, X) == [["bfloat16"]]


def test_ordinary_primitives_declare_nothing():
    found = set()
    for seed in range(100, 120):
        program, args = program_of(seed), arguments_of(seed)
        plain = [e for e in equations(program, *args) if structure_of(e).kind == "plain"]
        found |= {e.primitive.name for e in plain if declares_dtypes(e)}
    assert found <= {"pure_callback"}


@pytest.mark.parametrize("half", HALVES)
def test_what_is_printed_is_left_as_it_comes(half):
    def fn(w, x):
        jax.debug.print("{} {}", x @ w, x)
        return x

    [dtypes] = [
        dtypes
        for name in ("debug_print", "debug_callback")
        for dtypes in operand_dtypes(name, amp.autocast(fn, half_dtype=half), W, X)
    ]
    assert dtypes == [half, "float32"]


def twice(ref, out):
    out[...] = ref[...] * 2.0


def on_another_platform(x):
    kernel = pl.pallas_call(twice, out_shape=SHAPE)
    return lax.platform_dependent(x, cpu=jnp.sin, cuda=kernel, tpu=kernel)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(
    "transform", [lambda f: f, jax.jit, jax.vmap], ids=["eager", "jit", "vmap"]
)
def test_a_kernel_of_another_platform_is_not_compiled(transform, half):
    plain = after_a_product(on_another_platform)
    args = (W, X) if transform is not jax.vmap else (W[None], X[None])
    result = transform(amp.autocast(plain, half_dtype=half))(*args)
    chex.assert_trees_all_close(result, transform(plain)(*args), atol=0.1)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("outside", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_the_gradient_of_a_choice_of_platform(outside, half):
    @jax.custom_vjp
    def chosen(x):
        return on_another_platform(x)

    chosen.defvjp(lambda x: (on_another_platform(x), x), lambda x, ct: (ct * jnp.cos(x),))

    def slope(fn):
        return outside(jax.grad(lambda w, x: jnp.sum(fn(w, x))))(W, X)

    plain = after_a_product(chosen)
    chex.assert_trees_all_close(
        slope(amp.autocast(plain, half_dtype=half)), slope(plain), atol=0.15
    )
