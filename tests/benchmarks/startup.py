"""What a start costs, and what threads= limits: ``python -m tests.benchmarks.startup``."""

import os
import subprocess
import sys
import tempfile
from statistics import median

from jinit._tables import format_table
from tests.processes import environment

ROUNDS = 25
TIMED = """
import time
start = time.perf_counter()
{statement}
print(time.perf_counter() - start)
"""
FLAGS = "xla_flags={'xla_cpu_enable_fast_math': True, 'xla_gpu_autotune_level': 2}"
CASES = {
    "import jax, first key": "import jax; jax.random.key(0)",
    "import jax, import jinit, first key": "import jax, jinit; jax.random.key(0)",
    "import jax, startup(0)": "import jax, jinit; jinit.startup(0)",
    "import jax, startup(0, xla_flags=two)": f"import jax, jinit; jinit.startup(0, {FLAGS})",
}
THREADS = """
import pathlib, time
import jax, jax.numpy as jnp
import jinit
jinit.startup(0, {arguments})
def times():
    stats = [path.read_text().rpartition(")")[2].split() for path in
             pathlib.Path("/proc/self/task").glob("*/stat")]
    return [int(stat[11]) + int(stat[12]) for stat in stats]
product = jax.jit(jnp.dot)
x = jnp.ones((2048, 2048)); product(x, x).block_until_ready()
before, start = sum(times()), time.perf_counter()
while time.perf_counter() - start < 2:
    product(x, x).block_until_ready()
seconds = (sum(times()) - before) / 100
print(jinit.startup_report().settings["threads"].value, seconds / (time.perf_counter() - start))
"""


def output(program: str, home: str) -> str:
    """Runs a program in a fresh process, with a cache of its own."""
    environ = environment(XDG_CACHE_HOME=home)
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environ, capture_output=True, check=True, text=True).stdout


def cost_of_a_start(home: str) -> str:
    """Interleaves the cases, so that a change in the machine's load meets all of them.

    What is added is the least time of a case over the least of the first: the median of processes
    that take half a second moves by more than the few milliseconds that are looked for.
    """
    programs = {name: TIMED.format(statement=statement) for name, statement in CASES.items()}
    first = {name: float(output(program, home)) for name, program in programs.items()}
    times: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(ROUNDS):
        for name, program in programs.items():
            times[name].append(float(output(program, home)))
    base = times["import jax, first key"]
    rows = [
        [
            name,
            f"{1e3 * first[name]:.0f}",
            f"{1e3 * median(found):.0f}",
            f"{1e3 * (min(found) - min(base)):+.1f}",
            f"{median(found) / median(base):.3f}",
        ]
        for name, found in times.items()
    ]
    return format_table(["", ">first ms", ">then ms", ">added to the least ms", ">ratio"], rows)


def busy_threads(home: str) -> str:
    """Counts the threads that a product of two 2048 x 2048 matrices keeps busy."""
    rows = []
    for arguments in ("", "threads=1", f"threads={os.cpu_count()}"):
        pool, busy = output(THREADS.format(arguments=arguments), home).split()
        rows.append([f"startup(0, {arguments})", pool, f"{float(busy):.2f}"])
    return format_table(["", ">pool", ">busy threads"], rows)


def main() -> None:
    """Prints both tables."""
    with tempfile.TemporaryDirectory() as home:
        print(cost_of_a_start(home))
        print(busy_threads(home))


if __name__ == "__main__":
    main()
