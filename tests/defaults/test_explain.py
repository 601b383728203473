"""What is said of an initializer, of whatever library."""

import functools

import flax.linen as nn
import jax
import pytest

from jinit.defaults.provenance.explain import explain, pinned
from jinit.defaults.tables.gates import Blocks, Joint, PerGate
from jinit.initializers import (
    constant,
    eye,
    kaiming_normal,
    lecun_normal,
    ones,
    orthogonal,
    scaled,
    uniform,
    xavier_uniform,
    zeros,
)


def draw(key, shape, dtype, factor=1):
    raise NotImplementedError


class Callable:
    __call__ = draw


# For an array of shape (8, 2).
CASES = [
    (uniform(low=-0.05, high=0.05), "uniform(low=-0.05, high=0.05)", None),
    (constant([1.0, 2.0]), "constant(value=(1.0, 2.0))", None),
    (eye(), "eye(gain=1)", None),
    (kaiming_normal(mode="fan_out"), "normal(mean=0, std=1)", (8, 2)),
    (xavier_uniform(fans=(3, None)), "uniform(low=-1.095, high=1.095)", (3, 2)),
    (xavier_uniform(fans=(2, 4)), "uniform(low=-1, high=1)", (2, 4)),
    (xavier_uniform(in_axis=-1, out_axis=-2), "uniform(low=-0.7746, high=0.7746)", (2, 8)),
    (scaled(xavier_uniform(fans=(2, 4)), 0.5), "scaled(uniform(low=-1, high=1), 0.5)", (2, 4)),
    (Joint(xavier_uniform(), 8), "uniform(low=-0.5, high=0.5)  # all gates as one", (8, 16)),
    (Joint(orthogonal(), 3), "orthogonal(gain=1)  # all gates as one", None),
    (Blocks((zeros(), ones())), "blocks(0.0, 1.0)", None),
    (0.25, "constant(value=0.25)", None),
    (jax.nn.initializers.zeros, "zeros()", None),
    (jax.nn.initializers.uniform(0.1), "uniform(low=0, high=0.1)", None),
    (jax.nn.initializers.orthogonal(2.0), "orthogonal(gain=2)", None),
    (jax.nn.initializers.he_uniform(), "uniform(low=-0.866, high=0.866)", (8, 2)),
    (
        jax.nn.initializers.variance_scaling(4.0, "fan_in", "normal", out_axis=0, in_axis=1),
        "normal(mean=0, std=1.414)",
        (2, 8),
    ),
    (
        nn.with_partitioning(xavier_uniform(fans=(2, 4)), ("a", "b")),
        "uniform(low=-1, high=1)",
        (2, 4),
    ),
    (functools.partial(draw, factor=2), "draw", None),
    (Callable(), "Callable", None),
]


@pytest.mark.parametrize(("init", "text", "fans"), CASES, ids=[text for _, text, _ in CASES])
def test_what_is_said(init, text, fans):
    assert explain(init, (8, 2)) == (text, fans)


def test_jaxs_lecun_normal_is_cut_and_widened():
    ours, theirs = lecun_normal(truncated=True), jax.nn.initializers.lecun_normal()
    assert explain(theirs, (8, 2)) == explain(ours, (8, 2))
    assert explain(theirs, (8, 2))[0].startswith("truncated_normal(mean=0, std=0.4019,")


def test_the_gate_that_is_drawn_next():
    init = PerGate((zeros(), ones()))
    assert pinned(init) == zeros()
    init(None, (2,))
    assert pinned(init) == ones()
    assert pinned(init.inits[0]) == zeros()
