"""What the original costs beside calibrate.

``python -m tests.benchmarks.original --original-python PATH``: PATH is the Python of an
environment in which empirical-init 0.0.2 and torch are installed. Every number is taken in a
process of its own, imports left out, on the same cores.

The net is a ReLU MLP of width 128 with biases, the batch 64, the loss sum(y z) with z drawn from
N(0, 1). The original tunes gradients by scales of its own, which fold mode does not have; updates
are those of SGD in both.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from jinit._tables import format_number, format_table
from tests.processes import environment

WIDTH, BATCH = 128, 64
ORIGINAL = """
import contextlib, io, json, re, sys, time, warnings
warnings.simplefilter("ignore")
import torch
from empirical_init import empirical_init, get_wrapped_submodules, wrap_all_leaf_modules
depth, width, batch, threads = map(int, sys.argv[1:])
torch.set_num_threads(threads)
torch.manual_seed(0)

class Net(torch.nn.Module):
    @wrap_all_leaf_modules
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(depth))
        self.passes = 0
    def forward(self, x):
        self.passes += 1
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)

def draw(batch):
    return torch.randn(batch, width)

def loss(y):
    return (y * torch.randn_like(y)).sum()

text = io.StringIO()
with contextlib.redirect_stdout(text):
    net = Net()
    wrappers = get_wrapped_submodules(net)
    assert len(wrappers) == depth
    start = time.perf_counter()
    empirical_init(wrappers, net, draw, loss, batchsz=batch)
    seconds = time.perf_counter() - start
sizes = {}
heads = {"activation": "ACTIVATION", "gradient": "GRADIENTS", "update": "CHANGE IN ACTIVATION"}
for name, head in heads.items():
    printed = re.findall(rf"^{head}\\n +(?:None|O\\((.*)\\))", text.getvalue(), re.MULTILINE)
    sizes[name] = [float(size) for size in printed if size]
print(json.dumps({"seconds": seconds, "passes": net.passes, "torch": torch.__version__, **sizes}))
"""
NET = """
import json, sys, time
import jax, jax.numpy as jnp, numpy as np
depth, width, batch, threads = map(int, sys.argv[1:])
draws = np.random.default_rng(0)
params = [
    {"w": jnp.asarray(draws.normal(0, width**-0.5, (width, width)), jnp.float32),
     "b": jnp.zeros(width)}
    for _ in range(depth)
]

def net(params, x):
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]

def draw(key):
    return jax.random.normal(key, (batch, width))

def loss(y, key):
    return jnp.sum(y * jax.random.normal(key, y.shape))

def timed(call):
    start = time.perf_counter()
    result = call()
    jax.block_until_ready(jax.tree.leaves(result))
    return time.perf_counter() - start, result

jax.block_until_ready(params)
"""
CALIBRATE = """
import jinit
def call():
    return jinit.calibrate(params, net, draw, loss, optimizer="sgd")
first, result = timed(call)
warm = min(timed(call)[0] for _ in range(5))
names = ("activation", "gradient", "update")
sizes = {n: [getattr(row, n + "_after") for row in result.report.rows] for n in names}
print(json.dumps({"first": first, "warm": warm, "jax": jax.__version__, **sizes}))
"""
GRADIENT = """
x, key = draw(jax.random.key(0)), jax.random.key(1)
gradient = jax.jit(jax.grad(lambda p, x, key: loss(net(p, x), key)))
first, _ = timed(lambda: gradient(params, x, key))
warm = min(timed(lambda: gradient(params, x, key))[0] for _ in range(5))
print(json.dumps({"first": first, "warm": warm}))
"""


def on_cores(threads: int) -> Callable[[], None] | None:
    """Confines a process to as many cores, where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))[:threads]
    return lambda: os.sched_setaffinity(0, cores)


def measured(python: str, program: str, depth: int, threads: int) -> dict[str, Any]:
    """Runs a program in a fresh process; what it prints last is JSON."""
    pools = dict.fromkeys(("NPROC", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    command = [python, "-c", program, *map(str, (depth, WIDTH, BATCH, threads))]
    done = subprocess.run(
        command,
        env=environment(**pools),
        preexec_fn=on_cores(threads),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{python} failed at depth {depth}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def spread(found: dict[str, Any]) -> list[str]:
    """The largest over the least of each quantity over the layers."""
    values = (found[name] for name in ("activation", "gradient", "update"))
    return [format_number(max(sizes) / min(sizes)) for sizes in values]


def ratio(numerator: float, denominator: float) -> str:
    """How many times larger the first is."""
    return f"{numerator / denominator:.3g}x"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table of costs and one of results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--original-python", required=True, metavar="PATH")
    parser.add_argument("--threads", type=int, default=1, help="cores and threads of each process")
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 8, 16, 32, 64])
    options = parser.parse_args(arguments)
    costs, results, versions = [], [], ""
    for depth in options.depths:
        original = measured(options.original_python, ORIGINAL, depth, options.threads)
        ours = measured(sys.executable, NET + CALIBRATE, depth, options.threads)
        plain = measured(sys.executable, NET + GRADIENT, depth, options.threads)
        costs.append([
            str(depth), str(original["passes"]), f"{original['seconds']:.2f}",
            f"{ours['first']:.2f}", ratio(original["seconds"], ours["first"]),
            f"{1e3 * ours['warm']:.1f}", ratio(original["seconds"], ours["warm"]),
            f"{plain['first']:.2f}", f"{1e3 * plain['warm']:.1f}",
            ratio(ours["first"], plain["first"]),
        ])  # fmt: skip
        results.append([str(depth), *spread(original), *spread(ours)])
        versions = f"torch {original['torch']}, jax {ours['jax']}"
    print(f"{options.threads} thread(s) of {os.cpu_count()} for every process; {versions}")
    columns = [
        ">depth", ">passes", ">original s", ">first s", ">faster", ">warm ms", ">faster",
        ">plain grad first s", ">warm ms", ">first of plain's",
    ]  # fmt: skip
    print(format_table(columns, costs, width=160))
    names = ("activation", "gradient", "update")
    columns = [">depth", *(f">original {n}" for n in names), *(f">calibrate {n}" for n in names)]
    print(format_table(columns, results, title="largest over least of the layers' RMS", width=160))


if __name__ == "__main__":
    main()
