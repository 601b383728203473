"""A calibration outlives its process: the arrays, the report and, if it can, the function."""

import copy
import pickle
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jinit

X = jax.random.normal(jax.random.key(0), (32, 4))
PARAMS = {"w": jnp.eye(4) + 0.5, "v": jnp.eye(4) - 0.3}


def model(p, x):
    return jnp.tanh(x @ p["w"]) @ p["v"]


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(jnp.tanh(nn.Dense(5)(x)))


def calibrations():
    net = Net()
    variables = net.init(jax.random.key(0), X)
    wrapped = jinit.empirical.wrap_all_leaf_modules(net)
    return [
        (model, PARAMS, "fold"),
        (model, PARAMS, "explicit"),
        (net.apply, variables, "explicit"),
        (wrapped.apply, wrapped.init(jax.random.key(0), X), "explicit"),
    ]


def dumped(result):
    return pickle.loads(pickle.dumps(result))


@pytest.mark.parametrize("copied", [dumped, copy.copy, copy.deepcopy, lambda r: dumped(dumped(r))])
@pytest.mark.parametrize("number", range(4))
def test_a_calibration_is_the_same_once_pickled_or_copied(number, copied):
    apply_fn, params, mode = calibrations()[number]
    given = jinit.calibrate(params, apply_fn, X, jnp.sum, mode=mode, samples=1, step="network")
    found = copied(given)
    for name in ("params", "multipliers", "scales", "growth"):
        jax.tree.map(np.testing.assert_array_equal, getattr(found, name), getattr(given, name))
    assert found.report == given.report
    assert repr(found) == repr(given)
    np.testing.assert_array_equal(found.apply_fn(found.params, X), given.apply_fn(given.params, X))
    assert jax.tree.structure(found) == jax.tree.structure(jax.tree.map(lambda leaf: leaf, found))
    tx, inner = optax.chain(optax.scale_by_adam(), found.transform()), found.params
    tx.update(inner, tx.init(inner)) if mode == "fold" else None


def test_a_lambda_is_left_out_and_missed_when_it_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    given = jinit.calibrate(PARAMS, lambda p, x: model(p, x), X, jnp.sum, samples=1)
    found = dumped(given)
    assert found.report == given.report
    jax.tree.map(np.testing.assert_array_equal, found.params, given.params)
    with pytest.raises(ValueError, match=r"<lambda> could not be pickled with this calibration.*; "
                       r"use the function that was calibrated, or import cloudpickle"):  # fmt: skip
        found.apply_fn(found.params, X)


def test_the_coordinate_check_and_the_table_of_parameters_are_pickled():
    def make(width):
        return {"w": jnp.ones((4, width))}, lambda p, x: x @ p["w"]

    results = [
        jinit.coord_check(make, [4, 8], X, jnp.sum, steps=1),
        jinit.describe(Net(), X),
        jinit.calibrate(PARAMS, model, X, jnp.sum, samples=1).report,
    ]
    for result in results:
        assert dumped(result) == copy.deepcopy(result) == result
