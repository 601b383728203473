"""What ``import jinit`` costs over ``import jax``: ``python -m tests.benchmarks.import_cost``."""

import subprocess
import sys
from statistics import median

ROUNDS = 10
TIMED = """
import time
start = time.perf_counter()
{statement}
print(time.perf_counter() - start)
"""
CASES = {
    "jax": TIMED.format(statement="import jax"),
    "jax, then jinit": TIMED.format(statement="import jax, jinit"),
    "jinit alone": TIMED.format(statement="import jinit"),
}


def seconds(program: str) -> float:
    """Runs a program in a fresh process and reads the time that it prints."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    return float(done.stdout)


def main() -> None:
    """Interleaves the cases, so that a change in the machine's load meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(ROUNDS):
        for name, program in CASES.items():
            times[name].append(seconds(program))
    base = median(times["jax"])
    for name, values in times.items():
        print(f"import {name:16} {median(values):.4f} s  {median(values) / base:.3f} of jax")


if __name__ == "__main__":
    main()
