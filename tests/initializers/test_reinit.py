"""reinit: what it draws, what it keeps, and what it says."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import freeze
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jinit
from jinit.initializers import (
    constant,
    eye,
    lecun_normal,
    normal,
    orthogonal,
    reinit,
    uniform,
    xavier_uniform,
    zeros,
)

pytestmark = pytest.mark.usefixtures("compile_fast")
KEY = jax.random.key(0)


class Net(nn.Module):
    kernel_init: nn.initializers.Initializer = nn.initializers.ones_init()

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.Dense(4, kernel_init=self.kernel_init)(x)
        return nn.BatchNorm(use_running_average=True)(x)


def variables(**fields):
    return Net(**fields).init(jax.random.key(1), jnp.ones((1, 4)))


def test_it_draws_what_fits_and_keeps_the_rest():
    before = variables()
    after = reinit(KEY, before, {"params/Dense_*/kernel": normal()})
    assert jax.tree.structure(after) == jax.tree.structure(before)
    kernels = [after["params"][f"Dense_{i}"]["kernel"] for i in (0, 1)]
    assert abs(kernels[0] - kernels[1]).min() > 0
    kept = [("params", "Dense_0", "bias"), ("batch_stats", "BatchNorm_0", "mean")]
    for collection, layer, name in kept:
        assert after[collection][layer][name] is before[collection][layer][name]


def test_the_last_pattern_that_fits_counts():
    params = {"a": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "kernel": jnp.ones(1)}
    after = reinit(KEY, params, {"*": constant(1.0), "a/*": constant(2.0), "*bias": constant(3.0)})
    found = {"kernel": 1, "a": {"kernel": 2, "bias": 3}}
    assert jax.tree.map(lambda x: int(x.ravel()[0]), after) == found
    after = reinit(KEY, params, {"*bias": constant(3.0), "*": constant(1.0)})
    assert int(after["a"]["bias"][0]) == 1


@pytest.mark.parametrize(
    ("pattern", "fitting"),
    [
        ("kernel", ["kernel"]),
        ("*/kernel", ["a/kernel", "b/c/kernel"]),
        ("*kernel", ["kernel", "a/kernel", "b/c/kernel"]),
        ("?/kernel", ["a/kernel"]),
        ("[ab]/*", ["a/kernel", "b/c/kernel", "b/c/0"]),
        ("b/c/[0-9]", ["b/c/0"]),
    ],
)
def test_patterns(pattern, fitting):
    paths = ["kernel", "a/kernel", "b/c/kernel", "b/c/0"]
    one = jnp.ones(())
    tree = {"kernel": one, "a": {"kernel": one}, "b": {"c": {"kernel": one, 0: one}}}
    tree["b"]["c"] = {str(name): leaf for name, leaf in tree["b"]["c"].items()}
    leaves = jax.tree.leaves(reinit(KEY, tree, {pattern: zeros()}))
    order = ["a/kernel", "b/c/0", "b/c/kernel", "kernel"]
    assert sorted(order) == sorted(paths)
    assert {p for p, leaf in zip(order, leaves, strict=True) if leaf == 0} == set(fitting)


def test_a_leaf_keeps_its_values_when_others_come(make_key):
    small = {"b": jnp.ones((3, 3))}
    large = {"a": jnp.ones((3, 3)), "b": jnp.ones((3, 3)), "c": jnp.ones((3, 3))}
    one, three = (reinit(make_key(0), tree, {"*": normal()}) for tree in (small, large))
    np.testing.assert_array_equal(one["b"], three["b"])
    assert abs(three["a"] - three["c"]).min() > 0
    other = reinit(make_key(1), small, {"*": normal()})
    assert abs(other["b"] - one["b"]).min() > 0


def test_jit_gives_the_eager_values():
    before = variables()
    patterns = {"*kernel": lecun_normal(), "*bias": constant(0.1)}
    eager = reinit(KEY, before, patterns)
    jitted = jax.jit(lambda key, tree: reinit(key, tree, patterns))(KEY, before)
    jax.tree.map(np.testing.assert_array_equal, jitted, eager)


def test_eval_shape_draws_nothing():
    before = variables()
    shapes = jax.eval_shape(lambda tree: reinit(KEY, tree, {"*kernel": orthogonal()}), before)
    assert jax.tree.structure(shapes) == jax.tree.structure(before)
    abstract = jax.eval_shape(lambda: before)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(
        lambda x: (x.shape, x.dtype), abstract
    )
    drawn = reinit(KEY, abstract, {"params/*": zeros()})
    assert drawn["params"]["Dense_0"]["kernel"].sum() == 0
    assert isinstance(drawn["batch_stats"]["BatchNorm_0"]["mean"], jax.ShapeDtypeStruct)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float8_e5m2", "complex64"])
def test_dtypes_stay(dtype):
    after = reinit(KEY, {"w": jnp.ones((4, 4), dtype)}, {"w": normal()})["w"]
    assert after.dtype == dtype
    from_numpy = reinit(KEY, {"w": np.ones((4, 4), dtype)}, {"*": normal()})["w"]
    np.testing.assert_array_equal(from_numpy, after)


def test_partitioned_boxes_stay():
    init = nn.with_partitioning(nn.initializers.ones_init(), ("in", "out"))
    before = variables(kernel_init=init)
    after = reinit(KEY, freeze(before), {"params/Dense_0/kernel": eye()})
    box = after["params"]["Dense_0"]["kernel"]
    assert (type(box), box.names) == (nn.Partitioned, ("in", "out"))
    np.testing.assert_array_equal(box.value, np.eye(4))
    assert nn.get_partition_spec(after) == nn.get_partition_spec(freeze(before))
    bare = reinit(KEY, variables(), {"*kernel": normal()})
    boxed = reinit(KEY, before, {"*kernel": normal()})
    np.testing.assert_array_equal(
        boxed["params"]["Dense_1"]["kernel"].value, bare["params"]["Dense_1"]["kernel"]
    )


def test_nnx_states_and_their_metadata_stay():
    model = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)
    after = reinit(KEY, state, {"kernel": eye(), "bias": constant(2.0)})
    merged = nnx.merge(graph, after)
    assert type(after["kernel"]) is nnx.Param
    np.testing.assert_array_equal(merged(jnp.ones((1, 3))), np.full((1, 3), 3.0))


def mesh(axis_type):
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_shardings_stay(axis_type):
    sharding = NamedSharding(mesh(axis_type), PartitionSpec("x", "y"))
    before = {"w": jax.device_put(jnp.ones((8, 4)), sharding), "b": jnp.ones((8, 4))}
    patterns = {"*": normal()}
    after = reinit(KEY, before, patterns)
    assert after["w"].sharding == sharding
    assert not after["b"].committed
    plain = reinit(KEY, {"w": jnp.ones((8, 4))}, patterns)
    np.testing.assert_array_equal(after["w"], plain["w"])
    with jax.set_mesh(sharding.mesh):
        assert reinit(KEY, {"w": before["w"]}, patterns)["w"].sharding == sharding


def test_explicit_shardings_stay_within_jit():
    sharding = NamedSharding(mesh(AxisType.Explicit), PartitionSpec("x", "y"))
    before = {"w": jax.device_put(jnp.ones((8, 4)), sharding)}
    with jax.set_mesh(sharding.mesh):
        after = jax.jit(lambda tree: reinit(KEY, tree, {"w": orthogonal()}))(before)
    assert after["w"].sharding.is_equivalent_to(sharding, 2)
    plain = reinit(KEY, {"w": jnp.ones((8, 4))}, {"w": orthogonal()})
    np.testing.assert_array_equal(after["w"], plain["w"])


def test_a_leaf_stays_on_its_device():
    device = jax.devices()[3]
    after = reinit(KEY, {"w": jax.device_put(jnp.ones(3), device)}, {"w": normal()})["w"]
    assert after.devices() == {device}


def test_functions_of_jax_draw_too():
    after = reinit(KEY, {"w": jnp.zeros((3, 3))}, {"w": jax.nn.initializers.ones})
    np.testing.assert_array_equal(after["w"], 1)


def test_patterns_that_fit_nothing_are_named_together():
    message = (
        "patterns that fit no leaf:\n"
        "  'params/Dense_3/kernel', nearest: params/Dense_1/kernel, params/Dense_0/kernel, "
        "params/Dense_1/bias\n"
        "  '*/kernal', nearest: params/Dense_1/kernel, params/Dense_0/kernel, "
        "params/BatchNorm_0/scale"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        reinit(
            KEY,
            variables(),
            {"params/Dense_3/kernel": normal(), "*/bias": zeros(), "*/kernal": normal()},
        )
    with pytest.raises(ValueError, match=r"'w', nearest: the tree is empty$"):
        reinit(KEY, {}, {"w": normal()})


def test_leaves_that_cannot_be_drawn_are_named_together():
    tree = {"bias": jnp.ones(3), "count": jnp.zeros((), int), "key": KEY, "w": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match=r"^leaves that cannot be drawn:\n") as caught:
        reinit(KEY, tree, {"*": uniform(), "bias": xavier_uniform()})
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == ["bias", "count", "key"]
    assert "shape (3,) has no axis -2, so its fans are unknown" in lines[0]
    assert "uniform(low=0.0, high=1.0) draws floating-point numbers" in lines[1]


def test_an_initializer_is_needed():
    with pytest.raises(TypeError, match=r"^an initializer is a function .*, got 0\.5$"):
        reinit(KEY, {"w": jnp.ones(2)}, {"w": 0.5})


def test_it_is_found_where_the_initializers_are():
    assert jinit.initializers.reinit is reinit
