"""The seventeen pitfalls of casting a traced program operation by operation.

A test each, but for 6, 7, 11 and 14, which are the interpreter's: they are in test_custom_rules.py
and test_calls.py of tests/tracing, and what autocast makes of them in test_autocast.py and
test_remat.py beside this.

 1. a bias add promotes a half product back to float32
 2. literals out of the half range become infinite or zero
 3. jnp asks products for float32 results
 4. a cast to the dtype that a value already has is not in the trace
 5. scatter-add and others carry jaxprs of their own
 6. inlining a custom_jvp loses its derivative
 7. a custom_vjp's boundary keeps its dtypes, its rules are interpreted
 8. jax_custom_vjp3 hides calls
 9. what loops carry and branches return keeps its dtype
10. jitting every equation anew defeats the cache
11. shardings and donation of an inner jit survive
12. parameters of primitives differ between versions of JAX
13. bits, random numbers, linear algebra, fft and callbacks keep their dtypes, psum is float32
14. remat policies survive, and what they save is half
15. a cached cast of a reused weight would sum its gradients in half
16. source lines survive
17. a decorated function is a named region
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jinit import amp
from tests.amp.reference import bits, operand_dtypes

W = jax.random.normal(jax.random.key(0), (16, 16)) / 4
X = jax.random.normal(jax.random.key(1), (8, 16))


def equations(fn, *args):
    """Every equation of a program, inner ones included."""
    found = []

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            found.append(equation)
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                walk(getattr(inner, "jaxpr", inner))

    walk(jax.make_jaxpr(fn)(*args).jaxpr)
    return found


def results(fn, *args):
    """{primitive: result dtypes}."""
    found = {}
    for equation in equations(fn, *args):
        names = {str(getattr(v.aval, "dtype", None)) for v in equation.outvars}
        found.setdefault(equation.primitive.name, set()).update(names)
    return found


def test_01_a_bias_leaves_a_product_half():
    def dense(p, x):
        return jnp.sin(x @ p["w"] + p["b"].reshape(1, -1))

    found = results(amp.autocast(dense), {"w": W, "b": W[0]}, X)
    assert found["add"] == found["sin"] == {"bfloat16"}


@pytest.mark.parametrize("literal", [-1e30, 1e-8])
def test_02_a_literal_out_of_the_half_range_promotes(literal):
    cast = amp.autocast(lambda w, x: jnp.maximum(0 * (x @ w), literal), half_dtype="float16")
    expected = max(literal, 0)
    np.testing.assert_array_equal(cast(W, X), np.full((8, 16), expected, np.float32))
    masked = amp.autocast(lambda w, x: jnp.where(x > 9, x @ w, literal), half_dtype="float16")
    np.testing.assert_array_equal(masked(W, X), np.full((8, 16), literal, np.float32))


def test_03_products_have_half_results_forward_and_backward():
    def loss(w, x):
        return jnp.matmul(jnp.sin(x @ w), w, preferred_element_type=jnp.float32).sum()

    for fn in (jax.grad(amp.autocast(loss)), amp.autocast(jax.grad(loss))):
        assert results(fn, W, X)["dot_general"] == {"bfloat16"}


def test_04_a_cast_that_the_trace_does_not_show_needs_a_mark():
    """``astype(float32)`` of a float32 value is not traced; ``float_function`` is what says so."""
    silent = amp.autocast(lambda w, x: jnp.sin((x @ w).astype(jnp.float32)))
    marked = amp.autocast(lambda w, x: amp.float_function(jnp.sin)(x @ w))
    assert results(silent, W, X)["sin"] == {"bfloat16"}
    assert results(marked, W, X)["sin"] == {"float32"}


@pytest.mark.parametrize(
    ("fn", "name"),
    [
        (lambda w, x: (x @ w).at[jnp.arange(2)].add(w[:2]), "scatter-add"),
        (lambda w, x: (x @ w).at[jnp.arange(2)].mul(w[:2]), "scatter-mul"),
        (
            lambda w, x: jax.lax.reduce(x @ w, 0.0, lambda a, b: a + jnp.sin(b), (0,)),
            "reduce",
        ),
        (
            lambda w, x: jax.lax.reduce_window(
                x @ w, 1.0, lambda a, b: a * jnp.cos(b), (1, 2), (1, 2), "VALID"
            ),
            "reduce_window",
        ),
    ],
)
def test_05_equations_with_inner_jaxprs_keep_their_declared_dtypes(fn, name):
    cast = amp.autocast(fn)
    assert results(cast, W, X)[name] == {"float32"}
    np.testing.assert_allclose(cast(W, X), fn(W, X), atol=0.05, rtol=0.05)


def test_08_calls_that_jax_hides_are_warned_of_and_compute_as_they_are(hidden_product):
    with pytest.warns(UserWarning, match="autocast cannot see into"):
        value = amp.autocast(hidden_product)(W, X)
    with pytest.warns(UserWarning, match="autocast cannot see into"):
        slope = jax.grad(lambda w: amp.autocast(hidden_product)(w, X).sum())(W)
    np.testing.assert_allclose(value, hidden_product(W, X), atol=0.05)
    exact = jax.grad(lambda w: hidden_product(w, X).sum())(W)
    np.testing.assert_allclose(slope, exact, atol=0.2, rtol=0.05)


LOOPS = {
    "scan": lambda w, x: jax.lax.scan(lambda c, _: (c @ w, c), x, None, length=2),
    "while": lambda w, x: jax.lax.while_loop(
        lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1] @ w), (0, x)
    ),
    "cond": lambda w, x: jax.lax.cond(x[0, 0] > 0, lambda a: a @ w, lambda a: a, x),
}


@pytest.mark.parametrize("name", LOOPS)
def test_09_carries_and_outputs_keep_their_declared_dtypes(name):
    (loop,) = [
        e for e in equations(amp.autocast(LOOPS[name]), W, X) if e.primitive.name == name
    ]  # fmt: skip
    dtypes = {str(v.aval.dtype) for v in (*loop.invars, *loop.outvars)}
    assert dtypes <= {"float32", "int32", "bool"}
    assert results(amp.autocast(LOOPS[name]), W, X)["dot_general"] == {"bfloat16"}


def test_10_calls_of_one_function_stay_one_function():
    @jax.jit
    def layer(x, w):
        return jnp.sin(x @ w)

    cast = amp.autocast(lambda w, x: layer(layer(layer(layer(x, w), w), w), w))
    calls = [e.params["jaxpr"] for e in equations(cast, W, X) if e.params.get("name") == "layer"]
    assert len(calls) == 4
    # the first call takes float32, the others the half that it made
    assert len({id(call.jaxpr) for call in calls}) == 2


def test_12_every_construct_is_understood_in_this_version_of_jax():
    """A construct that a new version renames would be run as declared: explain would say so."""

    @jax.custom_vjp
    def rule(x):
        return jnp.sin(x)

    rule.defvjp(lambda x: (jnp.sin(x), x), lambda x, ct: (jnp.cos(x) * ct,))

    def fn(w, x):
        x, _ = jax.lax.scan(lambda c, _: (rule(c @ w), None), x, None, length=2)
        x = jax.lax.cond(x[0, 0] > 0, jax.nn.relu, jnp.sin, x)
        x = jax.lax.while_loop(lambda c: c.sum() < 0, lambda c: c + 1, x)
        return jax.jit(jax.checkpoint(jax.vmap(lambda a: a @ w)))(x).sum()

    for program in (fn, jax.grad(lambda w, x: jax.checkpoint(lambda a: a @ w)(x).sum())):
        whys = {row.why for row in amp.explain(program, W, X).operations}
        assert "not entered" not in whys


KEPT = {
    "bits": lambda w, x: jax.lax.bitcast_convert_type(x @ w, jnp.int32),
    "random": lambda w, x: jax.random.normal(jax.random.key(0), x.shape) + 0 * (x @ w).sum(),
    "cholesky": lambda w, x: jnp.linalg.cholesky(w @ w.T + 16 * jnp.eye(16)),
    "qr": lambda w, x: jnp.linalg.qr(w @ w)[1],
    "fft": lambda w, x: jnp.fft.irfft(jnp.fft.rfft(x @ w)),
    "callback": lambda w, x: jax.pure_callback(
        lambda a: np.asarray(a, np.float32), jax.ShapeDtypeStruct((8, 16), jnp.float32), x @ w
    ),
}


@pytest.mark.cases
@pytest.mark.parametrize("name", KEPT)
def test_13_what_reinterprets_draws_solves_or_calls_out_keeps_its_dtypes(name):
    fn = KEPT[name]
    cast = amp.autocast(fn)
    assert jax.eval_shape(cast, W, X) == jax.eval_shape(fn, W, X)
    plain, ours = fn(W, X), cast(W, X)
    if name == "random":
        assert bits(plain) == bits(ours)
    elif name != "bits":
        np.testing.assert_allclose(ours, plain, atol=0.1, rtol=0.1)


def test_13_sums_over_devices_are_float32():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))

    @jax.shard_map(mesh=mesh, in_specs=(P(), P("d")), out_specs=P())
    def mean(w, x):
        return jax.lax.psum((x @ w).sum(0), "d")

    found = results(amp.autocast(mean), W, X)
    (name,) = [name for name in found if name.startswith("psum")]
    assert found[name] == {"float32"}


def test_15_gradients_of_a_reused_weight_are_summed_in_float32():
    """Each use is cast by itself: 300 uses of a gradient of 1 and one of 1/4 sum to 300.25.

    In bfloat16, whose unit at 256 is 2, they would not.
    """

    def loss(w):
        ones = jnp.ones((1, 1))
        total = (0.25 * ones @ w).sum()
        for _ in range(300):
            total = total + (ones @ w).sum()
        return total

    gradient = jax.grad(amp.autocast(loss))(jnp.ones((1, 1)))
    assert float(gradient[0, 0]) == 300.25


def test_16_source_lines_survive():
    def fn(w, x):
        return jnp.sin(x @ w)

    line = fn.__code__.co_firstlineno + 1
    text = jax.jit(amp.autocast(fn)).lower(W, X).as_text(debug_info=True)
    located = re.findall(r'"[^"]*test_pitfalls\.py":(\d+)', text)
    assert str(line) in located
    with pytest.raises(FloatingPointError) as caught, jax.debug_nans(True):
        amp.autocast(lambda w, x: jnp.log(-jnp.abs(x @ w) - 1))(W, X)
    assert "nan" in str(caught.value)


def test_17_a_decorated_function_is_a_named_region():
    fn = amp.half_function(lambda x: jnp.exp(x))
    (call,) = jax.make_jaxpr(fn)(X).jaxpr.eqns
    assert call.params["name"] == "jinit.amp.half_function(<lambda>)"
    assert operand_dtypes(amp.autocast(fn), X)["exp"] == {"bfloat16": 1}
    assert operand_dtypes(jax.grad(lambda x: amp.autocast(fn)(x).sum()), X)["exp"] == {
        "bfloat16": 1
    }
