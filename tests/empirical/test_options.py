"""The arguments that say what is tuned, to what, and how the model is called."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jinit
from tests.empirical.models import MLP, random_loss, rms, tanh_net, tanh_params

pytestmark = pytest.mark.usefixtures("allow_rank_promotion")


def vectors(key):
    return jax.random.normal(key, (64, 64))


def outputs(params, x):
    found = []
    for layer in params:
        found.append(x @ layer["w"] + layer["b"])
        x = jnp.tanh(found[-1])
    return [rms(y) for y in found]


# -- target ---------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_target_for_all_layers():
    result = jinit.calibrate(tanh_params(4), tanh_net, vectors, random_loss, target=0.25)
    assert outputs(result.params, vectors(jax.random.key(9))) == pytest.approx([0.25] * 4, rel=0.05)


def test_a_target_that_depends_on_the_path():
    """Small output layers."""

    def target(site):
        return 0.01 if site.path.startswith("3/") else 1.0

    params = jinit.empirical_init(tanh_params(4), tanh_net, vectors, random_loss, target=target)
    found = outputs(params, vectors(jax.random.key(9)))
    assert found == pytest.approx([1, 1, 1, 0.01], rel=0.05)


@pytest.mark.thorough
def test_scaling_by_fan_out():
    """With x of RMS 1, sqrt(fan_in / fan_out) is the RMS that a variance of 1 / fan_out gives."""
    seen = {}

    def target(site):
        seen[site.path] = (site.kind, site.fan_in, site.fan_out, site.number, site.count)
        return math.sqrt(site.fan_in / site.fan_out)

    module = MLP(3, width=48)
    variables = module.init(jax.random.key(0), jnp.ones((1, 64)))
    params = jinit.empirical_init(
        variables, module.apply, vectors, random_loss, target=target, exclude="*/bias"
    )
    assert seen == {}  # the bias was excluded, and with it every layer
    params = jinit.empirical_init(variables, module.apply, vectors, random_loss, target=target)
    assert seen["params/Dense_0/kernel"] == ("linear", 64, 48, 0, 3)
    assert seen["params/Dense_2/kernel"] == ("linear", 48, 10, 2, 3)
    std = float(jnp.std(params["params"]["Dense_0"]["kernel"]))
    assert std == pytest.approx(48**-0.5, rel=0.05)


@pytest.mark.thorough
def test_the_fans_of_other_layers():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, tokens, images):
            x = nn.Embed(11, 6, name="embed")(tokens)
            y = nn.Conv(8, (3, 5), name="conv")(images)
            z = nn.Conv(4, (3, 3), feature_group_count=4, name="depthwise")(images)
            heads = nn.DenseGeneral((2, 7), name="heads")(x)
            return nn.DenseGeneral(5, axis=(-2, -1), name="join")(heads).sum() + y.sum() + z.sum()

    seen = {}

    def target(site):
        seen[site.path.split("/")[1]] = (site.kind, site.fan_in, site.fan_out)
        return 1.0

    tokens, images = jnp.arange(6), jnp.ones((2, 8, 8, 4))
    variables = Net().init(jax.random.key(0), tokens, images)
    jinit.empirical_init(variables, Net().apply, (tokens, images), lambda y: y, target=target)
    assert seen == {
        "embed": ("embedding", 1, 6),
        "conv": ("linear", 60, 120),
        "depthwise": ("linear", 9, 9),
        "heads": ("linear", 6, 14),
        "join": ("linear", 14, 5),
    }


def test_lsuv_with_an_orthogonal_start():
    """Mishkin and Matas: orthogonal weights, then the variance of every output set to 1."""
    params = jinit.initializers.reinit(
        jax.random.key(0), tanh_params(4), {"*/w": jinit.initializers.orthogonal()}
    )
    tuned = jinit.empirical_init(params, tanh_net, vectors, random_loss)
    for layer in tuned:
        square = layer["w"].T @ layer["w"]
        np.testing.assert_allclose(
            square, square[0, 0] * np.eye(64), atol=1e-4 * float(square[0, 0])
        )
    assert outputs(tuned, vectors(jax.random.key(9))) == pytest.approx([1] * 4, rel=0.05)


@pytest.mark.parametrize("target", [0, -1.0, float("nan"), float("inf"), "1", True, None])
def test_a_target_that_is_no_positive_number_is_refused(target):
    message = f"target must be a positive number, but is {target!r}"
    with pytest.raises(ValueError, match=message):
        jinit.calibrate(tanh_params(2), tanh_net, vectors, random_loss, target=target)
    with pytest.raises(ValueError, match=message + " for 0/w; it is the RMS"):
        jinit.empirical_init(
            tanh_params(2), tanh_net, vectors, random_loss, target=lambda site: target
        )


# -- include and exclude --------------------------------------------------------------------


@pytest.mark.cases
@pytest.mark.parametrize("depth", [3, 12])
@pytest.mark.parametrize("mode", ["fold", "explicit"])
def test_what_is_excluded_stays_as_it_is(depth, mode):
    params = tanh_params(depth)
    result = jinit.calibrate(
        params, tanh_net, vectors, random_loss, exclude=["1/w", "1/b"], mode=mode
    )
    jax.tree.map(np.testing.assert_array_equal, result.params[1], params[1])
    assert float(result.multipliers[1]["w"]) == 1
    assert result.report.not_tuned == {"1/w": "excluded", "1/b": "excluded"}
    rows = {row.path: row for row in result.report.rows}
    assert rows["1/w"].activation_after > 1.5
    assert rows["2/w"].activation_after == pytest.approx(1, rel=0.05)
    y = result.apply_fn(result.params, vectors(jax.random.key(3)))
    assert rms(y) == pytest.approx(1, rel=0.05)


def test_only_what_is_included_is_tuned():
    params = tanh_params(4)
    tuned = jinit.empirical_init(params, tanh_net, vectors, random_loss, include="3/*")
    for number in range(3):
        jax.tree.map(np.testing.assert_array_equal, tuned[number], params[number])
    assert rms(tanh_net(tuned, vectors(jax.random.key(5)))) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_fits_nothing_is_refused(option):
    with pytest.raises(ValueError, match=r"patterns that fit no leaf:\n  '9/w', nearest: 1/w"):
        jinit.calibrate(tanh_params(2), tanh_net, vectors, random_loss, **{option: "9/w"})


# -- collections, random keys and auxiliary outputs -------------------------------------------


def test_another_collection_than_params():
    variables = {"weights": tanh_params(2), "constants": {"w": 5 * jnp.eye(64)}}

    def model(v, x):
        return tanh_net(v["weights"], x @ v["constants"]["w"])

    tuned = jinit.empirical_init(variables, model, vectors, random_loss, collection="weights")
    np.testing.assert_array_equal(tuned["constants"]["w"], variables["constants"]["w"])
    assert rms(model(tuned, vectors(jax.random.key(4)))) == pytest.approx(1, rel=0.05)
    message = (
        "collection='params' is no top-level entry of params, which has 'weights', 'constants'"
    )
    with pytest.raises(ValueError, match=message):
        jinit.empirical_init(variables, model, vectors, random_loss, collection="params")


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dropout(0.5, deterministic=False)(nn.relu(nn.Dense(256)(x)))
        x = nn.BatchNorm(use_running_average=False, momentum=0.9)(x)
        return nn.Dense(4)(x)


@pytest.mark.thorough
@pytest.mark.parametrize("mode", ["fold", "explicit"])
def test_random_keys_and_mutable_collections_by_argument(mode):
    variables = Dropped().init(
        {"params": jax.random.key(0), "dropout": jax.random.key(1)}, vectors(jax.random.key(2))
    )
    result = jinit.calibrate(
        variables, functools.partial(Dropped().apply, mutable=["batch_stats"]), vectors,
        random_loss, rngs=("dropout",), has_aux=True, mode=mode,
    )  # fmt: skip
    by_hand = jinit.calibrate(
        variables,
        lambda v, x, key: Dropped().apply(v, x, rngs={"dropout": key}, mutable=["batch_stats"])[0],
        lambda key: (vectors(key), jax.random.fold_in(key, 3)),
        random_loss,
        mode=mode,
    )
    for found in (result, by_hand):
        linear = [row for row in found.report.rows if row.kind == "linear"]
        assert [row.activation_after for row in linear] == pytest.approx([1, 1], rel=0.05)
    out, state = result.apply_fn(
        result.params, vectors(jax.random.key(5)), rngs={"dropout": jax.random.key(6)}
    )
    assert rms(out) == pytest.approx(1, rel=0.1)
    assert set(state) == {"batch_stats"}


def test_a_model_that_needs_random_keys_says_so():
    variables = Dropped().init(
        {"params": jax.random.key(0), "dropout": jax.random.key(1)}, vectors(jax.random.key(2))
    )
    apply_fn = functools.partial(Dropped().apply, mutable=["batch_stats"])
    message = r"apply needs random keys that it was not given .*pass rngs=\('dropout',\)"
    with pytest.raises(ValueError, match=message):
        jinit.calibrate(variables, apply_fn, vectors, random_loss, has_aux=True)


# -- progress -------------------------------------------------------------------------------


@pytest.mark.thorough
def test_verbose_shows_the_progress_and_prints_the_report(capsys):
    result = jinit.calibrate(tanh_params(3), tanh_net, vectors, random_loss, verbose=True)
    text, _ = capsys.readouterr()
    assert str(result.report) in text
    assert "mean / RMS of the output" in text
    row = result.report.rows[0]
    x = vectors(jax.random.key(77))
    y = x @ result.params[0]["w"] + result.params[0]["b"]
    assert row.mean == pytest.approx(float(y.mean()) / rms(y), abs=0.02)
    assert set(result.report.leaf_gradients) == {f"{i}/{n}" for i in range(3) for n in "wb"}
    quiet = jinit.calibrate(tanh_params(3), tanh_net, vectors, random_loss)
    assert capsys.readouterr() == ("", "")
    assert quiet.report.leaf_gradients == {}
    assert quiet.report.rows[0].mean is None


# -- values that are not finite -----------------------------------------------------------------


@pytest.mark.cases
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda p, x: jnp.log(x @ p["a"]) @ p["b"],
         "the output of b is not finite, the first of 1 such layers; params are unchanged"),
        (lambda p, x: jnp.sqrt(jnp.abs(0 * (x @ p["a"]))) @ p["b"],
         "the gradient at the input of a is not finite, the first of 1 such layers"),
    ],
)  # fmt: skip
def test_the_first_layer_that_is_not_finite_is_named(model, message):
    params = {"a": jnp.eye(64), "b": jnp.eye(64)}
    with pytest.raises(ValueError, match=message):
        jinit.calibrate(params, model, vectors, random_loss)


@pytest.mark.cases
@pytest.mark.parametrize("bad", [jnp.log, lambda y: 1 / jnp.maximum(y, 0)])
def test_a_layer_that_is_not_finite_is_named_by_the_forward_pass_alone(bad):
    def model(p, x):
        return bad(x @ p["a"]) @ p["b"] @ p["c"]

    params = {name: jnp.eye(64) for name in "abc"}
    message = "the output of b is not finite, the first of 2 such layers; params are unchanged"
    with pytest.raises(ValueError, match=message):
        jinit.empirical_init(params, model, vectors, random_loss)
    traced = jax.jit(lambda p: jinit.empirical_init(p, model, vectors, random_loss))(params)
    assert jax.tree.structure(traced) == jax.tree.structure(params)


@pytest.mark.parametrize("mode", ["fold", "explicit"])
def test_two_leaves_of_one_path_are_refused(mode):
    params = {"a/b": jnp.eye(64), "a": {"b": jnp.eye(64)}}
    with pytest.raises(ValueError, match="params has several leaves at the path a/b, which keys"):
        jinit.calibrate(
            params, lambda p, x: x @ p["a/b"] @ p["a"]["b"], vectors, random_loss, mode=mode
        )


def test_inputs_that_are_not_finite_are_refused():
    x = jnp.ones((2, 64)).at[0, 0].set(jnp.inf)
    with pytest.raises(ValueError, match="dummy_input holds values that are not finite; pass"):
        jinit.calibrate(tanh_params(2), tanh_net, x, random_loss)


def test_a_loss_that_does_not_depend_on_the_output_is_refused():
    with pytest.raises(ValueError, match="dummy_loss does not depend on the output of tanh_net"):
        jinit.calibrate(tanh_params(2), tanh_net, vectors, lambda y: jnp.float32(3))
