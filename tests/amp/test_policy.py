import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict

from jinit.amp.casting.dtypes import cast_floating
from jinit.amp.levels import resolve_policy

HALVES = ["bfloat16", "float16"]


def leaf_dtypes(tree):
    return jax.tree.map(lambda leaf: str(leaf.dtype), tree)


@pytest.mark.cases
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(
    ("level", "keywords", "stored", "computed"),
    [
        ("O0", {}, "float32", "float32"),
        ("O1", {}, "float32", "float32"),
        ("O2", {}, "float32", "half"),
        ("O3", {}, "half", "half"),
        ("O2", {"master_weights": False}, "half", "half"),
        ("O3", {"master_weights": True}, "float32", "half"),
    ],
)
def test_where_parameters_are_half(half, level, keywords, stored, computed):
    policy = resolve_policy(level, half, **keywords)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    names = {"half": half, "float32": "float32"}
    assert leaf_dtypes(policy.cast_to_param(params)) == dict.fromkeys(params, names[stored])
    assert leaf_dtypes(policy.cast_to_compute(params)) == dict.fromkeys(params, names[computed])


BATCH_NORMS = [
    "BatchNorm_0",
    "BatchNorm",
    "batch_norm",
    "batchnorm1d",
    "SyncBatchNorm_1",
    "BatchNormalization_3",
    "bn",
    "bn1",
    "bn_init",
    "conv_bn",
    "BN",
    "resnet/~/batch_norm",
    "block/bn2",
]
OTHERS = ["LayerNorm_0", "GroupNorm_0", "norm", "Dense_0", "abn", "bnet", "turbine", "ebn1x"]


@pytest.mark.parametrize("name", [*BATCH_NORMS, *OTHERS])
def test_the_names_of_batch_norm(name):
    policy = resolve_policy("O2", "bfloat16")
    dtype = "float32" if name in BATCH_NORMS else "bfloat16"
    tree = {"block": {name: {"scale": jnp.ones(2)}}}
    assert leaf_dtypes(policy.cast_to_compute(tree)) == {"block": {name: {"scale": dtype}}}
    assert policy.keeps_any(tree) == (name in BATCH_NORMS)


@pytest.mark.parametrize("container", [dict, FrozenDict])
def test_only_the_params_collection_is_cast(container):
    variables = container(
        {
            "params": {"Dense_0": {"kernel": jnp.ones(2)}, "BatchNorm_0": {"scale": jnp.ones(2)}},
            "batch_stats": {"BatchNorm_0": {"mean": jnp.ones(2)}, "other": jnp.ones(2)},
        }
    )
    half = resolve_policy("O3", "float16").cast_to_param(variables)
    assert isinstance(half, container)
    assert leaf_dtypes(dict(half["params"])) == {
        "Dense_0": {"kernel": "float16"},
        "BatchNorm_0": {"scale": "float16"},
    }
    assert set(jax.tree.leaves(leaf_dtypes(half["batch_stats"]))) == {"float32"}
    kept = resolve_policy("O2", "float16").cast_to_compute(variables)
    assert kept["params"]["BatchNorm_0"]["scale"].dtype == jnp.float32
    assert kept["params"]["Dense_0"]["kernel"].dtype == jnp.float16


def test_batch_statistics_alone_do_not_count_as_kept():
    variables = {"params": {"kernel": jnp.ones(2)}, "batch_stats": {"bn": jnp.ones(2)}}
    assert not resolve_policy("O2").keeps_any(variables)
    named = {"params": {"bn": jnp.ones(2)}}
    assert resolve_policy("O2").keeps_any(named)
    assert not resolve_policy("O3").keeps_any(named)
    assert not resolve_policy("O2", cast_model_type="float32").keeps_any(named)


def test_what_is_not_a_floating_array_is_the_same_object():
    module = type("Module", (), {"dtype": jnp.float32})()
    leaves = [np.arange(3), jax.random.key(0), jnp.array(True), 1.5, 2, "text", module, 1j]
    assert all(
        after is before for after, before in zip(cast_floating(leaves, "float16"), leaves, strict=1)
    )


@pytest.mark.parametrize("half", HALVES)
def test_casting_rounds_once_to_nearest(half):
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    expected = values.astype(jnp.dtype(half))
    assert cast_floating(values, half).tobytes() == expected.tobytes()


def test_casting_keeps_the_sharding():
    mesh = jax.make_mesh((8,), ("x",))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    array = jax.device_put(jnp.ones(16), spec)
    assert resolve_policy("O3").cast_to_param({"w": array})["w"].sharding.is_equivalent_to(spec, 1)


def test_it_prints_what_is_in_effect_beside_the_default():
    text = str(resolve_policy("O2", "float16", loss_scale=128, keep_batchnorm_fp32=False))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0] == "amp O2 with float16"
    assert lines[1] == "property O2 default in effect"
    assert "loss_scale dynamic 128.0" in lines
    assert "keep_batchnorm_fp32 True False" in lines
    assert "cast_model_type float16 float16" in lines


def test_it_is_frozen_and_hashable():
    assert resolve_policy("O2") == resolve_policy("O2", jnp.bfloat16)
    assert hash(resolve_policy("O2")) == hash(resolve_policy("O2", "bfloat16"))
    assert resolve_policy("O2") != resolve_policy("O2", "float16")
    with pytest.raises(AttributeError, match="cannot assign to field 'opt_level'"):
        resolve_policy("O2").opt_level = "O3"
