"""Runs code in processes of its own, at a tenth of the price of a fresh Python.

A server, ``python -m tests.startup.forks``, imports JAX once and forks for each case, before a
backend is up. A case is code that leaves its answer in ``result``, and variables set before.
"""

import atexit
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from tests.fresh import environment

SECONDS = 100


def run_cases(cases, **variables):
    """Returns each case's answer: its result, or how it failed.

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


def run_case(code, **variables):
    """Returns what one case leaves in ``result``; it has the names of ``programs``."""
    (answer,) = run_cases([("from tests.startup.programs import *\n" + code, variables)])
    assert "result" in answer, answer
    return answer["result"]


@functools.cache
def _server(variables):
    command = [sys.executable, "-W", "error", "-m", "tests.startup.forks"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    elsewhere = tempfile.mkdtemp()  # flags and folders of some cases write to where they run
    atexit.register(shutil.rmtree, elsewhere, ignore_errors=True)
    environ = environment(**dict(variables))
    server = subprocess.Popen(command, env=environ, cwd=elsewhere, **pipes)
    atexit.register(server.communicate)  # which closes its input, and so ends it
    return server


def _answer(code, variables):
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
    import jax  # noqa: F401
    import numpy as np  # noqa: F401

    import jinit  # noqa: F401

    for line in sys.stdin:
        print(json.dumps(_answer(*json.loads(line))), flush=True)
