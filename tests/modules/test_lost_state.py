"""A state of NNX that a function is given is a value: what is written there must be returned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jinit.modules.lost_state import check_states, holds_states
from jinit.modules.nnx_calls import Apart

X = jnp.ones((4, 3))


class Net(nnx.Module):
    """Statistics, random counters and a variable of the user's."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        self.calls[...] += 1
        return self.drop(self.norm(self.linear(x)))


GRAPHDEF, STATE = nnx.split(Net(nnx.Rngs(0)))


def merged(state):
    return nnx.merge(GRAPHDEF, state)


def both(state, x):
    model = merged(state)
    return model(x), nnx.state(model)


def in_eval_mode(state, x):
    model = merged(state)
    model.eval()
    return model.drop(model.norm(model.linear(x)))


def loops(state, x):
    """Every state passes through transforms of NNX, and none is written to."""
    model = merged(state)
    model.eval()
    layer = nnx.remat(lambda model, x: model.norm(model.linear(x)))
    y = nnx.jit(layer)(model, x)
    _, ys = nnx.scan(lambda m, x: (m, m.norm(m.linear(x))))(model, jnp.stack([x, x]))
    return y, nnx.cond(x.sum() > 0, lambda m: m.linear(x), lambda m: m.linear(-x), model), ys


def apart(*args):
    return Apart(args, {})


@pytest.mark.parametrize("fn", [both, in_eval_mode, loops])
def test_nothing_is_lost(fn):
    check_states(fn, apart(STATE, X))


def in_a_loop(state, x):
    model = merged(state)
    return nnx.scan(lambda m, x: (m, m(x)))(model, x[None])[1]


LOST = (
    r"the function wrote to a state that it was given, and what it wrote would be lost: "
    r"calls \(Variable\), drop/rngs/count \(RngCount\), norm/mean \(BatchStat\), "
    r"norm/var \(BatchStat\)\. Pass the NNX module itself in place of its state, or return the "
    r"new state, as nnx\.state\(model\), as well"
)


@pytest.mark.parametrize("fn", [lambda s, x: merged(s)(x), in_a_loop], ids=["call", "loop"])
def test_what_is_lost_is_named(fn):
    with pytest.raises(ValueError, match=LOST):
        check_states(fn, apart(STATE, X))


def test_part_of_it_returned_is_not_enough():
    def some(state, x):
        model = merged(state)
        return model(x), nnx.state(model, nnx.BatchStat)

    with pytest.raises(
        ValueError, match=r"lost: calls \(Variable\), drop/rngs/count \(RngCount\)\."
    ):
        check_states(some, apart(STATE, X))


def test_the_given_state_is_as_it_was():
    before = [
        np.asarray(x)
        for x in jax.tree.leaves(nnx.to_pure_dict(nnx.state(merged(STATE), nnx.BatchStat)))
    ]
    check_states(both, apart(STATE, X))
    after = jax.tree.leaves(nnx.to_pure_dict(nnx.state(merged(STATE), nnx.BatchStat)))
    for new, old in zip(after, before, strict=True):
        np.testing.assert_array_equal(new, old)


def test_only_states_are_looked_at():
    assert holds_states(apart(1.0, {"a": [STATE]}))
    assert not holds_states(apart(Net(nnx.Rngs(0)), X))
