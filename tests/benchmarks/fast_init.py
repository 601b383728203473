"""Time and memory to first parameters: ``python -m tests.benchmarks.fast_init``.

Every figure is of a process of its own, which has imported the libraries and started the backend
before the clock is started. The ways of one model take turns, so that a change in the machine's
load meets all of them. ``--part`` chooses: ``time`` against ``jax.jit(init)`` and ``init`` itself,
``memory`` at a billion parameters, ``sharded`` on eight simulated devices, ``numbers`` a second.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from jinit._tables import format_table

WAYS = ("fast", "jit", "eager")
MODELS = (
    *(f"{kind}-{depth}" for kind in ("linen", "nnx") for depth in (12, 24, 48)),
    "resnet-50",
    "widths-50",
)
BILLION = "linen-19-2048"  # layers and width


def transformer(depth: int, width: int) -> Any:
    """A transformer encoder with a vocabulary of 10,000, in linen."""
    import flax.linen as nn

    class Transformer(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            x = nn.Embed(10_000, width)(tokens)
            for _ in range(depth):
                y = nn.LayerNorm()(x)
                x = x + nn.MultiHeadDotProductAttention(8)(y, y)
                x = x + nn.Dense(width)(nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x))))
            return nn.Dense(10_000)(nn.LayerNorm()(x))

    return Transformer()


def transformer_nnx(depth: int, width: int) -> Any:
    """The same in NNX: what constructs it."""
    from flax import nnx

    class Block(nnx.Module):
        def __init__(self, rngs):
            self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
            self.attention = nnx.MultiHeadAttention(8, width, decode=False, rngs=rngs)
            self.wide = nnx.Linear(width, 4 * width, rngs=rngs)
            self.narrow = nnx.Linear(4 * width, width, rngs=rngs)

    class Transformer(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(10_000, width, rngs=rngs)
            self.blocks = nnx.List([Block(rngs) for _ in range(depth)])
            self.norm = nnx.LayerNorm(width, rngs=rngs)
            self.head = nnx.Linear(width, 10_000, rngs=rngs)

    return Transformer


def resnet() -> Any:
    """A ResNet-50 in linen."""
    import flax.linen as nn

    class Block(nn.Module):
        features: int
        stride: int

        @nn.compact
        def __call__(self, x):
            features, stride = self.features, (self.stride, self.stride)
            y = x
            for width, size, step in ((1, 1, (1, 1)), (1, 3, stride), (4, 1, (1, 1))):
                y = nn.Conv(width * features, (size, size), step, use_bias=False)(y)
                y = nn.BatchNorm(use_running_average=False)(y)
                y = nn.relu(y) if width == 1 else y
            if x.shape != y.shape:
                x = nn.Conv(4 * features, (1, 1), stride, use_bias=False)(x)
                x = nn.BatchNorm(use_running_average=False)(x)
            return nn.relu(x + y)

    class ResNet(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.BatchNorm(use_running_average=False)(nn.Conv(64, (7, 7), (2, 2))(x)))
            for stage, blocks in enumerate((3, 4, 6, 3)):
                for block in range(blocks):
                    x = Block(64 * 2**stage, 2 if stage and not block else 1)(x)
            return nn.Dense(1000)(x.mean((1, 2)))

    return ResNet()


def widths(count: int) -> Any:
    """A net whose layers all differ in width, in linen."""
    import flax.linen as nn

    class Widths(nn.Module):
        @nn.compact
        def __call__(self, x):
            for number in range(count):
                x = nn.relu(nn.Dense(64 + 7 * number)(x))
            return x

    return Widths()


def problem(name: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Returns an initialization and its arguments beside the key."""
    import jax.numpy as jnp

    kind, *sizes = name.split("-")
    if kind == "resnet":
        return resnet().init, (jnp.zeros((1, 64, 64, 3)),)
    if kind == "widths":
        return widths(int(sizes[0])).init, (jnp.zeros((1, 16)),)
    depth, width = int(sizes[0]), int(sizes[1]) if len(sizes) > 1 else 512
    if kind == "linen":
        return transformer(depth, width).init, (jnp.zeros((1, 16), jnp.int32),)
    from flax import nnx

    made = transformer_nnx(depth, width)
    return lambda key: nnx.split(made(nnx.Rngs(key)))[1], ()


def peak_bytes() -> int:
    """Returns the most memory that this process has held."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(name: str, way: str, dtype: str) -> dict[str, float]:
    """Initializes twice in this process, with one key and another."""
    import jax

    import jinit

    init, rest = problem(name)
    if dtype != "float32":
        init = narrowed(init, dtype)
    shardings = spread_out if jax.device_count() > 1 else None
    run = {
        "fast": lambda: jinit.fast_init(init, out_shardings=shardings),
        "jit": lambda: jax.jit(init),
        "eager": lambda: init,
    }[way]()
    first, second = jax.random.key(0), jax.random.key(1)
    jax.block_until_ready(jax.numpy.zeros(2) + 1)
    base, start = peak_bytes(), time.perf_counter()
    made = jax.block_until_ready(run(first, *rest))
    cold, peak = time.perf_counter() - start, peak_bytes() - base
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(made) if hasattr(leaf, "nbytes"))
    numbers = sum(leaf.size for leaf in jax.tree.leaves(made))
    del made
    start = time.perf_counter()
    jax.block_until_ready(run(second, *rest))
    warm = time.perf_counter() - start
    return {"cold": cold, "warm": warm, "peak": peak, "bytes": size, "numbers": numbers}


def narrowed(init: Callable[..., Any], dtype: str) -> Callable[..., Any]:
    """Returns an initialization whose floats are cast."""
    import jax

    return lambda *args: jax.tree.map(lambda leaf: leaf.astype(dtype), init(*args))


def spread_out(path: str, leaf: Any) -> Any:
    """Lays the largest axis along all devices."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    mesh = jax.sharding.Mesh(jax.devices(), ("data",))
    sizes = [size if size % jax.device_count() == 0 else 0 for size in leaf.shape]
    spec: list[str | None] = [None] * len(sizes)
    if sizes and max(sizes) >= 1024:
        spec[sizes.index(max(sizes))] = "data"
    return NamedSharding(mesh, PartitionSpec(*spec))


def in_process(name: str, way: str, dtype: str = "float32", devices: int = 1) -> dict[str, float]:
    """Measures in a fresh process."""
    flags = f"--xla_force_host_platform_device_count={devices}" if devices > 1 else ""
    command = [sys.executable, "-m", __spec__.name, "--one", name, way, dtype]
    environment = {**os.environ, "XLA_FLAGS": flags}
    done = subprocess.run(command, capture_output=True, check=True, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def time_table(models: tuple[str, ...], rounds: int) -> str:
    """Compares the ways on every model."""
    rows = []
    for name in models:
        found = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way in WAYS:
                found[way].append(in_process(name, way))
        cold = {way: median(each["cold"] for each in found[way]) for way in WAYS}
        compiled = {way: median(each["cold"] - each["warm"] for each in found[way]) for way in WAYS}
        numbers = found["fast"][0]["numbers"]
        rows.append(
            [
                *(name, f"{numbers / 1e6:.0f}M", *(f"{cold[way]:.2f}" for way in WAYS)),
                f"{cold['jit'] / cold['fast']:.1f}",
                f"{min(cold['jit'], cold['eager']) / cold['fast']:.1f}",
                f"{compiled['fast']:.2f}",
                f"{compiled['jit'] / compiled['fast']:.1f}",
            ]
        )
        print(format_table(["model", "numbers", *WAYS], [rows[-1][:5]]), file=sys.stderr)
    columns = ["model", ">numbers", ">fast s", ">jit s", ">eager s", ">jit / fast"]
    columns += [">best / fast", ">fast compiles s", ">jit compiles / fast"]
    return format_table(columns, rows, title="cold, of the first parameters")


def memory_table() -> str:
    """Compares peaks at a billion parameters, on one device and sharded on eight."""
    rows = []
    for dtype, devices in (("float32", 1), ("bfloat16", 8)):
        found = in_process(BILLION, "fast", dtype, devices)
        peak = found["peak"] / found["bytes"]
        rows.append(
            [
                *(dtype, str(devices), f"{found['numbers'] / 1e9:.2f}B"),
                *(f"{found['bytes'] / 2**30:.2f}", f"{found['cold']:.1f}", f"{peak:.2f}"),
            ]
        )
    columns = ["dtype", ">devices", ">numbers", ">GiB", ">seconds", ">peak / arrays"]
    return format_table(columns, rows, title="a transformer of 19 layers, width 2048")


def numbers_table() -> str:
    """Compares normal numbers a second, in float32."""
    import jax
    import numpy as np

    import jinit

    size = 2**26
    fast = jinit.fast_init(lambda key: jax.random.normal(key, (size,)))
    theirs = jax.jit(lambda key: jax.random.normal(key, (size,)))
    numpy = np.random.default_rng(0)
    draws: dict[str, Callable[[Any], Any]] = {
        "jinit.fast_init": fast,
        "jax.random.normal": theirs,
        "NumPy": lambda key: numpy.standard_normal(size, np.float32),
    }
    times: dict[str, list[float]] = {name: [] for name in draws}
    for key in jax.random.split(jax.random.key(0), 6):
        for name, draw in draws.items():
            start = time.perf_counter()
            jax.block_until_ready(draw(key))
            times[name].append(time.perf_counter() - start)
    rows = [[name, f"{size / median(found[1:]) / 1e6:.0f}"] for name, found in times.items()]
    return format_table(["normal numbers", ">million a second"], rows)


def main() -> None:
    """Prints the tables that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=("time", "memory", "numbers"), action="append")
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one)))
        return
    parts = {
        "time": lambda: time_table(tuple(options.models), options.rounds),
        "memory": memory_table,
        "numbers": numbers_table,
    }
    for part in options.part or parts:
        print(parts[part](), flush=True)


if __name__ == "__main__":
    main()
