"""Runs code in fresh Pythons, where nothing is imported, set or started yet."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SET_BY_OTHERS = ("JINIT_", "_JINIT", "JAX_", "XLA_", "LIBTPU", "PJRT_", "NPROC", "PYTHON")
SECONDS = 120


def environment(**variables):
    """The environment with none of the variables that JAX, XLA and jinit read but those given."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(SET_BY_OTHERS)}
    return {**kept, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **variables}


def python(*arguments, warn="error", given="", **variables):
    """Runs Python with arguments, as an ended process; warnings are errors."""
    command = [sys.executable, "-W", warn, *map(str, arguments)]
    environ = environment(**variables)
    return subprocess.run(
        command, env=environ, input=given, capture_output=True, text=True, timeout=SECONDS
    )


def run(code, **options):
    """Runs code and returns what it printed last, as JSON."""
    done = python("-c", code, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
