"""What is compiled, and how often."""

import textwrap

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import random

from jinit import fast_init
from tests.fastinit.reference import assert_same
from tests.fastinit.test_frameworks import Looped, Module, Net, OfData, X
from tests.fastinit.test_shardings import make_mesh
from tests.processes import run_case


@pytest.mark.cases
@pytest.mark.parametrize("net", [Net(), Looped(), OfData()])
def test_another_key_compiles_nothing(net, count_compilations):
    init = fast_init(net.init)
    init(random.key(0), X)
    with count_compilations() as compiled:
        found = init(random.key(1), X)
    assert compiled == []
    assert init.report.trace_seconds < 0.1
    assert_same(found, jax.jit(net.init)(random.key(1), X), relative=1e-6)


def test_another_key_is_not_traced():
    traced = []

    def init_fn(key):
        traced.append(key)
        return random.normal(key, (3,))

    init = fast_init(init_fn)
    for seed in range(3):
        init(random.key(seed))
    init(random.PRNGKey(0))
    assert len(traced) == 2  # keys of another type are another program
    with jax.enable_x64(True):
        init(random.key(0))
    assert len(traced) == 3


def test_other_streams_compile_nothing(count_compilations):
    init = fast_init(Module)
    init(nnx.Rngs(0))
    with count_compilations() as compiled:
        init(nnx.Rngs(1))
    assert compiled == []


@pytest.mark.thorough
@pytest.mark.thorough
def test_on_devices_another_key_compiles_nothing(count_compilations):
    sharding = jax.NamedSharding(make_mesh(), jax.P("model"))

    def init_fn(key):
        one, other = random.split(key)
        return {
            "w": random.normal(one, (8, 4)),
            "q": nn.initializers.orthogonal()(other, (8, 8)),
            "b": jnp.zeros(8),
        }

    init = fast_init(init_fn, out_shardings=sharding)
    init(random.key(0))
    with count_compilations() as compiled:
        init(random.key(1))
    assert compiled == []


@pytest.mark.cases
@pytest.mark.parametrize("sharded", [False, True])
def test_depth_compiles_nothing(sharded, count_compilations):
    shardings = jax.NamedSharding(make_mesh(), jax.P()) if sharded else None
    with count_compilations() as first:
        fast_init(Net(4).init, out_shardings=shardings)(random.key(0), X)
    with count_compilations() as deeper:
        fast_init(Net(12).init, out_shardings=shardings)(random.key(0), X)
    assert deeper == []
    assert len(first) <= 20  # distinct shapes, most of which take what is drawn apart


def test_programs_of_a_transformer():
    """One for the kernels, of all widths, and one for the embedding."""
    init = fast_init(Net(6).init)
    init(random.key(0), X)
    drawn = [row for row in init.report.rows if row.way == "drawn"]
    assert {row.what: row.programs for row in drawn} == {"truncated normal": 1, "normal": 1}


@pytest.mark.thorough
def test_widths_share_a_program():
    def init_fn(key):
        return [
            nn.initializers.lecun_normal()(random.fold_in(key, width), (width, width + 1))
            for width in range(1, 30)
        ]

    init = fast_init(init_fn)
    init(random.key(0))
    assert [(row.what, row.programs, len(row.leaves)) for row in init.report.rows] == [
        ("truncated normal", 1, 29)
    ]


CACHED = textwrap.dedent(
    """
    from jax import monitoring
    import flax.linen as nn
    jax.config.update("jax_compilation_cache_dir", os.environ["FOLDER"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    result = {"hits": 0, "misses": 0}
    def listen(name, **_):
        for kind in result:
            result[kind] += name == f"/jax/compilation_cache/cache_{kind}"
    monitoring.register_event_listener(listen)
    net = nn.Sequential([nn.Dense(8), nn.Dense(4, kernel_init=nn.initializers.orthogonal())])
    jinit.fast_init(net.init)(jax.random.key(0), np.ones((2, 8), "f"))
    """
)


@pytest.mark.thorough
def test_a_second_process_compiles_nothing(tmp_path):
    first, second = (run_case(CACHED, FOLDER=str(tmp_path)) for _ in range(2))
    assert first["misses"] >= 4
    assert second["misses"] == 0
    assert second["hits"] >= first["misses"]
