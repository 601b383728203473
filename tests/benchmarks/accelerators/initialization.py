"""What ``fast_init`` compiles for decoders that are too large for any machine here.

They are born sharded on eight devices.

``python -m tests.benchmarks.accelerators --part initialization``. Beside it ``jax.jit(init)`` with
the same shardings, in a process of its own that has ten minutes.
"""

import math
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

import jinit
from jinit._tables import format_bytes, format_table
from tests.benchmarks.accelerators.compilers import mesh_of, prepare_environment
from tests.benchmarks.accelerators.program import read

__all__ = ["tables"]

VOCABULARY = 32_000
DECODERS = {  # layers, width, width of the MLP, heads, heads of keys and values
    "7B": (32, 4096, 11_008, 32, 32),
    "70B": (80, 8192, 28_672, 64, 8),
}
MINUTES = 10  # for jit
SCRATCH = 2**30  # bytes; what is under way at a time


class Block(nn.Module):
    """A block of a decoder, as LLaMA has it; what is drawn does not depend on the attention."""

    width: int
    inner: int
    heads: int
    kept: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies it."""
        dense = nn.initializers.normal(0.02)
        size = self.width // self.heads
        y = nn.RMSNorm()(x)
        query = nn.Dense(self.heads * size, use_bias=False, kernel_init=dense)(y)
        both = [nn.Dense(self.kept * size, use_bias=False, kernel_init=dense)(y) for _ in "kv"]
        y = query + jnp.tile(both[0] * both[1], self.heads // self.kept)
        x = x + nn.Dense(self.width, use_bias=False, kernel_init=dense)(y)
        y = nn.RMSNorm()(x)
        gate, up = (nn.Dense(self.inner, use_bias=False, kernel_init=dense)(y) for _ in "gu")
        return x + nn.Dense(self.width, use_bias=False, kernel_init=dense)(nn.silu(gate) * up)


class Decoder(nn.Module):
    """A decoder of these sizes."""

    name_of: str

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Applies it."""
        layers, width, *sizes = DECODERS[self.name_of]
        x = nn.Embed(VOCABULARY, width, embedding_init=nn.initializers.normal(0.02))(tokens)
        for _ in range(layers):
            x = Block(width, *sizes)(x)
        return nn.Dense(VOCABULARY, use_bias=False)(nn.RMSNorm()(x))


def fully_sharded(mesh: Any) -> Any:
    """Returns what lays the largest axis of a leaf along all devices of a mesh."""

    def lay(path: str, leaf: Any) -> NamedSharding:
        axis = max(range(len(leaf.shape)), key=lambda n: leaf.shape[n])
        spec = [None] * axis + [mesh.axis_names]
        return NamedSharding(mesh, PartitionSpec(*spec))

    return lay


def initialization(name: str, compiler: str) -> tuple[Any, tuple[Any, ...]]:
    """Returns the initialization of a decoder, born on eight devices, and its arguments."""
    lay = fully_sharded(mesh_of(compiler, 8))
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    return jinit.fast_init(Decoder(name).init, out_shardings=lay), (jax.random.key(0), tokens)


def row(name: str, compiler: str, quick: bool) -> list[str]:
    """Compiles all programs of an initialization, and adds up what they need."""
    init, args = initialization(name, compiler)
    count = init.count(*args)
    start = time.perf_counter()
    lowered = init.lower(*args)
    traced = time.perf_counter() - start
    programs = [read(each) for each in lowered]
    scratch = max(_scratch(each, of) for each, of in zip(lowered, programs, strict=True))
    assert not any(of.collectives for of in programs), f"{name}: devices wait for one another"
    assert scratch < SCRATCH, f"{name}: {format_bytes(scratch)} of scratch"
    seconds = sum(of.seconds for of in programs)
    jitted = "-" if quick else jit_seconds(name, compiler)
    share = format_bytes(max(count.bytes_by_device.values()))
    return [
        *(name, f"{count.parameters / 1e9:.2f}B", share, str(len(programs))),
        *(format_bytes(scratch), f"{traced:.1f}", f"{seconds:.1f}", jitted),
    ]


def _scratch(lowered: Any, program: Any) -> int:
    """Returns what a program needs on a device beside the leaf that it fills."""
    results = [
        math.prod(out.shape) * out.dtype.itemsize // 8 for out in jax.tree.leaves(lowered.out_info)
    ]
    draws = len(jax.tree.leaves(lowered.args_info)) > 4  # rows of numbers, not yet in a leaf
    return program.temporary + (sum(results) if draws else 0)


def jit_seconds(name: str, compiler: str) -> str:
    """Returns how long ``jax.jit(init)`` takes to be compiled, in a process of its own."""
    code = f"from {__name__} import compile_jit; compile_jit({name!r}, {compiler!r})"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60 * MINUTES
        )
    except subprocess.TimeoutExpired:
        return f"> {60 * MINUTES}"
    return done.stdout.splitlines()[-1] if done.returncode == 0 else "failed"


def compile_jit(name: str, compiler: str) -> None:
    """Compiles the initialization as one program, and prints how long that took."""
    prepare_environment()
    mesh = mesh_of(compiler, 8)
    tokens = jnp.zeros((1, 8), jnp.int32)
    init, key = Decoder(name).init, jax.random.key(0)
    shapes = jax.eval_shape(init, key, tokens)
    shardings = jax.tree.map(lambda leaf: fully_sharded(mesh)("", leaf), shapes)
    everywhere = NamedSharding(mesh, PartitionSpec())
    start = time.perf_counter()
    jax.jit(init, in_shardings=everywhere, out_shardings=shardings).lower(
        jax.eval_shape(lambda: key), jax.eval_shape(lambda: tokens)
    ).compile()
    print(f"{time.perf_counter() - start:.0f}")


def tables(compiler: str, quick: bool) -> Iterator[str]:
    """Tabulates the decoders; quickly, without ``jit``."""
    columns = ["decoder", ">parameters", ">a device's share", ">programs", ">most scratch"]
    columns += [">traced s", ">compiled s", ">jit compiled s"]
    rows = [row(name, compiler, quick) for name in DECODERS]
    yield format_table(columns, rows, title=f"fast_init on 8 devices, {compiler}")
