"""What calibration costs at depth 4, 16 and 64: ``python -m tests.benchmarks.calibration``."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import jinit
from jinit._tables import format_table
from tests.empirical.models import products, random_loss, tanh_net, tanh_params

WIDTH, BATCH = 128, 64


def draw(key: jax.Array) -> jax.Array:
    """Draws the inputs."""
    return jax.random.normal(key, (BATCH, WIDTH))


def timed(fn: Callable[[], Any]) -> float:
    """Returns the seconds until a call's results are there."""
    start = time.perf_counter()
    jax.block_until_ready(fn())
    return time.perf_counter() - start


def rows(depth: int) -> list[list[str]]:
    """Measures the plain gradient and both functions at one depth."""
    params, x = tanh_params(depth, WIDTH), draw(jax.random.key(0))
    gradient = jax.jit(jax.grad(lambda p: random_loss(tanh_net(p, x), jax.random.key(1))))
    plain = products(tanh_net, params, x)
    cases: dict[str, Callable[[Any], Any]] = {
        "plain gradient": gradient,
        "empirical_init": lambda p: jinit.empirical_init(p, tanh_net, draw, random_loss),
        "calibrate": lambda p: jinit.calibrate(p, tanh_net, draw, random_loss).params,
    }
    base = 0.0
    table = []
    for name, fn in cases.items():
        first, second = timed(lambda: fn(params)), timed(lambda: fn(params))  # noqa: B023
        base = base or first
        evaluations = products(fn, params) / plain
        table.append(
            [str(depth), name, f"{evaluations:.1f}", f"{first:.2f}", f"{first / base:.1f}",
             f"{1e3 * second:.1f}"]
        )  # fmt: skip
    return table


def main() -> None:
    """Prints one table."""
    jnp.zeros(()).block_until_ready()
    columns = [
        ">depth", "function", ">forward passes", ">first call s", ">of plain", ">second call ms",
    ]  # fmt: skip
    print(format_table(columns, [row for depth in (4, 16, 64) for row in rows(depth)]))


if __name__ == "__main__":
    main()
