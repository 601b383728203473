"""The first step that is not zero, and optimizers that have none to measure."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import jinit
from jinit.empirical.first_step import first_moves
from jinit.empirical.optimizers import resolve_optimizer

PARAMS = {"w": jnp.eye(4) + 0.5, "v": jnp.eye(4) - 0.3}
X = jax.random.normal(jax.random.key(0), (32, 4))


def model(p, x):
    return jnp.tanh(x @ p["w"]) @ p["v"]


def multipliers(optimizer, mode="fold"):
    result = jinit.calibrate(
        PARAMS, model, X, lambda y: jnp.sum(y**2), optimizer=optimizer, samples=1, mode=mode
    )
    found = result.multipliers if mode == "fold" else result.scales
    return np.array([float(leaf) for leaf in jax.tree.leaves(found)])


def schedule(count):
    return jnp.where(count < 3, 0.0, 1.0)


@pytest.mark.cases
@pytest.mark.parametrize(
    ("optimizer", "plain", "ratio"),
    [
        (optax.MultiSteps(optax.adam(1.0), 2), optax.adam(1.0), 1),
        (optax.MultiSteps(optax.sgd(1.0), 3).gradient_transformation(), optax.sgd(1.0), 1),
        (optax.apply_every(3), "sgd", 1 / 3),
        (optax.adam(optax.linear_schedule(0.0, 1.0, 10)), optax.adam(1.0), 10),
        (optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(schedule)), "adam", 1),
        (optax.apply_if_finite(optax.MultiSteps(optax.adam(1.0), 2).gradient_transformation(), 3),
         optax.adam(1.0), 1),
        (optax.inject_hyperparams(optax.sgd)(schedule), optax.sgd(1.0), 1),
    ],
)  # fmt: skip
def test_the_first_step_that_is_not_zero_is_that_of_the_plain_optimizer(optimizer, plain, ratio):
    np.testing.assert_allclose(multipliers(optimizer), ratio * multipliers(plain), rtol=1e-4)


@pytest.mark.thorough
def test_explicit_mode_follows_an_optimizer_that_accumulates():
    accumulating, plain = optax.MultiSteps(optax.adam(1.0), 2), optax.adam(1.0)
    found, expected = (multipliers(tx, "explicit") for tx in (accumulating, plain))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.thorough
def test_each_leaf_takes_its_own_first_step():
    late = optax.chain(optax.sgd(1.0), optax.scale_by_schedule(schedule))
    parts = {"now": optax.adam(1.0), "late": late, "never": optax.set_to_zero()}
    optimizer = optax.multi_transform(parts, {"v": "now", "w": "late"})
    assert first_moves(resolve_optimizer(optimizer), PARAMS) == (1, 4)
    expected = [multipliers("adam")[0], multipliers("sgd")[1]]
    np.testing.assert_allclose(multipliers(optimizer), expected, rtol=1e-4)
    frozen = optax.multi_transform(parts, {"v": "now", "w": "never"})
    np.testing.assert_allclose(multipliers(frozen), [expected[0], 1], rtol=1e-4)


@pytest.mark.thorough
def test_under_jit_the_same_step_is_taken():
    def run(params):
        return jinit.calibrate(
            params, model, X, lambda y: jnp.sum(y**2), samples=1,
            optimizer=optax.MultiSteps(optax.adam(1.0), 2),
        ).multipliers  # fmt: skip

    found = [float(leaf) for leaf in jax.tree.leaves(jax.jit(run)(PARAMS))]
    np.testing.assert_allclose(found, multipliers("adam"), rtol=1e-4)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (optax.set_to_zero(), r"changes nothing in its first 1000 steps; pass it without the sch"),
        (optax.sgd(lambda count: 0.0), "changes nothing in its first 1000 steps"),
        (optax.lbfgs(), r"asks for more than gradients and parameters, such as the loss \(.*'value"
                        r"_fn'\); pass it without its line search, for example optax.lbfgs\("),
        (optax.adam, r"is not known; call it, as in optimizer=adam\(1.0\)"),
        (0.1, r"optimizer=0.1 is not known; a learning rate is no part of it: pass 'adam', 'sgd'"),
        ("Adam", "optimizer='Adam' is not known; pass 'adam'"),
        ("lamb", r"optimizer='lamb' is not known; .* transformation, such as optax.lamb\(1.0\)"),
        ("adamm", r"optimizer='adamm' is not known; .* transformation, such as optax.adamw\(1.0"),
        (nnx.Optimizer(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), optax.adam(0.1), wrt=nnx.Param),
         "it is a Optimizer that holds one: pass its .tx, without the learning rate"),
        (TrainState.create(apply_fn=model, params=PARAMS, tx=optax.adam(0.1)),
         "it is a TrainState that holds one: pass its .tx, without the learning rate"),
        (optax.GradientTransformation, "is not known; call it"),
        (None, "optimizer=None is not known; pass 'adam', 'sgd' or an optax transformation"),
    ],
)  # fmt: skip
def test_what_is_no_optimizer_is_refused_with_what_to_pass(optimizer, message):
    with pytest.raises(ValueError, match=message):
        multipliers(optimizer)


@pytest.mark.thorough
@pytest.mark.parametrize("optimizer", [
    optax.lbfgs(1.0, linesearch=None), optax.contrib.schedule_free(optax.sgd(1.0), 1.0),
    optax.adafactor(1.0), optax.contrib.muon(1.0),
])  # fmt: skip
def test_other_optimizers_are_measured(optimizer):
    found = multipliers(optimizer)
    assert np.isfinite(found).all()
    assert (found != 1).all()


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [(optax.lbfgs(), "asks for more than gradients and parameters"),
     (optax.adam, r"optimizer=adam is not called; pass adam\(1e-3\), or a function of width")],
)  # fmt: skip
def test_a_coordinate_check_refuses_them_alike(optimizer, message):
    def make(width):
        return {"w": jnp.ones((4, width))}, lambda p, x: x @ p["w"]

    with pytest.raises(ValueError, match=message):
        jinit.coord_check(make, [4, 8], X, jnp.sum, optimizer=optimizer, steps=1)
