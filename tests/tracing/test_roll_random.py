"""Random programs of repeated and disturbed blocks, rolled and compared in float64."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tracing.rolling import check

WIDTH, MOST_BLOCKS, MOST_STEPS = 3, 6, 4
OPERATIONS = (
    "product", "cast", "tied", "bias", "gain", "sum", "larger", "sine", "relu", "scale", "noise",
    "branch", "data",
)  # fmt: skip
DISTURBANCES = ("left out", "one more", "another scale", "earlier weight", "first block", "rotated")


class Step(NamedTuple):
    """An operation on two of the values at hand, by their place."""

    operation: str
    first: int
    second: int


class Program(NamedTuple):
    steps: list
    blocks: int
    carried: int
    disturbed: dict
    outputs: list
    penalized: int


steps = st.builds(Step, st.sampled_from(OPERATIONS), st.integers(0, 8), st.integers(0, 8))
blocks = st.integers(0, MOST_BLOCKS - 1)
places = st.tuples(blocks, st.integers(0, MOST_STEPS - 1))
programs = st.builds(
    Program,
    steps=st.lists(steps, min_size=1, max_size=MOST_STEPS),
    blocks=st.integers(3, MOST_BLOCKS),
    carried=st.integers(1, 3),
    disturbed=st.dictionaries(places, st.sampled_from(DISTURBANCES), max_size=2),
    outputs=st.lists(places, max_size=3),
    penalized=st.integers(-4 * MOST_BLOCKS * MOST_STEPS, MOST_BLOCKS * MOST_STEPS - 1),
)


def build(program):
    """Writes a program as the function that a user might have written, block after block."""

    def fn(variables, data):
        cast = [2.0 * w for w in variables["weights"]]
        carry = [data["x"] * (i + 1.0) for i in range(program.carried)]
        seen = {}
        for block in range(program.blocks):
            here = []
            order = list(enumerate(program.steps))
            if program.disturbed.get((block, 0)) == "rotated":
                order = order[1:] + order[:1]
            for place, step in order:
                disturbance = program.disturbed.get((block, place))
                if disturbance == "left out":
                    continue
                leaf = block * MOST_STEPS + place
                if disturbance == "earlier weight":
                    leaf = max(leaf - MOST_STEPS, 0)
                values = [*carry, *here, data["x"], data["y"]]
                x, y = values[step.first % len(values)], values[step.second % len(values)]
                if disturbance == "first block":
                    y = seen.get((0, place), y)
                scale = 0.7 if disturbance == "another scale" else 0.6
                value = apply(step.operation, x, y, variables, cast, leaf, data, scale)
                here.append(jnp.cos(value) if disturbance == "one more" else value)
                seen[block, place] = here[-1]
            carry[: len(here)] = here[-len(carry) :]
            carry[0] = jnp.tanh(carry[0])
        outputs = [carry, [seen[place] for place in program.outputs if place in seen]]
        if program.penalized >= 0:
            outputs.append(jnp.sum(variables["weights"][program.penalized] ** 2))
        return outputs

    return fn


def apply(operation, x, y, variables, cast, leaf, data, scale):
    match operation:
        case "product":
            return x @ variables["weights"][leaf]
        case "cast":
            return x @ cast[leaf]
        case "tied":
            return x @ variables["tied"]
        case "bias":
            return x + variables["vectors"][leaf]
        case "gain":
            return x * variables["vectors"][leaf]
        case "sum":
            return 0.5 * (x + y)
        case "larger":
            return jnp.maximum(x, y)
        case "sine":
            return jnp.sin(x)
        case "relu":
            return jax.nn.relu(x) + 0.1 * y
        case "scale":
            return scale * x
        case "noise":
            return x * jax.random.uniform(jax.random.fold_in(data["key"], leaf))
        case "branch":
            return jax.lax.cond(x.sum() > 0, lambda x: 2.0 * x, lambda x: x - y, x)
        case _:
            return x * data["each"][leaf % len(data["each"])]


@pytest.mark.thorough
@settings(max_examples=25, deadline=None)
@given(program=programs, frozen=st.integers(0, 2**32 - 1))
def test_any_program_keeps_its_values_and_gradients(program, frozen):
    with jax.enable_x64(True):
        numbers = np.random.default_rng(0)
        count = MOST_BLOCKS * MOST_STEPS

        def normal(*shape):
            return jnp.asarray(numbers.normal(size=shape))

        variables = {
            "weights": [normal(WIDTH, WIDTH) for _ in range(count)],
            "vectors": [normal(WIDTH) for _ in range(count)],
            "tied": normal(WIDTH, WIDTH),
        }
        data = {
            "x": normal(WIDTH), "y": normal(WIDTH), "each": [normal(WIDTH) for _ in range(5)],
            "key": jax.random.key(1),
        }  # fmt: skip
        flags = np.random.default_rng(frozen).random(2 * count + 1) < (frozen % 3) / 2
        check(build(program), variables, data, trainable=flags.tolist(), least_saved=1,
              tolerance=1e-9)  # fmt: skip
