"""QR against Cholesky QR for Haar matrices: ``python -m tests.benchmarks.orthogonal [SIZE ...]``.

Both make the factor Q of a Gaussian matrix G = QR whose R has a positive diagonal, so both are
Haar. A pass of Cholesky QR solves for G R^-1 with the Cholesky factor R of G^T G; the first ones
add a multiple of the identity, without which a square Gaussian matrix is too badly conditioned for
float32. Products and triangular solves are what accelerators are fast at, QR is not; yet QR was the
faster one on an H200 too, where the other took 1.26 times as long, and 2.8 times on a CPU.
"""

import sys
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jinit._tables import format_table
from jinit.initializers import orthogonal

SIZES = (512, 1024, 2048)
ROUNDS = 3
PASSES, SHIFTED = 5, 2


def qr(gaussian: jax.Array) -> jax.Array:
    """Makes the factor as ``orthogonal`` does."""
    q, r = jnp.linalg.qr(gaussian)
    return q * jnp.sign(jnp.diagonal(r))[None]


def cholesky_qr(gaussian: jax.Array) -> jax.Array:
    """Makes the factor in passes, each of which leaves it nearer to orthonormal."""
    q, size = gaussian, gaussian.shape[1]
    for number in range(PASSES):
        square = jnp.matmul(q.T, q, precision="highest")
        if number < SHIFTED:
            # the rounding error of the product, which would make it indefinite
            shift = size * jnp.finfo(q.dtype).eps * jnp.trace(square) / size
            square += shift * jnp.eye(size, dtype=q.dtype)
        lower = jnp.linalg.cholesky(square)
        q = jax.lax.linalg.triangular_solve(lower, q, left_side=False, lower=True, transpose_a=True)
    return q


METHODS: dict[str, Callable[[jax.Array], jax.Array]] = {"QR": qr, "Cholesky QR": cholesky_qr}


def seconds(methods: Sequence[Callable], gaussian: jax.Array) -> list[float]:
    """Runs compiled methods in turns; the least time each is what no other process disturbed."""
    times: list[list[float]] = [[] for _ in methods]
    for _ in range(ROUNDS + 1):
        for method, found in zip(methods, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(method(gaussian))
            found.append(time.perf_counter() - start)
    return [min(found[1:]) for found in times]  # the first call compiles


def error(q: jax.Array) -> float:
    """Returns max |Q^T Q - I|, in float64."""
    wide = np.asarray(q, np.float64)
    return float(np.abs(wide.T @ wide - np.eye(wide.shape[1])).max())


def rows(size: int) -> list[list[str]]:
    """Measures both methods on one Gaussian matrix."""
    key = jax.random.key(0)
    gaussian, reference = jax.random.normal(key, (size, size)), orthogonal()(key, (size, size))
    compiled = {name: jax.jit(method) for name, method in METHODS.items()}
    times = seconds(list(compiled.values()), gaussian)
    table = []
    for (name, method), spent in zip(compiled.items(), times, strict=True):
        q = method(gaussian)
        numbers = f"{spent:.3f}", f"{spent / times[0]:.2f}", f"{error(q):.1e}"
        table.append([str(size), name, *numbers, f"{float(jnp.abs(q - reference).max()):.1e}"])
    return table


def main() -> None:
    """Prints one table."""
    sizes = [int(size) for size in sys.argv[1:]] or SIZES
    columns = [
        ">size", "method", ">seconds", ">of QR", ">max |Q^T Q - I|", ">max |Q - orthogonal()|",
    ]  # fmt: skip
    print(f"{jax.devices()[0].device_kind}, float32")
    print(format_table(columns, [row for size in sizes for row in rows(size)]))


if __name__ == "__main__":
    main()
