"""``step="network"``: what a unit step of all layers at once does, from outside the library."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jinit
from tests.empirical.models import random_loss

WIDTH, BATCH = 32, 64


def chain(depth: int, scale: float = 1.0) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(0), depth)
    return [scale * jax.random.normal(key, (WIDTH, WIDTH)) / WIDTH**0.5 for key in keys]


def outputs(weights, x):
    """The outputs before the nonlinearity, the last one's included."""
    found = []
    for w in weights:
        y = x @ w
        found.append(y)
        x = jax.nn.relu(y)
    return found


def net(weights, x):
    return outputs(weights, x)[-1]


def residual_outputs(weights, x):
    found = []
    for w in weights:
        y = jax.nn.relu(x) @ w
        found.append(y)
        x = x + y
    return x, found


def residual(weights, x):
    return residual_outputs(weights, x)[0]


X = jax.random.normal(jax.random.key(1), (BATCH, WIDTH))
COTANGENT = jax.random.normal(jax.random.key(2), (BATCH, WIDTH))


def loss(y):
    return jnp.sum(y * COTANGENT)


def expected_growth(layers, model, result) -> float:
    """By central differences in float64, with every operation NumPy's."""
    slopes = jax.grad(lambda w: loss(model(w, X)))(result.params)
    sizes = [np.asarray(m, np.float64) for m in result.multipliers]
    weights = [np.asarray(w, np.float64) for w in result.params]
    steps = [m * np.sign(g) for m, g in zip(sizes, slopes, strict=True)]
    small, x = 1e-7, np.asarray(X, np.float64)
    ahead, behind, here = (
        layers([w + sign * small * u for w, u in zip(weights, steps, strict=True)], x)
        for sign in (1, -1, 0)
    )
    ratios = [
        np.sqrt(np.mean(((a - b) / (2 * small)) ** 2) / np.mean(y**2))
        for a, b, y in zip(ahead, behind, here, strict=True)
    ]
    return float(np.exp(np.mean(np.log(ratios))))


def chain_in_numpy(weights, x):
    found = []
    for w in weights:
        found.append(x @ w)
        x = np.maximum(found[-1], 0)
    return found


def residual_in_numpy(weights, x):
    found = []
    for w in weights:
        found.append(np.maximum(x, 0) @ w)
        x = x + found[-1]
    return found


@pytest.mark.cases
@pytest.mark.parametrize("depth", [1, 3, 12])
@pytest.mark.parametrize(
    ("model", "layers"), [(net, chain_in_numpy), (residual, residual_in_numpy)]
)
def test_growth_is_what_a_step_of_the_network_does(model, layers, depth):
    result = jinit.calibrate(chain(depth), model, X, loss, step="network")
    alone = jinit.calibrate(chain(depth), model, X, loss)
    assert alone.growth == 1
    assert float(result.growth) == pytest.approx(expected_growth(layers, model, alone), rel=1e-4)
    for new, old in zip(result.multipliers, alone.multipliers, strict=True):
        np.testing.assert_allclose(new * result.growth, old, rtol=1e-5)
    for new, old in zip(result.params, alone.params, strict=True):
        np.testing.assert_array_equal(new, old)


@pytest.mark.thorough
def test_a_unit_step_of_the_network_then_changes_outputs_by_their_size():
    result = jinit.calibrate(chain(8), net, X, loss, step="network")
    assert expected_growth(chain_in_numpy, net, result) == pytest.approx(1, rel=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_explicit_mode_makes_the_same_step(optimizer):
    """The effective weight is a V: its step under fold's rule and under explicit's are one."""
    options = {"optimizer": optimizer, "step": "network"}
    fold = jinit.calibrate(chain(4), net, X, loss, **options)
    explicit = jinit.calibrate(chain(4), net, X, loss, mode="explicit", **options)
    assert float(explicit.growth) == pytest.approx(float(fold.growth), rel=1e-3)
    direction = {"sgd": lambda g: g, "adam": jnp.sign}[optimizer]
    mine = jax.grad(lambda w: loss(net(w, X)))(fold.params)
    theirs = jax.grad(lambda v: loss(explicit.apply_fn(v, X)))(explicit.params)
    for i in range(4):
        a = explicit.scales[str(i)]["a"]
        step = fold.multipliers[i] * direction(mine[i])
        other = a * direction(theirs[i])
        np.testing.assert_allclose(jnp.linalg.norm(other), jnp.linalg.norm(step), rtol=1e-3)


@pytest.mark.cases
@pytest.mark.parametrize("mode", ["fold", "explicit"])
def test_the_report_tells_the_growth_and_the_smaller_updates(mode):
    result = jinit.calibrate(chain(4), net, X, loss, mode=mode, step="network", verbose=True)
    growth = float(result.growth)
    assert growth > 1.5
    for row in result.report.rows:
        assert row.update_after * growth == pytest.approx(1, rel=1e-3)
    assert result.report.growth == growth
    assert f"changes an output by {growth:.3g} times its RMS" in str(result.report)
    assert result.report.to_dict()["growth"] == growth


@pytest.mark.thorough
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_gradients_of_leaves_are_those_that_the_result_has(optimizer):
    """In explicit mode they shrink with the multipliers."""
    result = jinit.calibrate(
        chain(3), net, X, loss, mode="explicit", step="network", optimizer=optimizer, verbose=True
    )
    slopes = jax.grad(lambda v: loss(result.apply_fn(v, X)))(result.params)
    for i, slope in enumerate(slopes):
        size = float(jnp.sqrt(jnp.mean(slope**2)))
        assert result.report.leaf_gradients[str(i)] == pytest.approx(size, rel=1e-3)


@pytest.mark.thorough
def test_growth_is_known_inside_jit_and_grows_with_depth():
    """A chain of layers that each move by as much as they are: every one adds its own step."""

    def growth(depth):
        return jax.jit(lambda w: jinit.calibrate(w, net, X, loss, step="network").growth)(
            chain(depth)
        )

    eager = jinit.calibrate(chain(6), net, X, loss, step="network").growth
    np.testing.assert_allclose(growth(6), eager, rtol=1e-4)
    assert float(growth(1)) == pytest.approx(1, rel=1e-3)
    assert 1 < growth(4) < growth(16)


@pytest.mark.thorough
def test_excluded_leaves_keep_their_multiplier():
    result = jinit.calibrate(chain(3), net, X, loss, step="network", exclude="1")
    assert float(result.multipliers[1]) == 1.0
    assert result.growth > 1


@pytest.mark.thorough
def test_gates_that_put_out_nothing_do_not_count():
    """A zero output has no relative change, and must not make the growth infinite."""

    def gated(params, x):
        return x @ params["w"] + params["gate"] * (x @ params["v"])

    params = {"w": chain(1)[0], "v": jnp.zeros((WIDTH, WIDTH)), "gate": jnp.zeros(())}
    result = jinit.calibrate(params, gated, X, random_loss, step="network")
    assert float(result.growth) == pytest.approx(1, rel=0.02)  # the keys of the report differ


def test_an_unknown_step_is_named():
    with pytest.raises(ValueError, match="step='model' is not known; pass 'layer' or 'network'"):
        jinit.calibrate(chain(1), net, X, loss, step="model")
