"""Functions called with NNX's objects do to them what a plain call does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jinit.modules.nnx_calls import call, on_objects


class Net(nnx.Module):
    """Every kind of state that Flax's own layers have, and one module twice."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)])
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.again = self.layers[1]
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        self.calls[...] += 1
        y = self.again(self.layers[1](self.layers[0](x)))
        return self.drop(self.norm(y))


X = jax.random.normal(jax.random.key(1), (8, 3))
RUNS = {"as it is": lambda run: run, "jit": jax.jit}


def on_apart(fn, run=lambda run: run):
    """The function, called by way of its arguments taken apart."""
    of_apart = run(lambda apart: call(fn, apart))
    return lambda *args, **kwargs: on_objects(of_apart, args, kwargs)


def bits(tree):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(nnx.as_pure(tree)) if not is_key(x)]


def is_key(x):
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())
def test_every_state_moves_as_in_a_plain_call(run):
    plain, ours = Net(nnx.Rngs(0)), Net(nnx.Rngs(0))
    apply, reference = on_apart(lambda m, x: m(x), run), run_plain(run)
    for _ in range(3):
        np.testing.assert_array_equal(apply(ours, X), reference(plain, X))
    assert bits(nnx.state(ours)) == bits(nnx.state(plain))
    assert ours.drop.rngs.count[...] == 3
    assert ours.calls[...] == 3
    assert ours.again is ours.layers[1]


def run_plain(run):
    return nnx.jit(lambda m, x: m(x)) if run is jax.jit else lambda m, x: m(x)


def test_what_is_not_written_to_does_not_pass_through():
    """So a parameter is the caller's afterwards, whatever it is cast to inside."""
    seen = []

    def run(apart):
        returned = call(lambda m, x: m(x), apart)
        seen.extend(jax.tree_util.keystr(p, simple=True, separator="/") for p in written(returned))
        return returned

    on_objects(run, (Net(nnx.Rngs(0)), X), {})
    assert seen == [
        "0/calls/value",
        "0/drop/rngs/count/value",
        "0/norm/mean/value",
        "0/norm/var/value",
    ]


def written(returned):
    pairs = zip(returned.paths, returned.passed, strict=True)
    return [path for path, number in pairs if number is None]


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())
def test_new_attributes_and_aliases_reach_the_caller(run):
    def grow(model):
        model.head = nnx.Param(jnp.ones(2))
        model.same = model.layers[0]
        return model.head

    model = Net(nnx.Rngs(0))
    returned = on_apart(grow, run)(model)
    assert returned is model.head
    assert model.same is model.layers[0]


def test_objects_stand_anywhere_among_arguments():
    def add(models, *, rngs):
        models["a"].count[...] += 1
        return models["b"][...] + 1, rngs.params()

    class Counter(nnx.Module):
        def __init__(self):
            self.count = nnx.Variable(jnp.zeros(()))

    counter, rngs, variable = Counter(), nnx.Rngs(0), nnx.Variable(jnp.ones(()))
    total, key = on_apart(add)({"a": counter, "b": variable}, rngs=rngs)
    assert total == 2
    assert counter.count[...] == rngs.params.count[...] == 1
    assert key == nnx.Rngs(0).params()


def test_one_object_in_two_places_is_one_object():
    def step(first, second):
        first[...] += 1
        return second[...] * 2

    variable = nnx.Variable(jnp.ones(()))
    assert on_apart(step, jax.jit)(variable, variable) == 4
    assert variable[...] == 2


def test_an_error_leaves_the_objects_as_they_were():
    def fail(model, x):
        model(x)
        raise RuntimeError("after the statistics moved")

    model = Net(nnx.Rngs(0))
    before = bits(nnx.state(model))
    with pytest.raises(RuntimeError):
        on_apart(fail)(model, X)
    assert bits(nnx.state(model)) == before


def test_an_equal_call_traces_once():
    traces = []

    def fn(model, x):
        traces.append(1)
        return model(x)

    model, apply = Net(nnx.Rngs(0)), on_apart(fn, jax.jit)
    for _ in range(3):
        apply(model, X)
    apply(Net(nnx.Rngs(1)), X)
    assert len(traces) == 1


def test_without_objects_a_function_is_called_as_it_is():
    assert on_apart(lambda *args, **kwargs: (args, kwargs))(1, b={"c": 2}) == (
        (1,),
        {"b": {"c": 2}},
    )
