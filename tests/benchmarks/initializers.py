"""Throughput and dispatch against jax.nn.initializers: ``python -m tests.benchmarks.initializers``.

Each row draws the same distribution in float32 with both libraries, in turns, and takes medians.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import jax

from jinit import initializers as ours
from jinit._tables import format_table

theirs = jax.nn.initializers
ROUNDS = {"large": 9, "small": 200}
SHAPES = {"large": (2048, 2048), "small": (64, 64)}
CASES: dict[str, tuple[Callable, Callable]] = {
    "normal": (ours.normal(std=0.02), theirs.normal(0.02)),
    "uniform": (ours.uniform(low=0, high=0.02), theirs.uniform(0.02)),
    "truncated_normal": (
        ours.truncated_normal(std=0.02, relative=True),
        theirs.truncated_normal(0.02),
    ),
    "glorot_uniform": (ours.glorot_uniform(), theirs.glorot_uniform()),
    "he_normal, truncated": (ours.he_normal(truncated=True), theirs.he_normal()),
    "variance_scaling, normal": (
        ours.variance_scaling(1.0, "fan_in", "normal"),
        theirs.variance_scaling(1.0, "fan_in", "normal"),
    ),
    "orthogonal": (ours.orthogonal(), theirs.orthogonal()),
}


def seconds(init: Callable, key: jax.Array, shape: tuple[int, ...]) -> float:
    """Returns the time until a draw is there."""
    start = time.perf_counter()
    jax.block_until_ready(init(key, shape))
    return time.perf_counter() - start


def medians(inits: tuple[Any, ...], shape: tuple[int, ...], rounds: int) -> list[float]:
    """Interleaves the draws, so that a change in the machine's load meets all of them."""
    times: list[list[float]] = [[] for _ in inits]
    keys = jax.random.split(jax.random.key(0), rounds + 1)
    for number, key in enumerate(keys):
        for init, found in zip(inits, times, strict=True):
            spent = seconds(init, key, shape)
            if number:  # the first call compiles
                found.append(spent)
    return [median(found) for found in times]


def row(name: str, size: str) -> list[str]:
    """Measures one distribution in one shape."""
    mine, reference = medians(CASES[name], SHAPES[size], ROUNDS[size])
    shape = "×".join(map(str, SHAPES[size]))
    return [name, shape, f"{1e3 * mine:.3f}", f"{1e3 * reference:.3f}", f"{reference / mine:.2f}"]


def main() -> None:
    """Prints one table."""
    columns = ["distribution", ">shape", ">jinit ms", ">jax ms", ">throughput of jax's"]
    rows = [row(name, size) for size in SHAPES for name in CASES]
    print(format_table(columns, rows))


if __name__ == "__main__":
    main()
