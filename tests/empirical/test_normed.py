"""The original's wrappers for linen."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jinit
from tests.empirical.models import MLP, random_loss, rms

X = jax.random.normal(jax.random.key(0), (64, 16))


class Wrapped(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(jinit.empirical.Normed(nn.Dense(32))(x))
        x = nn.LayerNorm()(x)
        return jinit.empirical.Normed(nn.Dense(4, use_bias=False))(x)


def tuned(model, optimizer="adam"):
    variables = model.init(jax.random.key(1), X)
    return variables, jinit.calibrate(
        variables, model.apply, X, random_loss, mode="explicit", optimizer=optimizer
    )


def test_its_arithmetic_is_the_original_s():
    """y = GS_gy(a f(GS_gx(x))): forward by a; back by gy, then a, then gx."""
    module = jinit.empirical.Normed(nn.Dense(3))
    variables = module.init(jax.random.key(1), X)
    inner = variables["params"]["wrapped"]
    scales = {"a": jnp.float32(0.5), "gx": jnp.float32(3.0), "gy": jnp.float32(7.0)}

    def run(params, x):
        return module.apply({"params": {"wrapped": params}, "normed": scales}, x)

    y, pull = jax.vjp(run, inner, X)
    np.testing.assert_allclose(y, 0.5 * nn.Dense(3).apply({"params": inner}, X), rtol=1e-5)
    slope = jax.random.normal(jax.random.key(2), y.shape)
    weight, data = pull(slope)
    np.testing.assert_allclose(weight["kernel"], 7 * 0.5 * X.T @ slope, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(weight["bias"], 7 * 0.5 * slope.sum(0), rtol=1e-4)
    np.testing.assert_allclose(data, 3 * 7 * 0.5 * slope @ inner["kernel"].T, rtol=1e-4, atol=1e-5)


def test_the_scales_start_at_one_and_are_no_parameters():
    variables = Wrapped().init(jax.random.key(1), X)
    assert set(variables) == {"params", "normed"}
    assert jax.tree.leaves(variables["normed"]) == [1.0] * 6
    assert set(variables["params"]) == {"Normed_0", "Normed_1", "LayerNorm_0"}


@pytest.mark.cases
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_calibrate_tunes_the_wrapped_modules_and_no_others(optimizer):
    variables, result = tuned(Wrapped(), optimizer)
    rows = {row.path: row for row in result.report.rows}
    for name in ("Normed_0", "Normed_1"):
        row = rows[f"params/{name}/wrapped/kernel"]
        assert row.activation_after == pytest.approx(1, rel=0.01)
        assert row.gradient_after == pytest.approx(1, rel=0.1)
        assert row.update_after == pytest.approx(1, rel=0.3)
    norm = variables["params"]["LayerNorm_0"]
    jax.tree.map(np.testing.assert_array_equal, result.params["params"]["LayerNorm_0"], norm)
    y = result.apply_fn(result.params, X)
    np.testing.assert_array_equal(y, Wrapped().apply(result.params, X))
    assert rms(y) == pytest.approx(1, rel=0.01)


@pytest.mark.thorough
def test_what_was_tuned_before_is_tuned_anew():
    _, result = tuned(Wrapped())
    again = jinit.calibrate(result.params, Wrapped().apply, X, random_loss, mode="explicit")
    assert rms(Wrapped().apply(again.params, X)) == pytest.approx(1, rel=0.01)


@pytest.mark.thorough
def test_it_agrees_with_explicit_mode_of_the_plain_model():
    model = MLP(4)
    wrapped = jinit.empirical.wrap_all_leaf_modules(model)
    variables, result = tuned(wrapped, "sgd")
    plain = {"params": variables["params"]}
    other = jinit.calibrate(plain, model.apply, X, random_loss, mode="explicit", optimizer="sgd")
    for name, scales in jinit.empirical.get_wrapped_submodules(result.params).items():
        expected = other.scales[name]["kernel"]
        np.testing.assert_allclose(
            [scales[k] for k in ("a", "gx", "gy")], [expected[k] for k in ("a", "gx", "gy")],
            rtol=1e-3,
        )  # fmt: skip

    def gradient(result):
        return jax.grad(lambda p: jnp.sum(result.apply_fn({**result.params, "params": p}, X) ** 2))(
            result.params["params"]
        )

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5),
        gradient(result),
        gradient(other),
    )


def test_wrapping_keeps_the_tree_of_parameters():
    model = MLP(3)
    wrapped = jinit.empirical.wrap_all_leaf_modules(model).init(jax.random.key(1), X)
    plain = model.init(jax.random.key(1), X)
    jax.tree.map(np.testing.assert_array_equal, wrapped["params"], plain["params"])
    assert sorted(wrapped["normed"]) == ["Dense_0", "Dense_1", "Dense_2"]


class TestNet(nn.Module):
    """The net of the original's own test."""

    __test__ = False

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(64, name="lin0")(x))
        x = nn.relu(nn.Dense(128, name="lin1")(x))
        x = nn.relu(nn.Dense(256, use_bias=False, name="lin2")(x))
        x = jnp.tanh(nn.Dense(256, use_bias=False, name="smdm_lin0")(x))
        x = nn.relu(nn.Dense(256, use_bias=False, name="smdm_lin1")(x))
        x = nn.relu(nn.Dense(128, use_bias=False, name="lin3")(x))
        x = nn.relu(nn.Dense(32, use_bias=False, name="lin4")(x))
        return nn.softmax(nn.Dense(2, use_bias=False, name="lin5")(x))


@pytest.mark.thorough
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_original_s_own_net(optimizer):
    """All three pillars, from the wrappers, where the original needs 102 passes."""

    def draw(batchsz):
        return jax.random.normal(jax.random.key(7), (batchsz, 20))

    def loss(output, key):
        labels = jax.random.randint(key, (len(output), 1), 0, 2)
        return -jnp.log(jnp.take_along_axis(output, labels, -1)).mean()

    model = jinit.empirical.wrap_all_leaf_modules(TestNet())
    variables = model.init(jax.random.key(0), draw(1))
    assert len(jinit.empirical.get_wrapped_submodules(model, draw(1))) == 8
    result = jinit.calibrate(
        variables, model.apply, draw, loss, mode="explicit", optimizer=optimizer
    )
    assert len(result.report.rows) == 8
    for row in result.report.rows:
        assert 0.9 < row.activation_after < 1.1
        assert 0.67 < row.gradient_after < 1.5
        assert 0.67 < row.update_after < 1.5


class Two(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(8)(x))
        return nn.Dense(4)(x)


def test_a_module_of_several_layers_is_refused():
    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return jinit.empirical.Normed(Two())(x)

    variables = Outer().init(jax.random.key(0), X)
    message = (
        "the wrapped module Normed_0 holds several layers, params/Normed_0/wrapped/Dense_0/kernel, "
        "params/Normed_0/wrapped/Dense_1/kernel, which one scale cannot bring to 1; wrap its leaf"
    )
    with pytest.raises(ValueError, match=message):
        jinit.calibrate(variables, Outer().apply, X, random_loss, mode="explicit")


def test_only_linen_can_be_wrapped():
    with pytest.raises(TypeError, match="wrap_all_leaf_modules takes a linen module, not function"):
        jinit.empirical.wrap_all_leaf_modules(lambda x: x)


def test_the_wrapped_modules_of_a_model_are_listed():
    found = jinit.empirical.get_wrapped_submodules(Wrapped(), X)
    assert set(found) == {"Normed_0", "Normed_1"}
    assert all(set(scales) == {"a", "gx", "gy"} for scales in found.values())
    assert jinit.empirical.get_wrapped_submodules(MLP(2).init(jax.random.key(0), X)) == {}
