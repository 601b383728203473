"""Runs code in processes of its own, where nothing is imported, set or started yet.

- ``run(code)``: a fresh Python; what it prints last is its answer, as JSON
- ``run_twice(module)``: a module in two fresh Pythons at once
- ``run_two(code)``: two processes of one JAX run, over loopback
- ``run_case(code)``, ``run_cases(cases)``: forks of a server that imported JAX, at a tenth of the
  price; what the code leaves in ``result`` is its answer
- ``python(*arguments)``: a fresh Python, for who asks for its output and its exit status
"""

import atexit
import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SET_BY_OTHERS = ("JINIT_", "_JINIT", "JAX_", "XLA_", "LIBTPU", "PJRT_", "NPROC", "PYTHON")
SECONDS = 120


def environment(**variables):
    """The environment with none of the variables that JAX, XLA and jinit read but those given."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(SET_BY_OTHERS)}
    return {**kept, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **variables}


def python(*arguments, **options):
    """Runs Python with arguments, as an ended process; options are those of ``_together``."""
    (done,) = _together([arguments], **options)
    return done


def run(code, **options):
    """Runs code and returns what it printed last, as JSON."""
    return _answer(python("-c", code, **options))


def run_twice(module):
    """Runs a module in two fresh Pythons at once, so that the scheduler plays its part."""
    return [_answer(done) for done in _together([("-m", module)] * 2)]


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
    ``initialize`` is False, ``jax.distributed`` initialized.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    program = PREAMBLE + INITIALIZE * initialize + code
    commands = [("-c", program, number, address) for number in range(2)]
    return [_answer(done) for done in _together(commands, **variables)]


def _answer(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _together(commands, *, warn="error", given="", cwd=None, seconds=SECONDS, **variables):
    """Runs Pythons at once, until all have ended or one has failed.

    Args:
        commands: The arguments of each.
        warn: What becomes of warnings, as Python's ``-W``.
        given: What each reads from its standard input.
        cwd: The folder that they run in.
        seconds: After this time those that still run are ended.
        **variables: Variables that they have.
    """
    # Files, since a full pipe would stop a process that nobody reads from yet.
    with contextlib.ExitStack() as stack:
        file = lambda: stack.enter_context(tempfile.TemporaryFile("w+"))  # noqa: E731
        processes, outputs = [], []
        for arguments in commands:
            output, errors, source = file(), file(), file()
            source.write(given)
            source.seek(0)
            command = [sys.executable, "-W", warn, *map(str, arguments)]
            streams = {"stdin": source, "stdout": output, "stderr": errors}
            environ = environment(**variables)
            processes.append(subprocess.Popen(command, env=environ, cwd=cwd, **streams))
            outputs.append((output, errors))
        _wait(processes, seconds)
        return [
            subprocess.CompletedProcess(process.args, process.returncode, *map(_text, pair))
            for process, pair in zip(processes, outputs, strict=True)
        ]


def _text(file):
    file.seek(0)
    return file.read()


def _wait(processes, seconds):
    """Until all have ended, one has failed (others may wait for it), or time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        codes = [process.poll() for process in processes]
        if None not in codes:
            return
        if any(codes):
            break
        time.sleep(0.02)
    for process in processes:
        process.kill()
        process.wait()


def run_case(code, **variables):
    """Returns what one case leaves in ``result``; it has the names of ``tests.programs``."""
    (answer,) = run_cases([("from tests.programs import *\n" + code, variables)])
    assert "result" in answer, answer
    return answer["result"]


def run_cases(cases, **variables):
    """Returns each case's answer: its result, or how it failed.

    A case runs in a fork of a server, ``python -m tests.processes``, which imports JAX once and
    starts no backend.

    Args:
        cases: Pairs of code and a dict of variables.
        **variables: Variables that the server has, for what JAX reads when it is imported.
    """
    server = _server(frozenset(variables.items()))
    answers = []
    for case in cases:
        server.stdin.write(json.dumps(case) + "\n")
        server.stdin.flush()
        answers.append(json.loads(server.stdout.readline()))
    return answers


@functools.cache
def _server(variables):
    command = [sys.executable, "-W", "error", "-m", "tests.processes"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    elsewhere = tempfile.mkdtemp()  # flags and folders of some cases write to where they run
    atexit.register(shutil.rmtree, elsewhere, ignore_errors=True)
    environ = environment(**dict(variables))
    server = subprocess.Popen(command, env=environ, cwd=elsewhere, **pipes)
    atexit.register(server.communicate)  # which closes its input, and so ends it
    return server


def _serve():
    """Answers the cases that come in, a line each."""
    import jax  # noqa: F401
    import numpy as np  # noqa: F401

    import jinit  # noqa: F401

    for line in sys.stdin:
        print(json.dumps(_run_forked(*json.loads(line))), flush=True)


def _run_forked(code, variables):
    """Runs a case in a fork, whose last words come through a pipe."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _be_the_child(code, variables, writer)
    os.close(writer)
    hung = _hangs(child)
    with os.fdopen(reader) as pipe:
        words = pipe.read()
    return "hung" if hung else json.loads(words) if words else "died"


def _be_the_child(code, variables, writer):
    os.environ.update(variables)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    names = {}
    try:
        exec(code, names)
        words = {"result": names.get("result")}
    except Exception as error:
        words = {"error": type(error).__name__, "text": str(error)}
    os.write(writer, json.dumps(words).encode())
    os._exit(0)


def _hangs(child):
    deadline = time.monotonic() + SECONDS
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
        time.sleep(0.005)
    return False


if __name__ == "__main__":
    _serve()
