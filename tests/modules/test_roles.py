"""The table of what collections and variables hold."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jinit.modules.roles import leaf_roles, param_mask, parse_roles, role_of


class MyParam(nnx.Param):
    """A parameter of the user's own kind."""


class Memory(nnx.Variable):
    """Neither Flax nor jinit knows what this is."""


VARIABLES = {
    nnx.Param: "parameter",
    nnx.LoRAParam: "parameter",
    MyParam: "parameter",
    nnx.BatchStat: "statistic",
    nnx.Cache: "activation",
    nnx.Intermediate: "activation",
    nnx.RngKey: "counter",
    nnx.RngCount: "counter",
    nnx.Variable: "statistic",
    Memory: "statistic",
}


@pytest.mark.parametrize(
    ("kind", "role"), VARIABLES.items(), ids=lambda x: getattr(x, "__name__", x)
)
def test_types_of_variables(kind, role):
    assert role_of(kind) == role


def test_collections_of_linen():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(use_running_average=False)(nn.Dense(4)(x))
            self.variable("memory", "last", jnp.zeros, (4,))
            return nn.MultiHeadDotProductAttention(2, decode=True)(x[:, None])

    variables = Net().init(jax.random.key(0), jnp.ones((2, 3)))
    named = zip(jax.tree_util.tree_leaves_with_path(variables), leaf_roles(variables), strict=True)
    found = {path[0].key: role for (path, _), role in named}
    assert found == {
        "params": "parameter",
        "batch_stats": "statistic",
        "cache": "activation",
        "memory": "statistic",
    }


def test_the_user_says_otherwise():
    roles = parse_roles({"memory": "activation", Memory: "parameter"})
    assert role_of("memory", roles) == "activation"
    assert role_of(Memory, roles) == "parameter"
    tree = {"params": {"w": 1.0}, "memory": {"m": 2.0}}
    assert leaf_roles(tree, roles) == ("activation", "parameter")


def test_a_tree_without_collections_is_parameters():
    assert param_mask([1.0, {"batch_stats": 2.0}]) == (True, True)


def test_a_module_or_a_state_of_nnx():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.bn = nnx.BatchNorm(2, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)

    expected = ["parameter", "statistic", "parameter", "statistic", "counter", "counter"]
    for tree in (Net(nnx.Rngs(0)), nnx.state(Net(nnx.Rngs(0)))):
        assert list(leaf_roles(tree)) == expected  # bias, mean, scale, var, count, key


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({3: "parameter"}, TypeError, "roles has the key 3: write the name of a collection, or a"),
        ({"memory": "cache"}, ValueError, "roles says 'cache' of memory: write 'parameter', 's"),
    ],
)
def test_bad_roles(given, error, text):
    with pytest.raises(error, match=text):
        parse_roles(given)
