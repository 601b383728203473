"""The multipliers in the optimizers of every framework: matched by path, equal in what they do."""

import re

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import jinit
from tests.empirical.test_modules import (
    Equinox,
    Linen,
    Nnx,
    Stateful,
    X,
    batched,
    linen_variables,
    loss,
    numbers,
)


def chain(result):
    return optax.chain(optax.scale_by_adam(), result.transform(), optax.scale(-0.1))


def objective(y):
    return jnp.mean(y**2)


def linen_steps():
    result = jinit.calibrate(linen_variables(), Linen().apply, X, loss, samples=2)
    state = TrainState.create(
        apply_fn=Linen().apply, params=result.params["params"], tx=chain(result)
    )

    @jax.jit
    def step(state):
        grads = jax.grad(lambda p: objective(state.apply_fn({"params": p}, X)))(state.params)
        return state.apply_gradients(grads=grads)

    for _ in range(3):
        state = step(state)
    return numbers(state.params)


def test_nnx_trains_as_linen_does():
    result = jinit.calibrate(Nnx(nnx.Rngs(0)), X, loss, samples=2)
    model = result.params
    optimizer = nnx.Optimizer(model, chain(result), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        grads = nnx.grad(lambda m: objective(m(X)))(model)
        optimizer.update(model, grads)

    for _ in range(3):
        step(model, optimizer)
    for ours, theirs in zip(numbers(model), linen_steps(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=1e-4)


def test_equinox_trains_as_linen_does():
    result = jinit.calibrate(Equinox(), batched, X, loss, samples=2)
    model, tx = result.params, chain(result)
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state):
        grads = eqx.filter_grad(lambda m: objective(batched(m, X)))(model)
        updates, state = tx.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state

    for _ in range(3):
        model, state = step(model, state)
    for ours, theirs in zip(numbers(model, transposed=True), linen_steps(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=1e-4)


@pytest.mark.thorough
def test_explicit_mode_trains_as_linen_does():
    linen = jinit.calibrate(linen_variables(), Linen().apply, X, loss, mode="explicit", samples=2)
    ours = jinit.calibrate(Nnx(nnx.Rngs(0)), X, loss, mode="explicit", samples=2)
    optimizer = nnx.Optimizer(ours.params, optax.adam(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda m: objective(ours.apply_fn(m, X)))(model))

    step(ours.params, optimizer)
    rest = {k: v for k, v in linen.params.items() if k != "params"}
    params, tx = linen.params["params"], optax.adam(0.1)
    grads = jax.grad(lambda p: objective(linen.apply_fn({"params": p, **rest}, X)))(params)
    params = optax.apply_updates(params, tx.update(grads, tx.init(params), params)[0])
    for mine, theirs in zip(numbers(ours.params), numbers(params), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=2e-3, atol=1e-4)


@pytest.mark.thorough
def test_explicit_mode_leaves_the_state_as_the_plain_call_does():
    result = jinit.calibrate(Stateful(nnx.Rngs(0)), X, loss, mode="explicit", samples=2)

    @nnx.jit
    def step(model):
        return nnx.value_and_grad(lambda m: objective(result.apply_fn(m, X)))(model)

    step(result.params)
    step(result.params)
    assert result.params.seen[...].tolist() == [2, 2, 2]
    assert int(result.params.dropout.rngs.count[...]) == 2
    assert float(jnp.abs(result.params.layers[1].mean[...]).max()) > 0
    # the first layer's outputs are those of the plain model with its kernel scaled
    scales = result.scales["layers"]["0"]
    plain = Stateful(nnx.Rngs(0))
    plain.layers[0].kernel[...] = result.params.layers[0].kernel[...] * scales["kernel"]["a"]
    plain.layers[0].bias[...] = result.params.layers[0].bias[...] * scales["bias"]["a"]
    plain(X)
    plain(X)
    np.testing.assert_allclose(
        result.params.layers[1].mean[...], plain.layers[1].mean[...], rtol=1e-4, atol=1e-6
    )


def test_some_of_the_parameters_may_be_optimized():
    class Lora(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(6, 4, rngs=rngs)
            self.lora = nnx.LoRA(6, 2, 4, rngs=rngs, b_initializer=nnx.initializers.normal(0.1))

        def __call__(self, x):
            return self.linear(x) + self.lora(x)

    result = jinit.calibrate(Lora(nnx.Rngs(0)), X, loss, samples=2)
    model = result.params
    optimizer = nnx.Optimizer(model, chain(result), wrt=nnx.LoRAParam)
    kernel = np.asarray(model.linear.kernel[...])
    grads = nnx.grad(lambda m: objective(m(X)), argnums=nnx.DiffState(0, nnx.LoRAParam))(model)
    optimizer.update(model, grads)
    np.testing.assert_array_equal(model.linear.kernel[...], kernel)
    state = result.transform().init(nnx.state(model, nnx.LoRAParam))
    assert len(jax.tree.leaves(state.multipliers)) == 2


def test_frozen_dicts_are_matched():
    result = jinit.calibrate(linen_variables(), Linen().apply, X, loss, samples=2)
    frozen = nn.FrozenDict(linen_variables()["params"])
    state = result.transform().init(frozen)
    updates, _ = result.transform().update(jax.tree.map(jnp.ones_like, frozen), state)
    expected = result.multipliers["params"]["first"]["kernel"]
    np.testing.assert_allclose(updates["first"]["kernel"], expected * jnp.ones((6, 16)), rtol=1e-6)


def test_a_mismatch_names_the_paths_in_few_lines():
    result = jinit.calibrate(Nnx(nnx.Rngs(0)), X, loss, samples=2)
    other = nnx.state(Stateful(nnx.Rngs(0)), nnx.Param)
    message = (
        "the optimizer's parameters have another structure than those that were calibrated; "
        "calibrate the tree you optimize\n"
        "  only the optimizer has: layers/0/bias, layers/0/kernel, layers/1/bias, layers/1/scale, "
        "layers/2/bias, layers/2/kernel\n"
        "  only the calibration has: first/bias, first/kernel, second/bias, second/kernel"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        result.transform().init(other)
    many = {f"leaf_{number}": jnp.ones(2) for number in range(40)}
    with pytest.raises(ValueError, match=r"leaf_0, leaf_1, .* and 34 more\n") as caught:
        result.transform().init(many)
    assert len(str(caught.value).splitlines()) <= 10
    state = result.transform().init(nnx.state(result.params, nnx.Param))
    with pytest.raises(ValueError, match="another structure than those that were calibrated"):
        result.transform().update(other, state)
