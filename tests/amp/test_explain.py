"""What explain says, against the program that autocast makes."""

import collections

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from jinit import amp
from tests.amp.reference import operand_dtypes

W = jnp.ones((4, 4)) / 4
X = jnp.ones((2, 4))


@pytest.fixture(autouse=True)
def _quiet(capsys):
    yield
    capsys.readouterr()


def found(fn, *args, **kwargs):
    """{(operation, dtype, why): count}."""
    counts = collections.Counter()
    for row in amp.explain(fn, *args, **kwargs).operations:
        counts[row.op, row.dtype, row.why] += row.count
    return dict(counts)


@jax.custom_vjp
def product(x, w):
    return x @ w


product.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, ct: (ct @ saved[1].T, saved[0].T @ ct))


@jax.custom_jvp
def slope(x):
    return jnp.log(x)


slope.defjvp(lambda primals, tangents: (jnp.log(primals[0]), tangents[0] / primals[0]))


def everything(w, x):
    x, _ = jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=3)
    x = jax.lax.cond(x[0, 0] > 0, lambda a: jnp.exp(a @ w), lambda a: a - 1e-30, x)
    x = jax.lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, jnp.sin(c[1])), (0, x))[1]
    x = jax.checkpoint(jax.jit(lambda a: jnp.log1p(a)))(x)
    return slope(product(x, w)).sum()


def test_every_list_is_named_inside_every_construct():
    rows = found(everything, W, X)
    for row in [
        ("dot_general", "bfloat16", "half list"),
        ("tanh", "bfloat16", "match"),
        ("exp", "float32", "float32 list"),
        ("sin", "float32", "match"),
        ("log1p", "float32", "float32 list"),
        ("log", "float32", "float32 list"),
        ("reduce_sum", "float32", "float32 list"),
    ]:
        assert row in rows, (row, rows)
    assert rows["dot_general", "bfloat16", "half list"] == 3


@pytest.mark.parametrize(
    ("fn", "row"),
    [
        (lambda w, x: (x @ w) * x, ("mul", "float32", "promote (the widest operand)")),
        (lambda w, x: (x @ w) + w[:1], ("add", "bfloat16", "promote (the widest operand)")),
        (lambda w, x: (x @ w) + w[:2], ("add", "float32", "promote (the widest operand)")),
        (lambda w, x: w[:, 0] * x[0, 0], ("mul", "float32", "promote (the widest operand)")),
        (
            lambda w, x: jnp.einsum("i,j->ij", w[0], x[0]),
            ("dot_general", "float32", "promote (the widest operand; contracts nothing)"),
        ),
        (
            lambda w, x: jax.nn.one_hot(jnp.arange(2), 4) @ w,
            ("dot_general", "float32", "promote (the widest operand; selects or counts)"),
        ),
        (
            lambda w, x: jnp.matmul(x, w, precision="highest"),
            ("dot_general", "float32", "precision asked for"),
        ),
        (
            lambda w, x: jnp.maximum(x @ w, 1e-39),
            ("max", "float32", "promote (1e-39 is out of bfloat16's range)"),
        ),
        (lambda w, x: (x @ w) * (x @ w), ("mul", "bfloat16", "promote (the widest operand)")),
        (lambda w, x: jnp.square(x @ w), ("square", "float32", "float32 list")),
        (
            lambda w, x: jnp.linalg.cholesky(w),
            ("cholesky", "float32", "declared list"),
        ),
        (lambda w, x: x.at[0].add(w[0]), ("scatter-add", "float32", "not entered")),
        (
            lambda w, x: amp.half_function(jnp.exp)(x),
            ("exp", "bfloat16", "half_function exp"),
        ),
        (
            lambda w, x: amp.float_function(jnp.matmul)(x, w),
            ("dot_general", "float32", "float_function matmul"),
        ),
        (
            lambda w, x: amp.disable_casts()(jnp.matmul)(x, w),
            ("dot_general", "float32", "disable_casts"),
        ),
        (
            lambda w, x: x.astype(jnp.float16) + w[:2].astype(jnp.float16),
            ("add", "float16", "neither float32 nor bfloat16"),
        ),
    ],
)
def test_each_reason(fn, row):
    assert row in found(fn, W, X)


def test_the_dtypes_are_those_of_the_program():
    """Independent of the record: the operands in the jaxpr of the cast function."""

    def fn(w, x):
        h = jax.nn.softmax(x @ w)
        return jax.nn.gelu(h @ w), jnp.concatenate([h, x])

    cast = amp.autocast(fn, half_dtype="float16")
    program = operand_dtypes(cast, W, X)
    rows = found(cast, W, X)
    for op in ("dot_general", "exp", "reduce_sum", "tanh", "concatenate", "integer_pow"):
        counts = collections.Counter()
        for (name, dtype, _), count in rows.items():
            if name == op:
                counts[dtype] += count
        assert counts == program[op], op


def test_the_backward_pass_of_a_custom_rule_is_explained_in_the_gradient():
    rows = found(jax.grad(lambda w, x: product(x, w).sum()), W, X)
    assert rows["dot_general", "bfloat16", "half list"] == 3  # one is the forward rule's


def test_nothing_is_run_and_shapes_are_enough():
    ran = []

    def fn(w, x, name, *, train):
        assert (name, train) == ("block", True)
        jax.debug.callback(lambda: ran.append(1))
        return x @ w

    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (W, X)]
    assert found(fn, *shapes, "block", train=True) == {("dot_general", "bfloat16", "half list"): 1}
    jax.effects_barrier()
    assert ran == []


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.exp(nn.BatchNorm(use_running_average=True)(nn.Dense(4)(x)))


@pytest.mark.parametrize(
    ("level", "product", "exp", "why"),
    [
        ("O0", "float32", "float32", "O0 casts the function's inputs"),
        ("O1", "bfloat16", "float32", "half list"),
        ("O3", "bfloat16", "bfloat16", "O3 casts the function's inputs"),
    ],
)
def test_a_model_is_explained_at_its_level(level, product, exp, why):
    def apply_fn(params, x):
        return jnp.exp(x @ params)

    model = amp.initialize(apply_fn, None, level, half_dtype="bfloat16", verbosity=0)
    rows = found(model, W, X)
    assert ("dot_general", product, why) in rows
    assert {dtype for op, dtype, _ in rows if op == "exp"} == {exp}


def test_o2_is_explained_with_its_kept_norm():
    """In a linen module the norm's output is half again; elsewhere products are cast one by one."""
    variables = Net().init(jax.random.key(0), X)
    rows = found(
        amp.initialize(Net(), None, "O2", half_dtype="bfloat16", verbosity=0), variables, X
    )
    why = "O2 casts the function's inputs"
    assert rows["dot_general", "bfloat16", why] == rows["exp", "bfloat16", why] == 1
    assert rows["rsqrt", "float32", why] == 1

    def apply_fn(params, x):
        return jnp.exp((x * params["bn"]) @ params["w"])

    model = amp.initialize(apply_fn, None, "O2", half_dtype="bfloat16", verbosity=0)
    rows = found(model, {"w": W, "bn": jnp.ones((1, 4))}, X)
    assert rows["dot_general", "bfloat16", "half list"] == 1
    assert rows["exp", "bfloat16", "match"] == 1


def test_the_source_is_the_users_line():
    def fn(w, x):
        return jnp.tanh(x @ w)

    first = fn.__code__.co_firstlineno
    sources = {row.op: row.source for row in amp.explain(fn, W, X).operations}
    assert sources == dict.fromkeys(("dot_general", "tanh"), f"test_explain.py:{first + 1} (fn)")


def test_it_returns_data_that_prints_as_a_table(capsys):
    def fn(w, x):
        return jnp.exp(x @ w) + jnp.exp(x @ w)

    result = amp.explain(fn, W, X)
    assert capsys.readouterr().out == ""
    text = [" ".join(line.split()) for line in str(result).splitlines()]
    assert text[0] == "fn with bfloat16: operations 2 in bfloat16, 3 in float32"
    assert text[1] == "operation runs in why at count"
    assert repr(result) == f"<{text[0]}>"
    first = result.to_dict()["operations"][0]
    assert (first["op"], first["dtype"], first["count"]) == ("dot_general", "bfloat16", 2)


def test_a_hidden_call_is_named_and_warned_of(hidden_product):
    with pytest.warns(UserWarning, match="autocast cannot see into .* jax_custom_vjp3"):
        rows = found(hidden_product, W, X)
    with pytest.warns(UserWarning, match="cannot see into"):
        value = amp.autocast(hidden_product)(W, X)
    assert "not entered" in {why for _, _, why in rows}
    assert value.dtype == jnp.float32
