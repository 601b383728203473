"""Which products gain from half, and which are rounded for nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jinit.amp import autocast
from tests.amp.reference import operand_dtypes

POSITIONS = jnp.arange(4096, dtype=jnp.float32) + 0.5
FREQUENCIES = 1 / 10000 ** (jnp.arange(4) / 4)


def depthwise(x, w):
    """A depthwise convolution of kernel size 1: one product for an entry."""
    return jax.lax.conv_general_dilated(
        x[None, :, None] * jnp.ones((1, 1, 4)), w[None, None], (1,), "SAME",
        dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=4,
    )  # fmt: skip


OUTER = {
    "einsum": lambda p, f: jnp.einsum("i,j->ij", p, f),
    "batched": lambda p, f: jnp.einsum("bi,bj->bij", p[None], f[None]),
    "elementwise": lambda p, f: jnp.einsum("i,i->i", p, p),
    "kron": lambda p, f: jnp.kron(p[:, None], f[None]),
    "tensordot": lambda p, f: jnp.tensordot(p, f, 0),
    "one axis": lambda p, f: p[:, None] @ f[None],
    "dot_general": lambda p, f: jax.lax.dot_general(p, f, (((), ()), ((), ()))),
    "depthwise": depthwise,
}


@pytest.mark.cases
@pytest.mark.parametrize("half", ["bfloat16", "float16"])
@pytest.mark.parametrize("fn", OUTER.values(), ids=OUTER)
def test_a_product_that_sums_nothing_keeps_its_digits(fn, half):
    for values in (POSITIONS, 70000 + POSITIONS):  # beyond float16
        exact = fn(values, FREQUENCIES)
        np.testing.assert_allclose(autocast(fn, half_dtype=half)(values, FREQUENCIES), exact, 1e-6)


def test_an_outer_product_of_half_values_is_half():
    fn = autocast(lambda w, x: jnp.einsum("i,j->ij", (w @ x)[0], (w @ x)[1]))
    counts = operand_dtypes(fn, jnp.eye(4), jnp.eye(4))
    assert counts["dot_general"] == {"bfloat16": 3}


def test_a_lookup_by_a_one_hot_product_is_the_row():
    table = 1 + jax.random.normal(jax.random.key(0), (50, 8))
    tokens = jnp.array([3, 49, 0])
    fn = autocast(lambda params, i: jax.nn.one_hot(i, 50) @ params["table"])
    np.testing.assert_array_equal(fn({"table": table}, tokens), table[tokens])


def test_sums_by_a_triangular_product_are_those_of_a_cumulative_sum():
    def sums(params, x):
        return jnp.tril(jnp.ones((600, 600))) @ x

    x = jnp.ones((600, 1))
    np.testing.assert_array_equal(autocast(sums)({}, x)[:, 0], jnp.arange(1.0, 601.0))
    counted = autocast(lambda params, x: jnp.tri(600) @ (x > 0).astype(jnp.float32))
    np.testing.assert_array_equal(counted({}, x)[:, 0], jnp.arange(1.0, 601.0))


def test_a_mask_does_not_make_a_half_product_float32():
    """As in the dispatch of a mixture of experts: what is half is selected in half."""

    def dispatch(params, x, expert):
        return jax.nn.one_hot(expert, 4).T @ (x @ params["w"])

    args = {"w": jnp.eye(8)}, jnp.ones((6, 8)), jnp.arange(6) % 4
    assert operand_dtypes(autocast(dispatch), *args)["dot_general"] == {"bfloat16": 2}


def resize(params, x):
    return jax.image.resize(x @ params["w"], (1, 9, 9, 4), "cubic")


def interpolate(params, x):
    return jnp.interp(x, jnp.arange(16) * 1.0, jnp.sin(jnp.arange(16.0)))


def coordinates(params, x):
    image = x[0, :, :, 0]
    return jax.scipy.ndimage.map_coordinates(image, [image % 4, image % 3], 1)


@pytest.mark.cases
@pytest.mark.parametrize("fn", [resize, interpolate, coordinates])
def test_interpolation_is_float32(fn):
    """As in apex; the product in front of it is half."""
    x = 10 * jax.random.uniform(jax.random.key(1), (1, 5, 5, 4))
    params = {"w": jnp.eye(4)}
    exact = fn(params, x.astype(jnp.bfloat16).astype(jnp.float32) if fn is resize else x)
    np.testing.assert_allclose(autocast(fn)(params, x), exact, rtol=1e-5, atol=1e-5)


def test_a_product_with_a_table_of_constants_keeps_the_digits_of_float32_data():
    """A cosine transform by a matrix: nothing in it is learned."""

    def transform(params, x):
        angles = jnp.arange(64)[:, None] * (jnp.arange(64)[None] + 0.5)
        return jnp.cos(jnp.pi / 64 * angles) @ x

    x = 1000 + jax.random.normal(jax.random.key(2), (64, 1))
    exact = transform({}, x)
    np.testing.assert_allclose(autocast(transform)({}, x), exact, atol=1e-4 * np.abs(exact).max())


@pytest.mark.parametrize(
    "fn", [lambda x: jnp.einsum("...d,...d->...", x, x), lambda x: jax.vmap(jnp.vdot)(x, x)]
)
def test_an_inner_product_is_a_sum_and_does_not_overflow(fn):
    x = 300 + jnp.arange(64.0).reshape(4, 16)
    np.testing.assert_allclose(autocast(fn, half_dtype="float16")(x), fn(x), rtol=1e-5)


def products(precision):
    def fn(w, x):
        y = jnp.matmul(x, w, precision=precision)
        kernel = w[None]
        return y, jax.lax.conv_general_dilated(
            x[None], kernel, (1,), "SAME", precision=precision,
            dimension_numbers=("NWC", "WIO", "NWC"),
        )  # fmt: skip

    return fn


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        (None, "bfloat16"),
        ("default", "bfloat16"),
        ("high", "float32"),
        ("highest", "float32"),
        (("default", "highest"), "float32"),
    ],
)
def test_who_asks_for_a_precision_gets_it(precision, dtype):
    counts = operand_dtypes(autocast(products(precision)), jnp.eye(4), jnp.ones((4, 4)))
    assert counts["dot_general"] == counts["conv_general_dilated"] == {dtype: 1}


@pytest.mark.parametrize("name", ["highest", "tensorfloat32", "F32_F32_F32", "float32"])
def test_the_precision_of_the_process_is_nobodys_wish(name):
    """``startup(allow_tf32=False)`` sets one for every product; it says nothing of one of them."""
    with jax.default_matmul_precision(name):
        fn = autocast(lambda w, x: jnp.matmul(x, w))
        assert operand_dtypes(fn, jnp.eye(4), jnp.eye(4))["dot_general"] == {"bfloat16": 1}
        fn = autocast(lambda w, x: jnp.matmul(x, w, precision="high"))
        asked = "bfloat16" if name == "tensorfloat32" else "float32"  # high is tensorfloat32
        assert operand_dtypes(fn, jnp.eye(4), jnp.eye(4))["dot_general"] == {asked: 1}


@pytest.mark.parametrize("jit", [lambda f: f, jax.jit])
def test_parameters_out_of_range_do_what_they_are_there_for(jit):
    """An eps that float16 has not, a mask beyond its range: as known constants, and under jit."""

    def guarded(params, x):
        h = x @ params["w"]
        return h / (jnp.abs(h) + params["eps"])

    params = {"w": jnp.eye(4), "eps": jnp.float32(1e-9)}
    x = jnp.array([[0.0, 1.0, -2.0, 0.0]])
    out = jit(autocast(guarded, half_dtype="float16"))(params, x)
    np.testing.assert_allclose(out, guarded(params, x), rtol=1e-3)

    def masked(params, x):
        return jax.nn.softmax(x @ params["w"] + params["mask"])

    mask = jnp.where(jnp.array([[True], [False]]), jnp.array([[0.0, -1e9, -1e9, 0.0]]), -1e9)
    out = jit(autocast(masked, half_dtype="float16"))({"w": jnp.eye(4), "mask": mask}, x)
    expected = masked({"w": jnp.eye(4), "mask": mask}, jnp.concatenate([x, x]))
    np.testing.assert_allclose(out, expected, atol=2e-3)


def test_the_gradient_of_a_parameter_in_range_is_whole():
    fn = autocast(lambda p, x: jnp.sum((x @ p["w"] + p["b"][None]) ** 2), half_dtype="float16")
    params = {"w": jnp.eye(4), "b": jnp.array([0.0, 1.0, -1.0, 2.0])}
    x = jnp.ones((3, 4))
    np.testing.assert_allclose(jax.grad(fn)(params, x)["b"], 6 * (1 + params["b"]), rtol=1e-3)


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_data_that_comes_first_keeps_its_digits(half):
    def skip(x, params):
        return x + jnp.sin(x @ params["w"])

    x, params = 1000 + jax.random.normal(jax.random.key(0), (8, 4)), {"w": jnp.zeros((4, 4))}
    np.testing.assert_array_equal(autocast(skip, half_dtype=half)(x, params), x)


def test_what_is_no_parameter_votes():
    """A collection other than params, and what params_argnums leaves out."""
    x = 1000 + jax.random.normal(jax.random.key(0), (8, 4))

    def shifted(variables, x):
        return x @ variables["params"]["w"] + variables["buffers"]["shift"]

    variables = {"params": {"w": jnp.zeros((4, 4))}, "buffers": {"shift": x}}
    np.testing.assert_array_equal(autocast(shifted)(variables, x), x)
    fn = autocast(lambda data, params: data["x"] + data["x"] @ params["w"], params_argnums=(1,))
    np.testing.assert_array_equal(fn({"x": x}, {"w": jnp.zeros((4, 4))}), x)
