"""Weights that are joined before they meet the input: they scale together, by one factor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jinit
from tests.empirical.models import random_loss, rms

WIDTH = 16
X = jax.random.normal(jax.random.key(0), (256, WIDTH))
A, B, C, D = (
    scale * jax.random.normal(key, (WIDTH, WIDTH))
    for scale, key in zip((0.1, 2.0, 0.3, 5.0), jax.random.split(jax.random.key(1), 4), strict=True)
)

JOINS = {
    "concatenated": (lambda p: jnp.concatenate([p["a"], p["b"]], 1), 1),
    "stacked": (lambda p: jnp.stack([p["a"], p["b"]]).reshape(-1, WIDTH).T @ jnp.eye(32, 8), 1),
    "added": (lambda p: p["a"] + 2 * p["b"], 1),
    "chosen": (lambda p: jnp.where(jnp.eye(WIDTH) > 0, p["a"], p["b"]), 1),
    "added products": (lambda p: p["a"] @ p["b"] + p["c"] @ p["d"], 2),
    "added to a sum": (lambda p: (p["a"] + p["b"]) + p["c"], 1),
    "a sum times itself": (lambda p: (p["a"] + p["b"]) @ (p["a"] + p["b"]), 2),
    "divided by a norm": (
        lambda p: (p["a"] + p["b"]) ** 3 / jnp.linalg.norm(p["a"] + p["b"]) ** 2,
        1,
    ),
}


def used_by(join):
    leaves = {"a": A, "b": B, "c": C, "d": D}
    return {name: leaf for name, leaf in leaves.items() if name in join.__code__.co_consts}


def product(weight, x):
    weight = weight[: x.shape[1]] if weight.shape[0] >= x.shape[1] else weight.T
    return x @ weight


def factors(new, old):
    """The factor of every leaf, which must be one for all its entries."""
    ratios = {name: np.asarray(new[name] / old[name]) for name in old}
    for ratio in ratios.values():
        np.testing.assert_allclose(ratio, ratio.flat[0], rtol=1e-5)
    return {name: float(ratio.flat[0]) for name, ratio in ratios.items()}


@pytest.mark.cases
@pytest.mark.parametrize(("join", "degree"), JOINS.values(), ids=JOINS)
def test_joined_weights_take_one_factor(join, degree):
    params = used_by(join)

    def model(p, x):
        return product(join(p), x)

    size = rms(model(params, X))
    tuned = jinit.empirical_init(params, model, X, jnp.sum)
    assert rms(model(tuned, X)) == pytest.approx(1, rel=1e-4)
    expected = dict.fromkeys(params, (1 / size) ** (1 / degree))
    assert factors(tuned, params) == pytest.approx(expected, rel=1e-4)


UNLIKE = {
    "a low-rank sum": (lambda p: p["a"] + p["b"] @ p["c"], {"a": 1, "b": 2, "c": 2}),
    "one that is turned": (lambda p: (p["b"] @ p["c"]).T - 3 * p["a"], {"a": 1, "b": 2, "c": 2}),
    "its square": (
        lambda p: (p["a"] + p["b"] @ p["c"]) @ (p["a"] + p["b"] @ p["c"]),
        {"a": 2, "b": 4, "c": 4},
    ),
    "one in another": (
        lambda p: p["d"] + (p["a"] + p["b"] @ p["c"]) ** 2,
        {"a": 2, "b": 4, "c": 4, "d": 1},
    ),
}


@pytest.mark.thorough
@pytest.mark.parametrize("mode", ["fold", "explicit"])
@pytest.mark.parametrize(("join", "degrees"), UNLIKE.values(), ids=UNLIKE)
def test_terms_of_unequal_degrees_scale_together(join, degrees, mode):
    params = {
        name: leaf for name, leaf in zip("abcd", (A, B, C, D), strict=True) if name in degrees
    }

    def model(p, x):
        return x @ join(p)

    size = rms(model(params, X))
    tuned = jinit.empirical_init(params, model, X, jnp.sum)
    expected = {name: size ** (-1 / degree) for name, degree in degrees.items()}
    assert factors(tuned, params) == pytest.approx(expected, rel=1e-4)
    result = jinit.calibrate(params, model, X, random_loss, mode=mode)
    assert rms(result.apply_fn(result.params, X)) == pytest.approx(1, rel=1e-4)
    (row,) = result.report.rows
    others = ", ".join(sorted(degrees.keys() - {row.path}))
    assert row.note == f"scaled together with {others}"
    assert degrees[row.path] == min(degrees.values())
    assert result.report.not_tuned == {}
    assert row.update_after == pytest.approx(1, rel=0.1)


@pytest.mark.cases
@pytest.mark.parametrize("scanned", [False, True])
def test_low_rank_adapters_that_start_at_zero(scanned):
    params = {"w": D, "down": B[:, :4], "up": jnp.zeros((4, WIDTH))}

    def layer(p, x):
        return x @ (p["w"] + p["down"] @ p["up"] / 4)

    def in_scan(p, x):
        return jax.lax.scan(lambda x, p: (jnp.tanh(y := layer(p, x)), y), x, p)[1]

    if scanned:
        params = jax.tree.map(lambda leaf: jnp.stack([leaf, 10 * leaf, 0.1 * leaf]), params)
    model = in_scan if scanned else lambda p, x: [layer(p, x)]
    result = jinit.calibrate(params, model, X, lambda ys: sum(map(jnp.sum, ys)))
    for y in model(result.params, X):
        assert rms(y) == pytest.approx(1, rel=1e-3)
    assert {"up", "down"}.isdisjoint(result.report.not_tuned)
    assert {row.note for row in result.report.rows} == {"scaled together with down, up"}


def test_the_report_names_what_is_joined():
    params = {"a": A, "b": B}
    result = jinit.calibrate(
        params, lambda p, x: x @ jnp.concatenate([p["a"], p["b"]], 1), X, random_loss
    )
    (row,) = result.report.rows
    assert (row.path, row.note, row.joined) == ("a", "one scale with b", ("b",))
    assert result.report.not_tuned == {}
    assert row.update_after == pytest.approx(1, rel=0.1)
    assert float(result.multipliers["a"]) == float(result.multipliers["b"])


@pytest.mark.thorough
@pytest.mark.parametrize("mode", ["fold", "explicit"])
def test_a_joined_bias_scales_with_its_weight(mode):
    params = {"a": A, "b": B, "p": jnp.ones(WIDTH), "q": 2 * jnp.ones(WIDTH)}

    def model(p, x):
        weight = jnp.concatenate([p["a"], p["b"]], 1)
        return x @ weight + jnp.concatenate([p["p"], p["q"]])[None]

    result = jinit.calibrate(params, model, X, random_loss, mode=mode)
    y = result.apply_fn(result.params, X)
    assert rms(y) == pytest.approx(1, rel=1e-4)
    np.testing.assert_allclose(y * rms(model(params, X)), model(params, X), rtol=1e-3, atol=1e-4)


NOT_ALIKE = {
    "of which one is in terms of unequal degrees": lambda p: p["a"] + p["b"] @ p["a"],
    "beside a constant": lambda p: jnp.concatenate([p["a"], p["b"], jnp.ones((16, 16))], 1),
    "of which one comes again": lambda p: (p["a"] + p["b"]) @ p["a"],
    "in two groups": lambda p: (p["a"] + p["b"]) @ (p["b"] + p["c"]),
}


@pytest.mark.cases
@pytest.mark.parametrize("join", NOT_ALIKE.values(), ids=NOT_ALIKE)
def test_weights_that_do_not_scale_together_are_left(join):
    params = used_by(join)
    result = jinit.calibrate(params, lambda p, x: x @ join(p), X, random_loss)
    for name in params:
        np.testing.assert_array_equal(result.params[name], params[name])
        assert result.report.not_tuned[name] == "not homogeneous in any of its parameters"


def test_a_weight_that_also_serves_alone_is_scaled_there():
    def model(p, x):
        return (x @ p["a"]) + (x @ (p["a"] + p["b"]))

    result = jinit.calibrate({"a": A, "b": B}, model, X, random_loss)
    assert rms(X @ result.params["a"]) == pytest.approx(1, rel=0.1)
    np.testing.assert_array_equal(result.params["b"], B)
    assert "b" in result.report.not_tuned


def test_excluding_one_leaves_all():
    def model(p, x):
        return x @ (p["a"] + p["b"])

    result = jinit.calibrate({"a": A, "b": B}, model, X, random_loss, exclude="b")
    np.testing.assert_array_equal(result.params["a"], A)
    np.testing.assert_array_equal(result.params["b"], B)
    assert result.report.not_tuned["a"] == "excluded"


@pytest.mark.cases
@pytest.mark.parametrize("mode", ["fold", "explicit"])
@pytest.mark.parametrize("scanned", [False, True])
def test_joined_weights_of_every_layer(scanned, mode):
    """Equal blocks, in a loop of the model's own or one that they are rolled to."""
    depth = 6
    keys = jax.random.split(jax.random.key(2), 3)
    shapes = {"q": (depth, 16, 16), "k": (depth, 16, 16), "out": (depth, 32, 16)}
    stacked = {
        name: 0.2 * jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    blocks = [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(depth)]

    def block(x, p):
        y = x @ jnp.concatenate([p["q"], p["k"]], 1)
        z = jax.nn.relu(y) @ p["out"]
        return jnp.tanh(z), (y, z)

    def in_scan(params, x):
        return jax.lax.scan(block, x, params)

    def unrolled(params, x):
        sites = []
        for p in params:
            x, found = block(x, p)
            sites.append(found)
        return x, sites

    model = in_scan if scanned else unrolled
    params = stacked if scanned else blocks
    result = jinit.calibrate(params, model, X, random_loss, mode=mode, has_aux=True)
    sites = result.apply_fn(result.params, X)[1]
    leading = 1 if scanned else 0
    for y in jax.tree.leaves(sites):
        sizes = jnp.sqrt(jnp.mean(y**2, tuple(range(leading, y.ndim))))
        np.testing.assert_allclose(sizes, 1, atol=0.02)
    joined = {row.path for row in result.report.rows if "one scale with" in row.note}
    assert len(joined) == depth
