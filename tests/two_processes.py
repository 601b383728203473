"""Runs code in two processes of one JAX run, over loopback."""

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time

from tests.fresh import SECONDS, environment

PREAMBLE = """
import json, sys
PROCESS, ADDRESS = int(sys.argv[1]), sys.argv[2]
"""
INITIALIZE = """
import jax
jax.distributed.initialize(ADDRESS, num_processes=2, process_id=PROCESS)
"""


def run_two(code, *, initialize=True, **variables):
    """Returns what each of the two processes printed last, one line of JSON.

    The code finds its number in ``PROCESS`` and the coordinator in ``ADDRESS``, and unless
    ``initialize`` is False, ``jax.distributed`` initialized. Warnings are errors.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environ = environment(**variables)
    program = PREAMBLE + INITIALIZE * initialize + code
    # Files, since a full pipe would stop a process that nobody reads from yet.
    with contextlib.ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(4)]
        processes = [
            subprocess.Popen(
                [sys.executable, "-W", "error", "-c", program, str(number), address],
                env=environ,
                stdout=outputs[number],
                stderr=outputs[2 + number],
            )
            for number in range(2)
        ]
        _wait(processes)
        printed, errors = _texts(outputs[:2]), _texts(outputs[2:])
    codes = [process.returncode for process in processes]
    assert codes == [0, 0], "\n".join(
        f"process {number} ended with {code}:\n{text}"
        for number, (code, text) in enumerate(zip(codes, errors, strict=True))
    )
    return [json.loads(text.splitlines()[-1]) for text in printed]


def _texts(files):
    for file in files:
        file.seek(0)
    return [file.read() for file in files]


def _wait(processes):
    """Until both have ended, one has failed (the other would wait for it), or time is over."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        codes = [process.poll() for process in processes]
        if None not in codes:
            return
        if any(codes):
            break
        time.sleep(0.05)
    for process in processes:
        process.kill()
        process.wait()
