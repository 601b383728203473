"""What calibration costs beside the gradient of the same net.

``python -m tests.benchmarks.calibration`` prints, for tanh networks of 4 to 64 layers and
transformers of 12 and 24, how many forward passes a call makes, the seconds of the first call
(tracing and compilation included) and of the next, and their ratios to those of the plain
``jax.jit(jax.grad(loss))``. Every row's network has a process of its own; imports are left out.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import jinit
import jinit.empirical
from jinit._tables import format_table
from tests.empirical.models import products, random_loss, tanh_net, tanh_params

NETS = {
    **{f"tanh {depth}": depth for depth in (4, 16, 32, 64)},
    **{f"transformer {depth}": depth for depth in (12, 24)},
}
WIDTH, BATCH, LENGTH, REPEATS = 128, 64, 32, 5


class Block(nn.Module):
    """A pre-LN block of a transformer."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies attention and a two-layer network, each beside the stream."""
        x = x + nn.MultiHeadDotProductAttention(num_heads=4)(nn.LayerNorm()(x))
        return x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(4 * WIDTH)(nn.LayerNorm()(x))))


class Transformer(nn.Module):
    """A stack of them, written as a loop in Python."""

    depth: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the blocks, and a head."""
        for _ in range(self.depth):
            x = Block()(x)
        return nn.Dense(10)(nn.LayerNorm()(x))


def net(name: str) -> tuple[Callable[..., Any], Any, Callable[[jax.Array], jax.Array]]:
    """Returns a network's apply function, its parameters, and what draws its inputs."""
    kind, depth = name.split()
    if kind == "tanh":
        params = tanh_params(int(depth), WIDTH)
        return tanh_net, params, lambda key: jax.random.normal(key, (BATCH, WIDTH))
    module = Transformer(int(depth))
    shape = (BATCH // 8, LENGTH, WIDTH)
    params = jax.jit(module.init)(jax.random.key(0), jnp.ones(shape))
    return module.apply, params, lambda key: jax.random.normal(key, shape)


def timed(fn: Callable[[], Any]) -> float:
    """Returns the seconds until a call's results are there."""
    start = time.perf_counter()
    jax.block_until_ready(fn())
    return time.perf_counter() - start


def measure(name: str) -> list[list[Any]]:
    """Measures the plain gradient and both functions on one network."""
    apply_fn, params, draw = net(name)
    x = draw(jax.random.key(0))
    gradient = jax.jit(jax.grad(lambda p: random_loss(apply_fn(p, x), jax.random.key(1))))
    plain = products(apply_fn, params, x)
    cases: dict[str, Callable[[Any], Any]] = {
        "plain gradient": gradient,
        "calibrate": lambda p: jinit.calibrate(p, apply_fn, draw, random_loss).params,
        "empirical_init": lambda p: jinit.empirical_init(p, apply_fn, draw, random_loss),
    }
    rows = []
    for case, fn in cases.items():
        first = timed(lambda fn=fn: fn(params))
        warm = min(timed(lambda fn=fn: fn(params)) for _ in range(REPEATS))
        rows.append([name, case, products(fn, params) / plain, first, warm])
    return rows


def table(rows: list[list[Any]]) -> str:
    """Lays out the rows with the ratios to the first of each network."""
    columns = [
        "network", "function", ">forward passes", ">first call s", ">of plain", ">next call ms",
        ">of plain",
    ]  # fmt: skip
    base = {name: (first, warm) for name, case, _, first, warm in rows if case.startswith("plain")}
    return format_table(
        columns,
        [
            [
                name, case, f"{passes:.1f}", f"{first:.2f}", f"{first / base[name][0]:.2f}",
                f"{1e3 * warm:.1f}", f"{warm / base[name][1]:.1f}",
            ]
            for name, case, passes, first, warm in rows
        ],
    )  # fmt: skip


def main() -> None:
    """Prints one table; with a network's name, its rows as JSON."""
    jnp.zeros(()).block_until_ready()
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
        return
    rows = []
    for name in NETS:
        command = [sys.executable, "-m", "tests.benchmarks.calibration", name]
        rows += json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    print(table(rows))


if __name__ == "__main__":
    main()
