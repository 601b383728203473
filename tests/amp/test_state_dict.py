"""The scales as a dictionary and in checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import serialization
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jinit import amp
from tests.amp.reference import bits

PARAMS = {"w": jnp.arange(3.0), "b": jnp.ones(())}


def trained(num_losses):
    """Returns an optimizer, and its state after two steps of which one overflowed."""
    tx = amp.loss_scaling(optax.adam(0.1), num_losses=num_losses, hysteresis=2)
    state = tx.init(PARAMS)
    for factor in (1.0, np.inf):
        marks = {num_losses - 1: jnp.float32(factor == np.inf)}
        grads = amp.UnscaledGrads(optax.tree.scale(factor, PARAMS), marks)
        _, state = jax.jit(tx.update)(grads, state, PARAMS)
    return tx, state


def test_the_form_is_apex():
    _, state = trained(2)
    assert amp.state_dict(state) == {
        "loss_scaler0": {"loss_scale": 65536.0, "unskipped": 0},
        "loss_scaler1": {"loss_scale": 65536.0, "unskipped": 0},
    }
    assert state.overflow_count.tolist() == [0, 1]
    tx = amp.loss_scaling(optax.sgd(0.1), 4.0)
    _, state = tx.update(PARAMS, tx.init(PARAMS))
    entry = amp.state_dict(state)["loss_scaler0"]
    assert entry == {"loss_scale": 4.0, "unskipped": 1}
    assert [type(value) for value in entry.values()] == [float, int]


SAVED = {
    1: {"loss_scaler0": {"loss_scale": 2.0**-3, "unskipped": 7}},
    2: {
        "loss_scaler0": {"loss_scale": 4.0, "unskipped": 1},
        "loss_scaler1": {"loss_scale": 16.0, "unskipped": 1999},
    },
}
WRAPPED = {
    "alone": lambda state: state,
    "chain": lambda state: (optax.EmptyState(), state),
    "dict": lambda state: {"first": state},
    "masked": lambda state: [optax.MaskedState(state)],
}


@pytest.mark.cases
@pytest.mark.parametrize("num_losses", [1, 2])
@pytest.mark.parametrize("name", WRAPPED)
def test_loading_sets_scales_and_counts_and_nothing_else(num_losses, name):
    state = WRAPPED[name](trained(num_losses)[1])
    before = bits(state)
    loaded = amp.load_state_dict(state, SAVED[num_losses])
    assert amp.state_dict(loaded) == SAVED[num_losses]
    assert bits(state) == before
    reset = {"loss_scale": 1, "growth_count": 1, "overflow_count": 0}
    assert jax.tree.structure(loaded) == jax.tree.structure(state)
    assert bits(optax.tree.set(loaded, **reset)) == bits(optax.tree.set(state, **reset))
    assert not np.any(optax.tree.get(loaded, "overflow_count"))


def test_the_growth_goes_on_where_it_was():
    tx = amp.loss_scaling(optax.sgd(0.1), num_losses=2)
    state = amp.load_state_dict(tx.init(PARAMS), SAVED[2])
    grads = amp.UnscaledGrads(PARAMS, {0: jnp.float32(0), 1: jnp.float32(0)})
    _, state = tx.update(grads, state, PARAMS)
    assert state.loss_scale.tolist() == [4.0, 32.0]
    assert state.growth_count.tolist() == [2, 0]


def test_loading_keeps_the_sharding_and_compiles_nothing():
    mesh = jax.make_mesh((8,), ("x",))
    tx = amp.loss_scaling(optax.sgd(0.1))
    params = jax.device_put(jnp.ones(8), NamedSharding(mesh, P("x")))
    state = jax.device_put(tx.init(params), NamedSharding(mesh, P()))
    update = jax.jit(tx.update)
    _, state = update(params, state, params)
    loaded = amp.load_state_dict(state, SAVED[1])
    assert loaded.loss_scale.sharding == state.loss_scale.sharding
    update(params, loaded, params)
    assert update._cache_size() == 1


@pytest.mark.cases
@pytest.mark.parametrize("num_losses", [1, 2])
@pytest.mark.parametrize("what", ["opt_state", "state_dict"])
@pytest.mark.parametrize("how", ["orbax", "flax"])
def test_round_trips(tmp_path, how, what, num_losses):
    tx, state = trained(num_losses)
    saved = state if what == "opt_state" else amp.state_dict(state)
    fresh = tx.init(PARAMS)
    target = fresh if what == "opt_state" else amp.state_dict(fresh)
    if how == "flax":
        restored = serialization.from_bytes(target, serialization.to_bytes(saved))
    else:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "saved", saved)
            checkpointer.wait_until_finished()
            restored = checkpointer.restore(tmp_path / "saved", target)
    if what == "opt_state":
        assert jax.tree.structure(restored) == jax.tree.structure(state)
        assert bits(restored) == bits(state)
        _, expected = tx.update(amp.UnscaledGrads(PARAMS, {0: 1.0}), state, PARAMS)
        _, resumed = tx.update(amp.UnscaledGrads(PARAMS, {0: 1.0}), restored, PARAMS)
        assert bits(resumed) == bits(expected)
    else:
        loaded = amp.load_state_dict(fresh, restored)
        assert bits(loaded[:2]) == bits(state[:2])


@pytest.mark.parametrize(
    ("saved", "text"),
    [
        (
            SAVED[2],
            "it must hold loss_scaler0, an entry a loss, not loss_scaler0 and loss_scaler1",
        ),
        ({}, "it must hold loss_scaler0, an entry a loss, not nothing"),
        (None, "it must hold loss_scaler0, an entry a loss, not None"),
        (
            {"loss_scaler0": {"loss_scale": 1.0}},
            "loss_scaler0 must hold loss_scale and unskipped, not loss_scale",
        ),
        ({"loss_scaler0": 3.0}, "loss_scaler0 must hold loss_scale and unskipped, not 3.0"),
        (
            {"loss_scaler0": {"loss_scale": np.inf, "unskipped": 2.5}},
            "loss_scaler0.loss_scale must be between 2**-126 and 2**126, not inf; "
            "loss_scaler0.unskipped must be a count, not 2.5",
        ),
        (
            {"loss_scaler0": {"loss_scale": "4", "unskipped": 0}},
            "loss_scaler0.loss_scale must be between 2**-126 and 2**126, not '4'",
        ),
        (
            {"loss_scaler0": {"loss_scale": 4.0, "unskipped": -1}},
            "loss_scaler0.unskipped must be a count, not -1",
        ),
    ],
)
def test_a_dictionary_of_another_shape(saved, text):
    state = amp.loss_scaling(optax.sgd(0.1)).init(PARAMS)
    before = bits(state)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the text is compared below)
        amp.load_state_dict(state, saved)
    assert str(caught.value) == f"the state dict does not fit: {text}"
    assert bits(state) == before


def test_a_state_without_a_scale():
    state = optax.sgd(0.1).init(PARAMS)
    for call in (lambda: amp.state_dict(state), lambda: amp.load_state_dict(state, SAVED[1])):
        with pytest.raises(ValueError, match="opt_state holds no loss_scale where one is needed"):
            call()
