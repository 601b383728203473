"""Models taken apart: their variables, what applies them, and what is given back."""

import pickle

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jinit._trees import leaf_paths
from jinit.initializers import constant, reinit
from jinit.modules.kinds import calls_itself, has_variables, lacks_variables
from jinit.modules.model import read_model
from jinit.modules.roles import leaf_roles, optimized, param_mask

X = jnp.ones((5, 3))
KEY = jax.random.key(0)
DENSE = nn.Dense(2)
VARIABLES = DENSE.init(KEY, X)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 2, rngs=rngs), nnx.BatchNorm(2, rngs=rngs)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.buffer = nnx.data(jnp.ones(2))

    def __call__(self, x):
        return self.dropout(self.layers[1](self.layers[0](x)))


class Frozen(nnx.Variable):
    pass


MLP = eqx.nn.MLP(3, 2, 4, 1, key=KEY)
PLAIN = hk.transform(lambda x: hk.Linear(2)(x))
STATEFUL = hk.transform_with_state(lambda x: hk.BatchNorm(True, True, 0.9)(hk.Linear(2)(x), True))
GIVEN = {
    "NNX": (Net(nnx.Rngs(0)), None),
    "NNX in a dict": ({"net": Net(nnx.Rngs(0))}, lambda m, x: m["net"](x)),
    "Equinox": (MLP, lambda m, x: jax.vmap(m)(x)),
    "bound linen": (DENSE.bind(VARIABLES), None),
    "linen": (VARIABLES, DENSE),
    "Haiku": (PLAIN.init(KEY, X), PLAIN),
    "Haiku with state": (STATEFUL.init(KEY, X), STATEFUL),
    "a function": ({"w": jnp.ones((3, 2))}, lambda p, x: x @ p["w"]),
}


@pytest.mark.parametrize("name", GIVEN)
def test_it_is_a_function_of_arrays_and_comes_back(name):
    given, apply_fn = GIVEN[name]
    model = read_model(given, apply_fn)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(model.variables))
    key = {"rngs": dict.fromkeys(model.rngs, KEY)} if model.rngs else {}
    y = jax.jit(lambda v, x: model.apply_fn(v, x, **key))(model.variables, X)
    assert y.shape == (5, 2)
    back = model.restore(jax.tree.map(lambda leaf: leaf, model.variables))
    assert type(back) is type(given)
    assert leaf_paths(read_model(back, apply_fn).variables) == leaf_paths(model.variables)


@pytest.mark.parametrize(
    "make",
    [
        lambda n: (Net(nnx.Rngs(n)), None),
        lambda n: (eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(n)), None),
        lambda n: (nn.Dense(2).bind(nn.Dense(2).init(jax.random.key(n), X)), None),
        lambda n: (VARIABLES, nn.Dense(2)),
        lambda n: (PLAIN.init(jax.random.key(n), X), PLAIN),
    ],
    ids=["NNX", "Equinox", "bound linen", "linen", "Haiku"],
)
def test_functions_of_equal_models_are_equal(make):
    first, second = (read_model(*make(n)).apply_fn for n in range(2))
    assert first == second
    assert hash(first) == hash(second)


def test_those_of_other_models_are_not():
    assert read_model(nnx.Dropout(0.5)).apply_fn != read_model(nnx.Dropout(0.2)).apply_fn
    one, other = (
        read_model(eqx.nn.Sequential([MLP, eqx.nn.Dropout(p)])).apply_fn for p in (0.5, 0.2)
    )
    assert one != other
    number, flag = (
        read_model(eqx.nn.Sequential([MLP, eqx.nn.Dropout(p)])).apply_fn for p in (1.0, True)
    )
    assert number != flag


def test_a_restored_module_shares_no_variable():
    net = Net(nnx.Rngs(0))
    model = read_model(net)
    for other in (model.restore(model.variables), model.restore(model.variables)):
        other.layers[0].kernel[...] = jnp.zeros((3, 2))
    assert float(jnp.abs(net.layers[0].kernel[...]).sum()) > 0
    assert float(jnp.abs(jnp.asarray(model.variables["layers"][0]["kernel"][...])).sum()) > 0


def test_paths_are_the_users():
    assert leaf_paths(read_model(Net(nnx.Rngs(0))).variables) == [
        "buffer", "dropout/rngs/count", "dropout/rngs/key", "layers/0/bias", "layers/0/kernel",
        "layers/1/bias", "layers/1/mean", "layers/1/scale", "layers/1/var",
    ]  # fmt: skip
    assert leaf_paths(nnx.State({"a": Frozen(jnp.ones(1))})) == ["a"]
    assert leaf_paths({"a": nn.Partitioned(jnp.ones(2), ("x",))}) == ["a"]
    assert leaf_paths({"value": jnp.ones(2)}) == ["value"]


def test_parameters_of_an_nnx_module_are_its_params():
    state = read_model(Net(nnx.Rngs(0))).variables
    paths = np.array(leaf_paths(state))
    assert list(paths[list(param_mask(state))]) == [
        "layers/0/bias", "layers/0/kernel", "layers/1/bias", "layers/1/scale",
    ]  # fmt: skip
    seen = optimized(state, param_mask(state))
    assert jax.tree.structure(seen) == jax.tree.structure(nnx.state(Net(nnx.Rngs(0)), nnx.Param))


def test_roles_of_plain_trees_and_collections():
    tree = {"w": 0.0, "stats": 1.0}
    assert leaf_roles(tree) == ("parameter", "parameter")
    assert leaf_roles(tree, (("stats", "statistic"),)) == ("statistic", "parameter")
    variables = {"params": {"w": jnp.ones(2)}, "adapters": {"w": jnp.ones(2)}}
    mask = param_mask(variables, (("adapters", "parameter"),))
    assert mask == (True, True)
    assert optimized(variables, mask) == variables
    assert set(optimized(variables, param_mask(variables))) == {"w"}


def test_what_is_what():
    bound = DENSE.bind(VARIABLES)
    for given in (Net(nnx.Rngs(0)), MLP, bound):
        assert has_variables(given)
        assert calls_itself(given)
        assert not lacks_variables(given)
    for given in (DENSE, PLAIN, STATEFUL):
        assert lacks_variables(given)
        assert not has_variables(given)
    for given in (VARIABLES, X, len, eqx.filter_jit(len), nnx.split(Net(nnx.Rngs(0)))[1]):
        assert not has_variables(given)
        assert not calls_itself(given)
    assert has_variables({"a": [MLP]})
    assert not calls_itself({"a": [MLP]})


def test_the_function_of_a_module_can_be_pickled():
    applied = read_model(nnx.Linear(3, 2, rngs=nnx.Rngs(0))).apply_fn
    assert pickle.loads(pickle.dumps(applied.call)) is applied.call
    assert applied.__name__ == "Linear"


@pytest.mark.parametrize("name", ["NNX", "Equinox", "bound linen"])
def test_reinit_returns_a_new_module(name):
    given, _ = GIVEN[name]
    before = [np.asarray(x) for x in _floats(given)]
    drawn = reinit(KEY, given, {"*/bias": constant(2.0)})
    assert type(drawn) is type(given)
    assert drawn is not given
    for now, then in zip(_floats(given), before, strict=True):
        np.testing.assert_array_equal(now, then)
    biases = [
        leaf
        for path, leaf in zip(
            leaf_paths(read_model(drawn).variables),
            jax.tree.leaves(read_model(drawn).variables),
            strict=True,
        )
        if path.endswith("bias")
    ]
    assert biases
    assert all((bias == 2).all() for bias in biases)
    if name == "Equinox":
        assert drawn.activation is given.activation


def _floats(model):
    leaves = jax.tree.leaves(read_model(model).variables)
    return [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]


def test_reinit_draws_by_the_users_path():
    """So a module, its state and a dict of the same paths are drawn alike."""
    net = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    by_module = reinit(KEY, net, {"kernel": jax.nn.initializers.normal()}).kernel[...]
    by_state = reinit(KEY, nnx.state(net), {"kernel": jax.nn.initializers.normal()})["kernel"][...]
    by_dict = reinit(KEY, {"kernel": jnp.ones((3, 2))}, {"kernel": jax.nn.initializers.normal()})
    np.testing.assert_array_equal(by_module, by_state)
    np.testing.assert_array_equal(by_module, by_dict["kernel"])
