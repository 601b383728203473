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


@pytest.mark.cases
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
    with pytest.raises(ValueError, match=r"<lambda> is not in this calibration: .*; use the "
                       r"function that was calibrated, hand it to Calibration.load, or import "
                       r"cloudpickle before"):  # fmt: skip
        found.apply_fn(found.params, X)


@pytest.mark.cases
@pytest.mark.parametrize("number", range(4))
def test_a_calibration_is_the_same_once_saved_and_loaded(number, tmp_path):
    apply_fn, params, mode = calibrations()[number]
    given = jinit.calibrate(params, apply_fn, X, jnp.sum, mode=mode, samples=1, step="network")
    given.save(tmp_path / "calibration.npz")
    found = jinit.Calibration.load(tmp_path / "calibration.npz", apply_fn)
    for name in ("params", "multipliers", "scales", "growth"):
        jax.tree.map(np.testing.assert_array_equal, getattr(found, name), getattr(given, name))
        assert jax.tree.structure(getattr(found, name)) == jax.tree.structure(getattr(given, name))
    assert found.report == given.report
    np.testing.assert_array_equal(found.apply_fn(found.params, X), given.apply_fn(given.params, X))
    assert repr(dumped(found)) == repr(given)


@pytest.mark.thorough
def test_trees_and_dtypes_of_every_kind_are_read_back(tmp_path):
    params = [(jnp.ones((4, 2), jnp.bfloat16), None), {"b": jnp.ones(2, jnp.float16), "n": 3}]
    given = jinit.calibrate(
        params, lambda p, x: x @ p[0][0] + p[1]["b"][None], X, lambda y: y.sum(), samples=1
    )
    given.save(tmp_path / "calibration.npz")
    found = jinit.Calibration.load(tmp_path / "calibration.npz")
    assert jax.tree.structure(found.params) == jax.tree.structure(given.params)
    for new, old in zip(jax.tree.leaves(found.params), jax.tree.leaves(given.params), strict=True):
        assert jnp.asarray(new).dtype == jnp.asarray(old).dtype
        np.testing.assert_array_equal(new, old)
    mapped = jax.vmap(lambda w: jinit.calibrate({"w": w}, lambda p, x: x @ p["w"], X, jnp.sum))(
        jnp.stack([jnp.eye(4), 2 * jnp.eye(4)])
    )
    mapped.save(tmp_path / "mapped.npz")
    assert jinit.Calibration.load(tmp_path / "mapped.npz").report == mapped.report


def test_what_a_file_has_no_place_for_is_named_and_nothing_is_written(tmp_path):
    params = optax.EmptyState(), nn.Partitioned(jnp.ones((4, 2)), ("a", "b"))
    given = jinit.calibrate(params, lambda p, x: x @ p[1].value, X, jnp.sum, samples=1)
    path = tmp_path / "calibration.npz"
    with pytest.raises(TypeError, match=r"but params\[0\] is of type EmptyState; pickle the"):
        given.save(path)
    assert not path.exists()


def test_a_file_of_something_else_or_of_a_later_format_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", x=np.ones(2))
    (tmp_path / "text").write_text("hello")
    for name in ("other.npz", "text"):
        with pytest.raises(ValueError, match=r"holds no calibration; pass what Calibration\.save"):
            jinit.Calibration.load(tmp_path / name)
    np.savez(tmp_path / "later.npz", json=np.array('{"format": 2}'))
    with pytest.raises(ValueError, match="has format 2, and this version of jinit reads 1; read"):
        jinit.Calibration.load(tmp_path / "later.npz")


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
