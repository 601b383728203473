"""What the compilers of accelerators make of jinit: ``python -m tests.benchmarks.accelerators``.

They run on a machine without an accelerator (``pip install -e ".[test,accelerators]"``), compile
for H100s and TPUs v5e, and say what a program needs there; none of it is run. The parts:

- ``steps``: the training step of a transformer block and of a ResNet's, by hand and at O0 to O3
- ``scaling``: the kernels that loss scaling adds to a step
- ``calibration``: the passes of ``empirical_init`` and ``calibrate`` of a 12-layer transformer
- ``flags``: what ``startup`` says of XLA flags, beside what the compilers do under them
- ``initialization``: the programs of ``fast_init`` of decoders of 7 and 70 billion parameters

A part fails where what it finds is worse than it may be. ``--quick`` takes what CI has time for:
smaller models and fewer versions, in two minutes.
"""

import argparse
import importlib
import sys
import time
from collections.abc import Mapping

from tests.benchmarks.accelerators.compilers import COMPILERS, is_installed, prepare_environment

PARTS = ("steps", "scaling", "calibration", "flags", "initialization")
"""Modules of this folder, each with ``tables(compiler, quick)``, which yields what is printed."""

QUICK: Mapping[str, tuple[str, ...]] = {"gpu": PARTS, "tpu": ("steps",)}
"""What of it ``--quick`` takes; the TPU's compiler takes five times as long."""


def main() -> int:
    """Prints the tables, and returns whether a part failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.accelerators")
    parser.add_argument("compiler", nargs="?", choices=COMPILERS, help="both where none is named")
    parser.add_argument("--part", choices=PARTS, action="append", help="all where none is named")
    parser.add_argument("--quick", action="store_true", help="what CI has time for")
    options = parser.parse_args()
    wanted = [options.compiler] if options.compiler else [*COMPILERS]
    missing = [COMPILERS[name] for name in wanted if not is_installed(name)]
    if missing:
        print(f"not installed: {', '.join(missing)}; pip install -e '.[accelerators]'")
        return 1
    prepare_environment()
    failed = [
        f"{compiler} {part}: {fault}"
        for compiler in wanted
        for part in options.part or (QUICK[compiler] if options.quick else PARTS)
        if (fault := run(compiler, part, options.quick))
    ]
    print("\n".join(failed) or "all within their limits")
    return bool(failed)


def run(compiler: str, part: str, quick: bool) -> str:
    """Prints the tables of a part; returns what is worse than it may be."""
    module = importlib.import_module(f"{__package__}.{part}")
    start = time.perf_counter()
    try:
        for table in module.tables(compiler, quick):
            print(table, flush=True)
    except AssertionError as error:
        return str(error)
    finally:
        print(f"{compiler} {part}: {time.perf_counter() - start:.0f} s", flush=True)
    return ""


if __name__ == "__main__":
    sys.exit(main())
