"""What is said of wrong arguments, and that nothing is half made."""

import contextlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import random
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jinit
from jinit import fast_init
from tests.fastinit.test_frameworks import X
from tests.fastinit.test_shardings import make_mesh

KEY = random.key(0)
TAKES = "fast_init takes the function that makes the variables, got "


def init_fn(key):
    return {"w": random.normal(key, (6, 3)), "b": jnp.zeros(3)}


def raises(error, text):
    """The whole text."""
    return pytest.raises(error, match=re.escape(text) + "$")


def test_a_linen_module():
    text = (
        f"{TAKES}a linen module (Dense): pass its init, as in jinit.fast_init(model.init)(key, x)"
    )
    for module in (nn.Dense(3), nn.Dense(3).bind({})):
        with raises(TypeError, text):
            fast_init(module)
    with raises(TypeError, text):
        jinit.count(nn.Dense(3), KEY, X)


def test_an_nnx_module():
    with raises(
        TypeError,
        f"{TAKES}a Linear, which has its own: pass what constructs it, as in "
        "jinit.fast_init(lambda rngs: Net(rngs=rngs))(nnx.Rngs(0))",
    ):
        fast_init(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))


def test_an_equinox_module():
    eqx = pytest.importorskip("equinox")
    with raises(
        TypeError,
        f"{TAKES}an Equinox module (Linear), which has its own: pass what constructs it, as in "
        "jinit.fast_init(lambda key: Net(key=key))(key)",
    ):
        fast_init(eqx.nn.Linear(2, 3, key=KEY))


def test_transformed():
    hk = pytest.importorskip("haiku")
    with raises(
        TypeError,
        f"{TAKES}a Transformed: pass its init, as in jinit.fast_init(model.init)(key, x)",
    ):
        fast_init(hk.transform(lambda x: x))


@pytest.mark.parametrize(
    ("value", "kind"), [(3, "an int"), (None, "None"), ({"w": 1}, "a dict"), ("x", "a str")]
)
def test_no_function(value, kind):
    with raises(TypeError, TAKES + kind):
        fast_init(value)


@pytest.mark.parametrize(
    ("result", "kind"),
    [(None, "None"), ({"a": 3}, "a dict"), ({}, "a dict"), (nn.Dense(3), "a linen module (Dense)")],
)
def test_no_arrays(result, kind):
    def returns(key):
        return result

    text = (
        f"fast_init(test_no_arrays.<locals>.returns) returned no arrays, but {kind}: pass the "
        "function that makes the variables, such as model.init"
    )
    for called in (fast_init(returns), lambda key: jinit.count(returns, key)):
        with raises(ValueError, text):
            called(KEY)


def refused(out_shardings, error, text, *, mesh=None):
    init = fast_init(init_fn, out_shardings=out_shardings)
    for called in (init, init.count):
        active = jax.set_mesh(mesh) if mesh else contextlib.nullcontext()
        with active, pytest.raises(error) as caught:
            called(KEY)
        assert str(caught.value).startswith(text), str(caught.value)
    assert init.report is None


def test_a_sharding_that_divides_unevenly():
    refused(
        NamedSharding(make_mesh(), P("data")),
        ValueError,
        "b of shape (3,) does not fit its sharding P('data',) on the mesh (data: 4, model: 2): ",
    )


def test_a_sharding_of_more_axes():
    refused(
        {"w": NamedSharding(make_mesh(), P(None, None, "data")), "b": None},
        ValueError,
        "w of shape (6, 3) does not fit its sharding P(None, None, 'data') on the mesh "
        "(data: 4, model: 2): it has 2 axes",
    )


def test_a_spec_without_a_mesh():
    refused(
        P("model"),
        ValueError,
        "b has the PartitionSpec P('model',), but no mesh: call it within jax.set_mesh(mesh), or "
        "give NamedSharding(mesh, spec)",
    )


def test_a_spec_of_an_unknown_axis():
    refused(
        {"w": P("rows"), "b": P()},
        ValueError,
        "w has the PartitionSpec P('rows',): Resource axis: rows of P('rows',) is not found in "
        "mesh: ('data', 'model').",
        mesh=make_mesh(),
    )


@pytest.mark.parametrize("wrong", [{"w": P()}, [P(), P()], {"w": {"x": P()}, "b": P()}])
def test_no_prefix(wrong):
    refused(
        wrong,
        ValueError,
        "out_shardings is not a prefix of the tree that the initialization returns: ",
        mesh=make_mesh(),
    )


@pytest.mark.parametrize("wrong", [3, "data", {"w": "data", "b": None}])
def test_no_sharding(wrong):
    shown = wrong["w"] if isinstance(wrong, dict) else wrong
    text = f"out_shardings must hold shardings and PartitionSpecs, got {shown!r}"
    refused(wrong, TypeError, text)


def test_a_function_that_returns_no_sharding():
    refused(
        lambda path, leaf: "data", TypeError, "out_shardings gives b 'data', which is no sharding"
    )


def test_rules_without_a_mesh():
    with raises(
        ValueError,
        "rules lay logical axes along those of a mesh: pass out_shardings=mesh, or call it within "
        "jax.set_mesh(mesh)",
    ):
        fast_init(nn.Dense(3).init, rules=[("embed", "data")])(KEY, X)


SHAPE = jax.ShapeDtypeStruct((3,), jnp.float32)


def test_an_abstract_argument_that_is_needed():
    with raises(
        ValueError,
        "w depends on the values of an argument that is given as "
        "ShapeDtypeStruct(shape=(3,), dtype=float32): pass an array",
    ):
        fast_init(lambda key, x: {"w": x.sum(), "b": jnp.zeros(3)})(KEY, SHAPE)


def test_an_abstract_argument_of_the_whole_program():
    key = random.key(0, impl="rbg")
    with raises(
        ValueError,
        "the initialization depends on ShapeDtypeStruct(shape=(3,), dtype=float32): pass an array",
    ):
        fast_init(lambda key, x: {"w": random.normal(key, (3,)) * x})(key, SHAPE)


def test_an_abstract_argument_that_is_not_needed():
    found = fast_init(nn.Dense(3).init)(KEY, jax.ShapeDtypeStruct((1, 2), jnp.float32))
    assert found["params"]["kernel"].shape == (2, 3)


def test_the_error_of_the_function_is_its_own():
    class Own(Exception):
        pass

    def fails(key):
        raise Own("of the function")

    with pytest.raises(Own, match="of the function"):
        fast_init(fails)(KEY)


HUGE = (2**24, 2**20)


@pytest.mark.parametrize(
    ("draw", "size"),
    [
        (lambda key: random.normal(key, HUGE), "64 TiB"),
        (lambda key: jnp.zeros(HUGE), "64 TiB"),
        (lambda key: nn.initializers.orthogonal()(key, (2**23, 2**22)), "128 TiB"),
    ],
)
def test_a_device_that_is_too_small(draw, size):
    init = fast_init(lambda key: {"b": jnp.zeros(4), "w": draw(key), "v": random.normal(key, (4,))})
    with pytest.raises(MemoryError) as caught:
        init(KEY)
    text = str(caught.value)
    assert text.startswith("not enough memory on the device: ")
    assert "the largest of the rest are w of float32[" in text
    assert f"({size})" in text
    assert text.endswith(
        "Divide them by out_shardings over more devices, or initialize in a smaller dtype "
        "(param_dtype)"
    )
    assert init.report is None


def test_devices_that_are_too_small():
    mesh = make_mesh()
    shardings = {"w": NamedSharding(mesh, P("data")), "b": NamedSharding(mesh, P())}
    init = fast_init(
        lambda key: {"w": random.normal(key, (2**26, 2**20)), "b": jnp.zeros(4)},
        out_shardings=shardings,
    )
    with raises(
        MemoryError,
        "not enough memory on each of 8 devices: 1 of 2 arrays were made (16 B there), and the "
        "largest of the rest are w of float32[67108864, 1048576] (64 TiB); in all 64 TiB are asked "
        "for there. Divide them by out_shardings over more devices, or initialize in a smaller "
        "dtype (param_dtype)",
    ):
        init(KEY)


def test_a_failing_call_leaves_nothing():
    """Neither arrays nor a report of what was not made; the next call is as the first."""
    mesh = Mesh(jax.devices()[:2], ("a",))
    before = len(jax.live_arrays())
    init = fast_init(init_fn, out_shardings=NamedSharding(mesh, P("a")))
    with pytest.raises(ValueError, match="b of shape"):
        init(KEY)
    assert len(jax.live_arrays()) <= before
