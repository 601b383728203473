"""What autocast adds to tracing a transformer: ``python -m tests.benchmarks.tracing``.

Each row traces one stack of layers four times, as it is and under autocast, forward and with its
gradient, and takes the shortest of some rounds with empty caches. Layers that are one jitted
function are evaluated once for the whole stack.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jinit._tables import format_table
from jinit.amp import autocast

ROUNDS = 4
DEPTHS = (6, 12, 24)
WIDTH, HEADS = 64, 4
KINDS: dict[str, Callable] = {"unrolled": lambda f: f, "jit": jax.jit, "remat": jax.checkpoint}


def parameters() -> dict[str, jax.Array]:
    """Returns one layer's parameters, whose values do not matter here."""
    shapes = {
        "scale": (2, 1, 1, WIDTH),
        "qkv": (3, WIDTH, HEADS, WIDTH // HEADS),
        "out": (HEADS, WIDTH // HEADS, WIDTH),
        "up": (WIDTH, 4 * WIDTH),
        "down": (4 * WIDTH, WIDTH),
    }
    return {name: jnp.ones(shape) for name, shape in shapes.items()}


def layer(p: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """A pre-norm transformer layer."""
    y = jax.nn.standardize(x) * p["scale"][0]
    q, k, v = (jnp.einsum("btd,dhe->bthe", y, w) for w in p["qkv"])
    weights = jax.nn.softmax(jnp.einsum("bqhe,bkhe->bhqk", q, k) / 4.0)
    x = x + jnp.einsum("bhqk,bkhe,hed->bqd", weights, v, p["out"])
    y = jax.nn.standardize(x) * p["scale"][1]
    return x + jax.nn.gelu(y @ p["up"]) @ p["down"]


def stack(kind: str) -> Callable[..., jax.Array]:
    """Returns a model of equal layers."""
    one = KINDS[kind](layer)

    def apply(params: list[Any], x: jax.Array) -> jax.Array:
        for p in params:
            x = one(p, x)
        return x

    return apply


def seconds(fn: Callable, *args: Any) -> float:
    """Returns the shortest time of a trace."""
    spent = []
    for _ in range(ROUNDS):
        jax.clear_caches()
        start = time.perf_counter()
        jax.make_jaxpr(fn)(*args)
        spent.append(time.perf_counter() - start)
    return min(spent)


def row(kind: str, depth: int) -> list[str]:
    """Measures one stack."""
    args = [parameters()] * depth, jnp.ones((2, 16, WIDTH))
    cells = [kind, str(depth)]
    for derive in (lambda f: f, lambda f: jax.grad(lambda *a: f(*a).sum())):
        plain = seconds(derive(stack(kind)), *args)
        cast = seconds(derive(autocast(stack(kind))), *args)
        cells += [f"{1e3 * plain:.0f}", f"{1e3 * cast:.0f}", f"{cast / plain:.2f}"]
    return cells


def main() -> None:
    """Prints one table."""
    columns = ["layers", ">depth", ">plain ms", ">autocast ms", ">ratio",
               ">grad ms", ">autocast ms", ">ratio"]  # fmt: skip
    print(format_table(columns, [row(kind, depth) for kind in KINDS for depth in DEPTHS]))


if __name__ == "__main__":
    main()
