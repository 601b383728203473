"""Functions with custom derivatives: the user's rules are kept, and the rule sees them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tracing.interpreting import (
    W,
    X,
    halve_products,
    interpreted,
    product_dtypes,
    recording,
    same,
    squared,
)


def with_rules(fn, forward, backward, **options):
    """Each rule below is wrong on purpose, so that only the user's own gives its gradient."""
    fn = jax.custom_vjp(fn, nondiff_argnums=options.pop("nondiff_argnums", ()))
    fn.defvjp(forward, backward, **options)
    return fn


product = with_rules(
    lambda x, w: x @ w,
    lambda x, w: (x @ w, (x, w)),
    lambda saved, ct: (3 * ct @ saved[1].T, 5 * saved[0].T @ ct),
)


def fresh_residuals(x, w):
    """Residuals that are products themselves, and neither operands nor results."""
    f = with_rules(
        lambda x, w: jnp.sin(x @ w),
        lambda x, w: (jnp.sin(x @ w), (jnp.cos(x @ w), x, w @ w)),
        lambda saved, ct: (ct * saved[0] @ saved[2].T, saved[1].T @ (ct * saved[0])),
    )
    return f(x, w)


def nondifferentiable_argument(x, w):
    f = with_rules(
        lambda activate, x, w: activate(x @ w),
        lambda activate, x, w: (activate(x @ w), (x, w)),
        lambda activate, saved, ct: (activate(ct @ saved[1].T), saved[0].T @ ct),
        nondiff_argnums=(0,),
    )
    return f(jnp.tanh, x, w)


def integer_operand(x, w):
    f = with_rules(
        lambda x, rows, w: x[rows] @ w,
        lambda x, rows, w: (x[rows] @ w, (x, rows, w)),
        lambda saved, ct: (
            jnp.zeros_like(saved[0]).at[saved[1]].add(7 * ct @ saved[2].T),
            np.zeros(saved[1].shape, jax.dtypes.float0),
            saved[0][saved[1]].T @ ct,
        ),
    )
    return f(x, jnp.array([0, 2]), w)


def no_cotangent(x, w):
    f = with_rules(lambda x, w: x @ w, lambda x, w: (x @ w, w), lambda w, ct: (2 * ct @ w.T, None))
    return f(x, w)


def closed_over(x, w):
    """Arrays that function, forward and backward rule close over."""
    f = with_rules(
        lambda x: x @ jnp.flip(W), lambda x: (x @ jnp.flip(W), None),
        lambda _, ct: (ct @ jnp.flip(W).T * 2,),
    )  # fmt: skip
    return f(x) @ w


def trees(x, w):
    f = with_rules(
        lambda p, x: {"y": x @ p["w"], "z": (x,)},
        lambda p, x: ({"y": x @ p["w"], "z": (x,)}, {"p": p, "x": x}),
        lambda saved, ct: (
            {"w": saved["x"].T @ ct["y"]},
            2 * ct["y"] @ saved["p"]["w"].T + ct["z"][0],
        ),
    )
    return f({"w": w}, x)


def inside_a_scan(x, w):
    return jax.lax.scan(lambda c, v: (jnp.tanh(product(c, v)), c.sum()), x, jnp.stack([w, -w]))


def inside_jit_and_remat(x, w):
    return jax.jit(jax.checkpoint(lambda x: jnp.sin(product(x, w))))(x)


def inside_cond(x, w):
    return jax.lax.cond(x.sum() > 0, lambda x: product(x, w), lambda x: product(-x, w), x)


def batched(x, w):
    return jax.vmap(lambda row: product(row[None], w))(x)


def gradient_inside(x, w):
    return jax.grad(lambda x: squared(product)(x, w))(x)


def nested(x, w):
    f = with_rules(
        lambda x: product(x, W) + x, lambda x: (product(x, W) + x, x),
        lambda x, ct: (product(ct, W.T) * jnp.cos(x),),
    )  # fmt: skip
    return f(x) @ w


def unused_result(x, w):
    f = with_rules(
        lambda x, w: (x @ w, x.sum()), lambda x, w: ((x @ w, x.sum()), (x, w)),
        lambda saved, ct: (ct[0] @ saved[1].T + ct[1], 4 * saved[0].T @ ct[0]),
    )  # fmt: skip
    return f(x, w)[0]


FUNCTIONS = [
    product, fresh_residuals, nondifferentiable_argument, integer_operand, no_cotangent,
    closed_over, trees, inside_a_scan, inside_jit_and_remat, inside_cond, batched,
    gradient_inside, nested, unused_result,
]  # fmt: skip
NAMES = ["product", *(f.__name__ for f in FUNCTIONS[1:])]
each_function = pytest.mark.parametrize("fn", FUNCTIONS, ids=NAMES)


@pytest.mark.cases
@each_function
def test_values_and_shapes_are_the_same(fn):
    run = interpreted(fn)
    same(run(X, W), fn(X, W))
    same(jax.jit(run)(X, W), fn(X, W))
    assert jax.eval_shape(run, X, W) == jax.eval_shape(fn, X, W)
    batch = jnp.stack([X, -X])
    over = functools.partial(jax.vmap, in_axes=(0, None))
    same(over(run)(batch, W), over(fn)(batch, W))


@pytest.mark.cases
@each_function
def test_gradients_are_the_user_s(fn):
    def gradient(f):
        return jax.grad(squared(f), argnums=(0, 1))

    wanted = gradient(fn)(X, W)
    same(gradient(interpreted(fn))(X, W), wanted)
    same(jax.jit(gradient(interpreted(fn)))(X, W), wanted)
    same(interpreted(gradient(fn))(X, W), wanted)
    batch = jnp.stack([X, -X])
    over = functools.partial(jax.vmap, in_axes=(0, None))
    same(over(gradient(interpreted(fn)))(batch, W), over(gradient(fn))(batch, W))
    same(gradient(over(interpreted(fn)))(batch, W), gradient(over(fn))(batch, W))


@pytest.mark.cases
@each_function
def test_second_derivatives_go_through_the_user_s_rules(fn):
    def curvature(f):
        slope = jax.grad(squared(f))
        return jax.grad(lambda x, w: squared(slope)(x, w), argnums=(0, 1))

    same(curvature(interpreted(fn))(X, W), curvature(fn)(X, W), rtol=1e-4, atol=1e-5)


def test_forward_mode_is_refused_as_jax_refuses_it():
    with pytest.raises(TypeError, match=r"can't apply forward-mode.*custom_vjp"):
        jax.jvp(interpreted(product), (X, W), (X, W))


def test_differentiating_what_is_closed_over_is_refused_as_jax_refuses_it():
    def loss(w):
        f = with_rules(lambda x: x @ w, lambda x: (x @ w, None), lambda _, ct: (ct @ w.T,))
        return f(X).sum()

    for run in (jax.grad(jax.jit(loss)), jax.grad(interpreted(loss))):
        with pytest.raises(Exception, match="with respect to a closed-over value"):
            run(W)


@pytest.mark.parametrize("used", [(0,), (1,), (0, 1)])
def test_symbolic_zeros_reach_the_rules(used):
    seen = []

    def forward(x, w):
        seen.append(("forward", x.perturbed, w.perturbed))
        return (x.value @ w.value, x.value + 1), (x.value, w.value)

    def backward(saved, cts):
        zeros = [isinstance(ct, jax.custom_derivatives.SymbolicZero) for ct in cts]
        seen.append(("backward", *zeros))
        first = 0.0 * saved[0] if zeros[0] else 2 * cts[0] @ saved[1].T
        return first, None

    f = with_rules(lambda x, w: (x @ w, x + 1), forward, backward, symbolic_zeros=True)

    def loss(run):
        return lambda x: sum(jnp.sum(run(x, W)[i] ** 2) for i in used)

    wanted = jax.grad(loss(f))(X)
    expected, seen[:] = list(seen), []
    same(jax.grad(loss(interpreted(f)))(X), wanted)
    assert ("forward", True, False) in seen
    assert set(seen) == set(expected)


def test_keys_are_operands_without_a_cotangent(make_key):
    def noisy(x, key):
        return x + jax.random.normal(key, x.shape)

    f = with_rules(
        noisy, lambda x, key: (noisy(x, key), key),
        lambda key, ct: (ct * jax.random.normal(key, ct.shape), None),
    )  # fmt: skip
    key = make_key(3)
    for run in (f, interpreted(f)):
        slope = jax.grad(lambda x, run=run: jnp.sum(run(x, key) ** 2))(X)
        noise = jax.random.normal(key, X.shape)
        same(slope, 2 * (X + noise) * noise)


def test_the_rule_sees_function_forward_and_backward_rule():
    f = with_rules(
        lambda x: jnp.sin(x), lambda x: (jnp.sin(x), jnp.cosh(x)),
        lambda saved, ct: (ct * jnp.arctan(saved),),
    )  # fmt: skip
    names = []
    interpreted(f, recording(names))(X)
    assert names == ["sin"]
    names.clear()
    jax.grad(lambda x: interpreted(f, recording(names))(x).sum())(X)
    assert [n for n in names if n in ("sin", "cosh", "atan")] == ["sin", "cosh", "atan"]


def test_what_is_not_chosen_is_one_equation():
    names = []
    interpreted(product, recording(names), enter=())(X, W)
    assert names == ["custom_vjp_call"]


@pytest.mark.cases
@each_function
def test_products_are_half_forward_and_backward_and_the_borders_are_kept(fn):
    def whole(*args):  # ends in an operation that has its declared dtype
        return jax.tree.map(jnp.tanh, fn(*args))

    run = interpreted(whole, halve_products)
    gradient, exact = (jax.grad(squared(f), argnums=(0, 1)) for f in (run, whole))
    assert jax.eval_shape(run, X, W) == jax.eval_shape(whole, X, W)
    assert jax.eval_shape(gradient, X, W) == jax.eval_shape(exact, X, W)
    assert set(product_dtypes(run, X, W)) == {"bfloat16"}
    found = product_dtypes(gradient, X, W)
    assert set(found) == {"bfloat16"}
    assert len(found) >= len(product_dtypes(exact, X, W))
    for low, wanted in zip(gradient(X, W), exact(X, W), strict=True):
        size = np.abs(wanted).max() + 1e-6
        np.testing.assert_allclose(low / size, wanted / size, atol=0.05)


def test_residuals_are_saved_in_the_dtype_that_the_rule_gave_them():
    """The first operand of the second product is half, and is saved as it is."""

    def fn(x, w):
        return product(x @ w, w)

    _, pullback = jax.vjp(interpreted(fn, halve_products), X, W)
    saved = {leaf.dtype for leaf in jax.tree.leaves(pullback) if leaf.shape == X.shape}
    assert saved == {jnp.dtype(jnp.bfloat16)}
    assert pullback(X @ W)[0].dtype == X.dtype


def test_a_remat_aware_rule_is_kept():
    f = with_rules(
        lambda x: jnp.sin(x @ W), lambda x: (jnp.sin(x @ W), x),
        lambda x, ct: (3 * ct * jnp.cos(x @ W) @ W.T,), optimize_remat=True,
    )  # fmt: skip
    for transform in (lambda f: f, jax.checkpoint):
        exact = jax.grad(squared(transform(f)))(X)
        same(jax.grad(squared(interpreted(transform(f))))(X), exact)
        same(interpreted(jax.grad(squared(transform(f))))(X), exact)


@pytest.mark.skipif(not hasattr(jax.custom_vjp, "defvjp_with_logs"), reason="jax < 0.12")
def test_what_a_backward_rule_logs_is_logged():
    f = jax.custom_vjp(lambda x: x @ W)
    f.defvjp_with_logs(lambda x: (x @ W, None), lambda _, ct: ((ct @ W.T,), {"seen": ct @ W}))
    for run in (f, interpreted(f), interpreted(f, halve_products)):
        _, pullback = jax.vjp(run, X)
        (slope,), logs = pullback.with_logs(jnp.ones_like(X))
        same((slope, logs["seen"]), (jnp.ones_like(X) @ W.T, jnp.ones_like(X) @ W), 0.02, 0.02)


@jax.custom_jvp
def safe_root(x):
    return jnp.sqrt(x)


safe_root.defjvp(lambda p, t: (jnp.sqrt(p[0]), t[0] / (1 + p[0])))


def test_a_custom_jvp_keeps_its_rule_in_both_modes_and_orders():
    def fn(x, w):
        return safe_root(jnp.abs(x @ w))

    run = interpreted(fn)
    same(jax.jvp(run, (X, W), (W[:1] + X, W)), jax.jvp(fn, (X, W), (W[:1] + X, W)))
    for order in (jax.grad, lambda f: jax.grad(squared(jax.grad(f)))):
        same(order(squared(run))(X, W), order(squared(fn))(X, W))


def test_a_custom_jvp_takes_and_gives_integers():
    @jax.custom_jvp
    def f(x, n):
        return x * n, n + 1

    def rule(primals, tangents):
        x, n = primals
        return f(x, n), (3.0 * tangents[0] * n, np.zeros(n.shape, jax.dtypes.float0))

    f.defjvp(rule)
    n = jnp.arange(8)[:, None]
    run = interpreted(lambda x: f(x, n))
    same(run(X), f(X, n))
    same(jax.grad(lambda x: run(x)[0].sum())(X), jnp.broadcast_to(3.0 * n, X.shape))


def test_a_custom_jvp_with_symbolic_zeros():
    f = jax.custom_jvp(lambda x, y: x * y)

    def rule(primals, tangents):
        zero = isinstance(tangents[1], jax.custom_derivatives.SymbolicZero)
        assert not isinstance(tangents[0], jax.custom_derivatives.SymbolicZero)
        x, y = primals
        return x * y, 5 * tangents[0] * y + (0 if zero else 7 * tangents[1] * x)

    f.defjvp(rule, symbolic_zeros=True)
    for argnums in (0, (0, 1)):
        gradients = [jax.grad(squared(g), argnums=argnums)(X, X + 1) for g in (f, interpreted(f))]
        same(*gradients)
