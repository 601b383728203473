"""Keras's defaults for the whole process."""

import re
import threading

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jinit
from jinit.initializers import xavier_uniform
from tests.defaults.test_contexts import FLAX, KERAS, SMALL, apply, in_a_thread, normalised

KEY = jax.random.key(0)


def kernel(**given):
    return np.asarray(nn.Dense(3, **given).init(KEY, SMALL)["params"]["kernel"])


def nnx_epsilon():
    return nnx.LayerNorm(2, rngs=nnx.Rngs(0)).epsilon


@pytest.mark.thorough
def test_it_holds_in_every_thread_until_it_is_undone():
    plain, keras = kernel(), kernel(kernel_init=xavier_uniform())
    undo = jinit.global_keras_initializers()
    for run in (lambda call: call(), in_a_thread):
        np.testing.assert_array_equal(run(kernel), keras)
        assert run(apply) == KERAS
        assert run(nnx_epsilon) == 1e-3
    undo()
    undo()
    for run in (lambda call: call(), in_a_thread):
        np.testing.assert_array_equal(run(kernel), plain)
        assert run(apply) == FLAX
        assert run(nnx_epsilon) == 1e-6


def test_it_reaches_a_thread_that_runs_already():
    inside, done, results = threading.Event(), threading.Event(), []

    def work():
        results.append(apply())
        inside.set()
        done.wait(10)
        results.append(apply())

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(10)
    with jinit.global_keras_initializers():
        done.set()
        thread.join()
    assert results == [FLAX, KERAS]


def test_bound_modules_and_functions_of_flax():
    bound = nn.LayerNorm(use_scale=False, use_bias=False).bind({})
    with jinit.global_keras_initializers():
        assert bound(SMALL)[0, 1] == KERAS
        assert (
            nn.apply(lambda m: m(SMALL), nn.LayerNorm(use_scale=False, use_bias=False))({})[0, 1]
            == KERAS
        )
    assert bound(SMALL)[0, 1] == FLAX


@pytest.mark.parametrize("run", [lambda call: call(), in_a_thread])
def test_what_was_traced_is_traced_again_in_both_directions(run):
    outside = jax.jit(lambda x: apply(x=x))
    assert run(lambda: outside(SMALL)) == FLAX
    with jinit.global_keras_initializers():
        assert run(lambda: outside(SMALL)) == KERAS
    assert run(lambda: outside(SMALL)) == FLAX
    inside = jax.jit(lambda x: apply(x=x))
    with jinit.global_keras_initializers():
        assert run(lambda: inside(SMALL)) == KERAS
    assert run(lambda: inside(SMALL)) == FLAX


def test_a_threads_own_context_goes_before_it():
    with jinit.global_keras_initializers():
        with jinit.keras_defaults(norm_epsilon=0.1):
            assert apply() == normalised(0.1)
            assert in_a_thread(apply) == KERAS
        with jinit.keras_defaults(norm_epsilon=None):
            assert apply() == FLAX
        assert apply() == KERAS
    with jinit.keras_defaults(norm_epsilon=0.1), jinit.global_keras_initializers():
        assert apply() == normalised(0.1)


def test_of_several_the_newest_counts_in_whatever_order_they_end():
    first = jinit.global_keras_initializers()
    second = jinit.global_keras_initializers(norm_layer_epsilon_override=0.1)
    assert apply() == normalised(0.1)
    first()
    assert apply() == normalised(0.1)
    again = jinit.global_keras_initializers()
    assert apply() == KERAS
    again()
    assert apply() == normalised(0.1)
    second()
    assert apply() == FLAX


def momentum():
    return nnx.BatchNorm(2, rngs=nnx.Rngs(0)).momentum


@pytest.mark.thorough
def test_the_momentum_is_torchs_and_none_leaves_alone():
    with jinit.global_keras_initializers():
        assert momentum() == 0.99
    with jinit.global_keras_initializers(batchnorm_momentum_override=0.3):
        assert momentum() == 0.7
        x = jnp.array([[1.0], [3.0]])
        norm = nn.BatchNorm(use_running_average=False)
        _, updates = norm.apply(norm.init(KEY, x), x, mutable=["batch_stats"])
        assert updates["batch_stats"]["mean"] == pytest.approx(0.3 * 2)
    with jinit.global_keras_initializers(True, None, None):
        assert (momentum(), nnx_epsilon()) == (0.99, 1e-6)
        assert apply() == FLAX
    plain = kernel()
    with jinit.global_keras_initializers(False):
        np.testing.assert_array_equal(kernel(), plain)
        assert apply() == KERAS


def test_it_shares_the_table_of_keras_defaults():
    with jinit.global_keras_initializers():
        described = jinit.describe(nn.LayerNorm(), SMALL)
    assert [(n.value, n.decided_by) for n in described.norms] == [(1e-3, "keras")]


def test_everything_is_as_it_was():
    method, constructor = nn.Module._call_wrapped_method, nnx.Linear.__init__
    with pytest.raises(ZeroDivisionError), jinit.global_keras_initializers():
        apply(x=1 // 0)
    assert nn.Module._call_wrapped_method is method
    assert nnx.Linear.__init__ is constructor


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (
            {"batchnorm_momentum_override": 1.5},
            ValueError,
            "batchnorm_momentum_override is the weight of a new batch, in [0, 1] or None, got 1.5",
        ),
        (
            {"norm_layer_epsilon_override": 0},
            ValueError,
            "norm_layer_epsilon_override is a positive number or None, got 0",
        ),
        (
            {"parameter_initialization": nn.Dense(2).init},
            TypeError,
            "parameter_initialization is a bool, got method; "
            "to decorate a function write keras_defaults()(function)",
        ),
    ],
)
def test_bad_input(arguments, kind, message):
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        jinit.global_keras_initializers(**arguments)
