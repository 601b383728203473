"""Arguments by position: what torch and JAX mean by them, or an error that says what to write."""

import inspect
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jinit import initializers

BY_NAME = "gives by position what is given by name, because systems differ: write "
KEYWORD_ONLY = {
    "normal": {"mean", "std"},
    "uniform": {"low", "high"},
    "truncated_normal": {"mean", "std", "low", "high", "relative"},
    "xavier_normal": {"gain", "truncated"},
    "xavier_uniform": {"gain"},
    "kaiming_normal": {"negative_slope", "mode", "nonlinearity", "truncated"},
    "kaiming_uniform": {"negative_slope", "mode", "nonlinearity"},
}


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: initializers.normal(0.02),
            f"normal(0.02) {BY_NAME}normal(mean=0.02) as in torch or normal(std=0.02) as in JAX",
        ),
        (
            lambda: initializers.uniform(0.1),
            f"uniform(0.1) {BY_NAME}uniform(low=0.1) as in torch or uniform(high=0.1, low=0.0) "
            "as in JAX",
        ),
        (
            lambda: initializers.truncated_normal(0.02),
            f"truncated_normal(0.02) {BY_NAME}truncated_normal(mean=0.02) as in torch or "
            "truncated_normal(std=0.02, relative=True) as in JAX",
        ),
        (
            lambda: initializers.normal(0.0, 0.02),
            f"normal(0.0, 0.02) {BY_NAME}normal(mean=0.0, std=0.02) as in torch",
        ),
        (
            lambda: initializers.normal(0.02, jnp.bfloat16),
            f"{BY_NAME}normal(std=0.02, dtype=<class 'jax.numpy.bfloat16'>) as in JAX",
        ),
        (
            lambda: initializers.kaiming_normal(0),
            f"kaiming_normal(0) {BY_NAME}kaiming_normal(negative_slope=0) as in torch or "
            "kaiming_normal(in_axis=0) as in JAX",
        ),
        (
            lambda: initializers.kaiming_uniform(math.sqrt(5)),
            f"{BY_NAME}kaiming_uniform(negative_slope=2.23606797749979) as in torch",
        ),
        (
            lambda: initializers.xavier_uniform(2),
            f"{BY_NAME}xavier_uniform(gain=2) as in torch or xavier_uniform(in_axis=2) as in JAX",
        ),
        (
            lambda: initializers.lecun_normal(1),
            f"{BY_NAME}lecun_normal(in_axis=1) as in JAX; a seed, as in Keras, is the key it "
            "draws with",
        ),
        (
            lambda: initializers.variance_scaling(1.0, "fan_in", "normal", 1),
            "distribution='normal', in_axis=1) as in JAX; a seed, as in Keras, is the key",
        ),
        (
            lambda: initializers.orthogonal(2.0, 0),
            f"{BY_NAME}orthogonal(gain=2.0, out_axis=0) as in JAX; a seed",
        ),
        (lambda: initializers.normal("a"), "normal('a'): give the arguments by name, mean, std"),
        (
            lambda: initializers.truncated_normal(0, 1, -2, 2, True),
            "truncated_normal(0, 1, -2, 2, True): give the arguments by name, mean, std, low",
        ),
    ],
)
def test_a_position_that_means_two_things_says_what_to_write(call, text):
    with pytest.raises(TypeError, match=re.escape(text)):
        call()


@pytest.mark.parametrize("name", KEYWORD_ONLY)
def test_the_signature_says_so_too(name):
    parameters = inspect.signature(getattr(initializers, name)).parameters
    by_name = {p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY}
    assert by_name == set(parameters)
    assert KEYWORD_ONLY[name] <= by_name


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (initializers.constant(0.5), initializers.constant(value=0.5)),
        (initializers.constant(0.5, "float16"), initializers.constant(value=0.5, dtype="float16")),
        (initializers.orthogonal(2.0), initializers.orthogonal(gain=2.0)),
        (
            initializers.variance_scaling(2.0, "fan_out", "uniform"),
            initializers.variance_scaling(scale=2.0, mode="fan_out", distribution="uniform"),
        ),
        (initializers.eye(2.0), initializers.eye(gain=2.0)),
        (initializers.dirac(2), initializers.dirac(groups=2)),
        (initializers.sparse(0.5, 0.1), initializers.sparse(sparsity=0.5, std=0.1)),
        (
            initializers.delta_orthogonal(2.0, -1, "float32"),
            initializers.delta_orthogonal(gain=2.0, dtype="float32"),
        ),
    ],
)
def test_a_position_that_means_one_thing_is_taken(given, meant):
    assert given == meant


@pytest.mark.thorough
def test_what_is_written_then_draws_what_jax_draws():
    key, shape = jax.random.key(3), (7, 5)
    pairs = [
        (initializers.normal(std=0.02), jax.nn.initializers.normal(0.02)),
        (initializers.uniform(low=0.0, high=0.1), jax.nn.initializers.uniform(0.1)),
        (
            initializers.truncated_normal(std=0.02, relative=True),
            jax.nn.initializers.truncated_normal(0.02),
        ),
    ]
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours(key, shape), theirs(key, shape), rtol=1e-5, atol=1e-7)


def test_an_argument_given_twice_is_an_error():
    with pytest.raises(TypeError, match=r"^orthogonal got gain twice$"):
        initializers.orthogonal(2.0, gain=3.0)
    with pytest.raises(TypeError, match=r"^normal got std twice$"):
        initializers.normal(std=1.0, stddev=2.0)
