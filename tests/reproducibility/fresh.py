"""Runs a module of this folder in two fresh Pythons."""

import json
import subprocess
import sys

from tests.fresh import SECONDS, environment


def start(*arguments):
    """Starts a fresh Python; warnings are errors."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process):
    """What it printed last, as JSON."""
    printed, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, errors
    return json.loads(printed.splitlines()[-1])


def run_twice(module):
    """Runs a module in two fresh Pythons at once, so that the scheduler plays its part."""
    return [result(process) for process in [start("-m", module) for _ in range(2)]]
