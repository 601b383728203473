"""Arrays are born where they were asked to lie, with the values that they have anywhere."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import random
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from jinit import fast_init
from tests.fastinit.reference import assert_same, check, ways
from tests.fastinit.test_frameworks import Looped, Net, X

KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}


def make_mesh(shape=(4, 2), kind="auto"):
    return jax.make_mesh(shape, ("data", "model"), axis_types=(KINDS[kind],) * 2)


def init_fn(key):
    one, two, three, four = random.split(key, 4)
    return {
        "w": 0.3 * random.normal(one, (8, 4)),
        "heads": jax.vmap(lambda k: random.uniform(k, (8, 6)))(random.split(two, 4)),
        "q": nn.initializers.orthogonal()(three, (8, 8)),
        "b": jnp.zeros(8),
        "large": jnp.ones((512, 256)),
        "key": four,
        "s": random.normal(four, ()),
        "step": jnp.asarray(3),
    }


SPECS = {
    "w": P("data", "model"),
    "heads": P(None, ("model", "data")),
    "q": P("data"),
    "b": P("model"),
    "large": P(None, "data"),
    "key": P(),
    "s": P(),
    "step": P(),
}


@pytest.fixture(scope="module")
def expected():
    return jax.jit(init_fn)(random.key(0))


def assert_lies(found, mesh, specs):
    """Every leaf has its sharding, and every device only its share."""
    for name, leaf in found.items():
        sharding = NamedSharding(mesh, specs[name])
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim), name
        for shard in leaf.addressable_shards:
            assert shard.data.shape == sharding.shard_shape(leaf.shape), name


@pytest.mark.cases
@pytest.mark.cases
@pytest.mark.parametrize("kind", KINDS)
def test_a_tree_of_shardings(kind, expected):
    mesh = make_mesh(kind=kind)
    shardings = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    found = fast_init(init_fn, out_shardings=shardings)(random.key(0))
    assert_lies(found, mesh, SPECS)
    assert_same(found, expected, relative=1e-6)


@pytest.mark.cases
@pytest.mark.parametrize("kind", KINDS)
def test_specs_on_the_mesh_that_is_set(kind, expected):
    mesh = make_mesh(kind=kind)
    with jax.set_mesh(mesh):
        found = fast_init(init_fn, out_shardings=SPECS)(random.key(0))
    assert_lies(found, mesh, SPECS)
    assert_same(found, expected, relative=1e-6)


@pytest.mark.thorough
def test_a_function_of_path_and_leaf(expected):
    mesh, seen = make_mesh(), {}

    def place(path, leaf):
        seen[path] = leaf.shape
        return NamedSharding(mesh, SPECS[path])

    found = fast_init(init_fn, out_shardings=place)(random.key(0))
    assert seen == {name: leaf.shape for name, leaf in expected.items()}
    assert_lies(found, mesh, SPECS)
    assert_same(found, expected, relative=1e-6)


def test_a_prefix():
    mesh = make_mesh()
    rows, all_of_it = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())

    def nested(key):
        tree = {"w": random.normal(key, (8, 4)), "b": jnp.zeros(4)}
        return {"a": tree, "c": {"v": random.normal(key, (8, 2))}, "d": jnp.ones(3)}

    asked = {"a": all_of_it, "c": rows, "d": None}
    found = fast_init(nested, out_shardings=asked)(random.key(0))
    assert found["a"]["w"].sharding == found["a"]["b"].sharding == all_of_it
    assert found["c"]["v"].sharding == rows
    assert len(found["d"].devices()) == 1
    assert_same(found, jax.jit(nested)(random.key(0)))


@pytest.mark.thorough
@pytest.mark.thorough
def test_one_sharding_for_all(expected):
    sharding = NamedSharding(make_mesh(), P())
    found = fast_init(init_fn, out_shardings=sharding)(random.key(0))
    assert all(leaf.sharding == sharding for leaf in found.values())
    assert_same(found, expected, relative=1e-6)


@pytest.mark.cases
@pytest.mark.parametrize("shape", [(1, 1), (2, 4), (8, 1), (1, 2)])
def test_values_do_not_depend_on_the_mesh(shape, expected):
    mesh = make_mesh(shape)
    specs = SPECS | {"heads": P("model"), "large": P("model", "data")}
    shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    found = fast_init(init_fn, out_shardings=shardings)(random.key(0))
    assert_same(found, expected, relative=1e-6)


@pytest.mark.cases
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_program_asks_for(kind):
    """A constraint of the function itself, which need not be repeated."""
    mesh = make_mesh(kind=kind)
    sharding = NamedSharding(mesh, P("data"))

    def constrained(key):
        w = random.normal(key, (8, 4))
        if kind == "auto":
            return {"w": jax.lax.with_sharding_constraint(w, sharding)}
        return {"w": jax.sharding.reshard(w, sharding)}

    with jax.set_mesh(mesh):
        found = fast_init(constrained)(random.key(0))
        assert found["w"].sharding.is_equivalent_to(sharding, 2)
        assert_same(found, jax.jit(constrained)(random.key(0)))


@pytest.mark.thorough
def test_leaves_on_different_meshes():
    whole, half = make_mesh(), Mesh(np.array(jax.devices()[4:]), ("x",))
    shardings = {
        "w": NamedSharding(whole, P("data")),
        "v": NamedSharding(half, P(None, "x")),
        "u": SingleDeviceSharding(jax.devices()[3]),
        "t": None,
        "q": NamedSharding(half, P("x")),
    }

    def several(key):
        drawn = {
            name: random.normal(random.fold_in(key, n), (8, 4)) for n, name in enumerate("wvut")
        }
        return drawn | {"q": nn.initializers.orthogonal()(key, (8, 8))}

    found = fast_init(several, out_shardings=shardings)(random.key(0))
    for name, sharding in shardings.items():
        if sharding is not None:
            assert found[name].sharding == sharding
    assert_same(found, jax.jit(several)(random.key(0)), relative=1e-6)


@pytest.mark.thorough
def test_the_default_device():
    with jax.default_device(jax.devices()[5]):
        found = fast_init(init_fn)(random.key(0))
    assert all(leaf.devices() == {jax.devices()[5]} for leaf in found.values())


@pytest.mark.thorough
def test_a_key_on_another_device(expected):
    key = jax.device_put(random.key(0), jax.devices()[5])
    sharding = NamedSharding(make_mesh(), P())
    found = fast_init(init_fn, out_shardings=sharding)(key)
    assert_same(found, expected, relative=1e-6)


@pytest.mark.thorough
@pytest.mark.thorough
def test_a_memory_kind():
    mesh = make_mesh()
    for memory in jax.devices()[0].addressable_memories():
        shardings = {
            name: NamedSharding(mesh, spec, memory_kind=memory.kind)
            for name, spec in SPECS.items()
            if name != "key"
        }
        init = fast_init(
            lambda key: {name: init_fn(key)[name] for name in shardings},  # noqa: B023
            out_shardings=shardings,
        )
        found = init(random.key(0))
        assert {leaf.sharding.memory_kind for leaf in found.values()} == {memory.kind}


@pytest.mark.cases
@pytest.mark.parametrize(
    "spec", [P("data"), P(None, "data"), P(None, None, "model"), P("model", "data")]
)
@pytest.mark.cases
def test_segments(spec):
    """Layers of a scan, cut between and within them."""

    def layers(key):
        return jax.lax.scan(
            lambda key, _: (random.split(key)[0], random.normal(random.split(key)[1], (4, 6))),
            key, None, length=4,
        )[1]  # fmt: skip

    sharding = NamedSharding(make_mesh(), spec)
    assert ways(check(layers, random.key(0), out_shardings=sharding)) == {"drawn": 1}


@pytest.mark.thorough
def test_segments_that_no_axis_numbers():
    """Two parts one after another along an axis of six."""

    def two(key):
        return jnp.concatenate([random.normal(k, (3, 4)) for k in random.split(key)])

    for spec in (P("model"), P(None, "data"), P()):
        check(two, random.key(0), out_shardings=NamedSharding(make_mesh(), spec))


class Boxed(nn.Module):
    """Kernels whose axes are named, and a bias whose are not."""

    axes: tuple = ("data", "model")
    logical: bool = False

    @nn.compact
    def __call__(self, x):
        box = nn.with_logical_partitioning if self.logical else nn.with_partitioning
        return nn.Dense(8, kernel_init=box(nn.initializers.lecun_normal(), self.axes))(x)


def kernel_of(variables):
    return nn.unbox(variables)["params"]["Dense_0"]["kernel"]


def test_partitioned_boxes():
    mesh = make_mesh()
    init = fast_init(Boxed().init, out_shardings=mesh)
    found = init(random.key(0), X)
    assert isinstance(found["params"]["Dense_0"]["kernel"], nn.Partitioned)
    assert kernel_of(found).sharding == NamedSharding(mesh, P("data", "model"))
    assert_same(found, jax.jit(Boxed().init)(random.key(0), X))


@pytest.mark.thorough
def test_logical_boxes_and_rules():
    mesh, net = make_mesh(), Boxed(("embed", "mlp"), logical=True)
    rules = [("embed", None), ("mlp", ("data", "model"))]
    found = fast_init(net.init, out_shardings=mesh, rules=rules)(random.key(0), X)
    assert kernel_of(found).sharding == NamedSharding(mesh, P(None, ("data", "model")))
    with jax.set_mesh(mesh):
        again = fast_init(net.init, rules=rules)(random.key(0), X)
    assert kernel_of(again).sharding == kernel_of(found).sharding
    assert_same(found, jax.jit(net.init)(random.key(0), X))


def test_metadata_of_nnx():
    mesh = make_mesh()
    init = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("data", "model"))

    def make(rngs):
        return nnx.Linear(8, 8, kernel_init=init, rngs=rngs)

    found = fast_init(make, out_shardings=mesh)(nnx.Rngs(0))
    assert found.kernel[...].sharding.spec == P("data", "model")
    with jax.set_mesh(mesh):
        assert_same(nnx.state(found), nnx.state(make(nnx.Rngs(0))))


@pytest.mark.thorough
@pytest.mark.cases
@pytest.mark.parametrize("model", [Net(), Looped()])
def test_models(model):
    """As FSDP has them: every leaf divided along the first axis that can be."""
    mesh = make_mesh()

    def place(path, leaf):
        for axis, size in enumerate(leaf.shape):
            if size % 8 == 0:
                return NamedSharding(mesh, P(*[None] * axis, ("data", "model")))
        return NamedSharding(mesh, P())

    found = fast_init(model.init, out_shardings=place)(random.key(0), X)
    assert_same(found, jax.jit(model.init)(random.key(0), X), relative=1e-6)
    for leaf in jax.tree.leaves(found):
        share = {shard.data.size for shard in leaf.addressable_shards}
        assert share == {leaf.size // (8 if any(n % 8 == 0 for n in leaf.shape) else 1)}


def test_numbers_in_the_boxes_of_their_leaves_lie_everywhere():
    """As learning-rate multipliers do."""

    def init(key):
        names = ("data", "model")
        return {
            "kernel": nn.Partitioned(random.normal(key, (8, 4)), names),
            "multiplier": nn.Partitioned(jnp.ones(()), names),
        }

    made = fast_init(init, out_shardings=make_mesh())(random.key(0))
    assert made["kernel"].value.sharding.spec == P("data", "model")
    assert made["multiplier"].value.sharding.spec == P()
