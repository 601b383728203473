"""What only a GPU can show of a start: ``python -m tests.benchmarks.gpu``.

Each measurement is a fresh process. On a CPU it runs too, on smaller products, and shows that
neither the precision nor the memory settings mean anything there.
"""

import json
import subprocess
import sys

from jinit._tables import format_number, format_table
from tests.processes import environment

PREAMBLE = """
import json
import jax, jax.numpy as jnp, numpy as np
import jinit
key = jinit.startup(0, **{arguments})
"""
PRODUCT = """
size = 4096 if jax.default_backend() == "gpu" else 1024
a, b = (jax.random.normal(k, (size, size)) for k in jax.random.split(key))
exact = np.asarray(a, np.float64) @ np.asarray(b, np.float64)
error = np.asarray(jnp.dot(a, b), np.float64) - exact
print(json.dumps([float(np.sqrt(np.mean(error**2) / np.mean(exact**2))), size]))
"""
MEMORY = """
stats = jax.devices()[0].memory_stats() or {}
names = ("bytes_limit", "pool_bytes", "bytes_in_use", "bytes_reserved")
print(json.dumps({name: stats[name] for name in names if name in stats}))
"""
TRAINING = """
import hashlib
kernels = [jax.random.normal(k, (3, 3, 16, 16)) / 12 for k in jax.random.split(key, 4)]
x, where = jax.random.normal(key, (64, 32, 32, 16)), jax.random.randint(key, (65536,), 0, 16)

def loss(kernels):
    y = x
    for kernel in kernels:
        y = jnp.tanh(jax.lax.conv_general_dilated(
            y, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))
    rows = y.reshape(65536, 16)
    return jnp.sum(jnp.zeros((16, 16)).at[where].add(rows) ** 2) / 65536

step = jax.jit(lambda ks: [k - 0.1 * g for k, g in zip(ks, jax.grad(loss)(ks))])
for _ in range(100):
    kernels = step(kernels)
print(json.dumps(hashlib.sha256(b"".join(np.asarray(k).tobytes() for k in kernels)).hexdigest()))
"""
MEMORY_CASES = ["memory=None"] + [
    f"memory={policy!r}" for policy in ("preallocate", "grow", "cuda_async", "vmm")
]
MEMORY_CASES += ["memory='preallocate', memory_fraction=0.25"]


def answer(program: str, arguments: str) -> object:
    """Runs a program after a startup with the arguments; its last line is JSON."""
    code = PREAMBLE.format(arguments=f"dict({arguments})") + program
    environ = environment()
    del environ["JAX_PLATFORMS"]
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else done.stderr[-300:]


def precision() -> str:
    """The error of a product of standard normal matrices against float64.

    TF32 keeps 11 significant bits: each factor is off by up to 2**-11, 3e-4 in the mean square of
    a product; true float32 stays near 1e-6.
    """
    cases = ("allow_tf32=True", "allow_tf32=False", "matmul_precision='high'")
    found = {case: answer(PRODUCT, case) for case in cases}
    rows = [
        [case, str(of[1]), format_number(of[0])] if isinstance(of, list) else [case, str(of), "-"]
        for case, of in found.items()
    ]
    return format_table(["startup", "size", ">relative RMS error"], rows)


def memory() -> str:
    """What the allocator holds after the key was made."""
    rows = [[case, json.dumps(answer(MEMORY, case))] for case in MEMORY_CASES]
    return format_table(["startup", "memory_stats()"], rows)


def determinism() -> str:
    """Whether two trainings with convolutions and scatters end in the same bits."""
    rows = []
    for case in ("deterministic=False", "deterministic=True"):
        first, second = answer(TRAINING, case), answer(TRAINING, case)
        rows.append([case, _compared(first, second)])
    return format_table(["startup", "two trainings"], rows)


def _compared(first: object, second: object) -> str:
    if not (isinstance(first, str) and len(first) == 64):
        return f"failed: {first}"
    return "equal" if first == second else "different"


def main() -> None:
    """Prints three tables."""
    for table in (precision, memory, determinism):
        print(table())


if __name__ == "__main__":
    main()
