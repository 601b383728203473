"""The start of a process, each time in a fresh one: before and after the backend is up."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import jinit
from jinit.settings.precision import PRECISIONS

ROOT = Path(__file__).parents[1]
SET_BY_OTHERS = ("JINIT_", "JAX_", "XLA_", "PJRT_", "NPROC", "PYTHON")

PREAMBLE = """
import json, multiprocessing, os, random, threading, warnings
import numpy as np, jax, jinit
from jax._src.xla_bridge import backends_are_initialized as backend_is_up

def pool():
    comms = [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
    return comms.count("tf_XLAEigen\\n")

def report():
    return {name: (found["value"], found["origin"], found["source"], found["status"])
            for name, found in jinit.startup_report().to_dict()["settings"].items()}

def product():
    return jax.jit(jax.numpy.dot).lower(np.ones((2, 2), "f"), np.ones((2, 2), "f")).as_text()

def state():
    return (random.getstate(), str(np.random.get_state()), dict(os.environ),
            multiprocessing.get_start_method(allow_none=True),
            jax.config.jax_default_matmul_precision, backend_is_up())
"""


def python(*arguments, warn="error", **variables):
    """Runs a fresh Python with none of our variables but those given, and warnings as errors."""
    kept = {key: text for key, text in os.environ.items() if not key.startswith(SET_BY_OTHERS)}
    environ = {**kept, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **variables}
    command = [sys.executable, "-W", warn, *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)


def run(code, **options):
    """Runs code after the preamble and returns what it printed last, as JSON."""
    done = python("-c", PREAMBLE + code, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        (
            "pass",
            {"jax", "jaxlib", "numpy", "flax", "optax", "rich", "matplotlib", "multiprocessing"},
        ),
        ("jinit.startup(1)", {"flax", "optax", "rich", "matplotlib"}),
    ],
)
def test_what_is_not_imported(code, unwanted):
    done = python("-c", f"import sys, jinit; {code}; print({unwanted} & set(sys.modules))")
    assert done.stdout.strip() == "set()", done.stderr


def test_the_key_the_streams_and_the_defaults():
    code = """
key = jinit.startup(np.int64(4294967295))
drawn = random.random(), float(np.random.random())
after = report()
assert key.shape == () and jax.numpy.issubdtype(key.dtype, jax.dtypes.prng_key)
assert bool(key == jax.random.key(4294967295))
assert drawn == (random.Random(4294967295).random(), np.random.RandomState(4294967295).random())
print(json.dumps({"bits": int(jax.random.bits(key)), "report": after, "pool": pool(),
                  "started": multiprocessing.get_start_method(allow_none=True),
                  "precision": jax.config.jax_default_matmul_precision,
                  "set": [name for name in os.environ if name.startswith(("XLA_", "PJRT_"))]}))
"""
    found = run(code)
    cores = len(os.sched_getaffinity(0))
    assert found == {
        "bits": 2226700399,  # the same on every Python and jax
        "report": {
            "start_method": ["forkserver", "default", "", "applied"],
            "threads": [cores, "default", "", "unchanged"],
            "memory": [None, "default", "", "unchanged"],
            "matmul_precision": ["default", "default", "", "applied"],
            "seed": [4294967295, "argument", "seed", "applied"],
        },
        "pool": cores,
        "started": "forkserver",
        "precision": "default",
        "set": [],
    }


ALL = "seed=7, threads=1, forkserver_instead_of_fork=False, allow_tf32=False, memory='cuda_async'"


def test_arguments_before_the_backend_and_the_same_again():
    code = f"""
jinit.startup({ALL})
first, drawn = report(), random.random()
assert multiprocessing.get_start_method() == "fork"
assert "precision = [HIGHEST, HIGHEST]" in product()
environ = {{name: os.environ[name] for name in sorted(os.environ)
            if name.startswith(("XLA_", "PJRT_"))}}
assert pool() == 1
jinit.startup({ALL})
assert random.random() == drawn
print(json.dumps([first, report(), environ]))
"""
    first, again, environ = run(code)
    assert first == {
        "start_method": ["fork", "argument", "forkserver_instead_of_fork", "applied"],
        "threads": [1, "argument", "threads", "applied"],
        "memory": ["cuda_async", "argument", "memory", "applied"],
        "matmul_precision": ["highest", "argument", "allow_tf32", "applied"],
        "seed": [7, "argument", "seed", "applied"],
    }
    assert {name: row[3] for name, row in again.items()} == {
        **dict.fromkeys(first, "unchanged"),
        "seed": "applied",
    }
    assert {name: row[:3] for name, row in again.items()} == {
        name: row[:3] for name, row in first.items()
    }
    assert environ == {
        "PJRT_NPROC": "1",
        "XLA_PYTHON_CLIENT_ALLOCATOR": "cuda_async",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }


def test_arguments_after_the_backend():
    code = """
jax.devices()
before, threads = dict(os.environ), pool()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    key = jinit.startup(7, threads + 1, memory="grow", matmul_precision="tensorfloat32")
assert bool(key == jax.random.key(7)) and dict(os.environ) == before and pool() == threads
assert "precision = [HIGH, HIGH]" in product()
jinit.startup(7, threads, allow_tf32=False, matmul_precision="bfloat16")  # nothing is too late
assert jax.config.jax_default_matmul_precision == "bfloat16"
with warnings.catch_warnings(record=True) as again:
    warnings.simplefilter("always")
    jinit.startup(7, threads + 1)
print(json.dumps({"threads": threads, "report": report(), "where": [w.filename for w in caught],
                  "warned": [str(w.message) for w in [*caught, *again]]}))
"""
    found = run(code)
    threads = found["threads"]
    remedy = "call jinit.startup() before the first JAX operation."
    assert found["warned"] == [
        f"JAX's backend is already up, too late for threads={threads + 1}, memory='grow': {remedy}",
        f"JAX's backend is already up, too late for threads={threads + 1}: {remedy}",
    ]
    assert found["where"] == ["<string>"]
    assert found["report"]["threads"] == [threads, "argument", "threads", "too late"]
    assert found["report"]["memory"] == [None, "default", "", "unchanged"]


def test_variables_override_arguments():
    variables = {
        "JINIT_SEED": "11",
        "JINIT_THREADS": "3",
        "JINIT_START_METHOD": "spawn",
        "JINIT_ALLOW_TF32": "0",
        "JINIT_MEMORY": "vmm",
    }
    code = f"""
key = jinit.startup({ALL.replace("allow_tf32=False", "matmul_precision='bfloat16'")})
assert bool(key == jax.random.key(11))
print(json.dumps([report(), pool(), multiprocessing.get_start_method()]))
"""
    report, pool, start_method = run(code, **variables)
    assert report == {
        "start_method": ["spawn", "environment", "JINIT_START_METHOD", "applied"],
        "threads": [3, "environment", "JINIT_THREADS", "applied"],
        "memory": ["vmm", "environment", "JINIT_MEMORY", "applied"],
        "matmul_precision": ["highest", "environment", "JINIT_ALLOW_TF32", "applied"],
        "seed": [11, "environment", "JINIT_SEED", "applied"],
    }
    assert (pool, start_method) == (3, "spawn")


def test_variables_of_jax_are_never_overwritten():
    variables = {
        "PJRT_NPROC": "1",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "1",
        "JAX_DEFAULT_MATMUL_PRECISION": "high",
        "JINIT_MEMORY": "grow",
    }
    code = """
before = dict(os.environ)
for _ in range(2):
    jinit.startup(0, threads=2)
assert dict(os.environ) == before
assert pool() == 1 and jax.config.jax_default_matmul_precision == "high"
print(json.dumps(jinit.startup_report().to_dict()["settings"]))
"""
    found = run(code, **variables)
    environment = {"origin": "environment", "status": "overridden by the environment"}
    assert found["threads"] == {
        "value": 1,
        "requested": 2,
        "source": "PJRT_NPROC",
        **environment,
    }
    assert found["memory"] == {
        "value": "XLA_PYTHON_CLIENT_PREALLOCATE=1",
        "requested": "grow",
        "source": "XLA_PYTHON_CLIENT_PREALLOCATE",
        **environment,
    }
    assert found["matmul_precision"] == {
        "value": "high",
        "requested": "default",
        "source": "JAX_DEFAULT_MATMUL_PRECISION",
        **environment,
    }


def test_more_devices_than_threads_are_reported_as_they_run():
    code = """
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    jinit.startup(0, threads=1)
print(json.dumps([report()["threads"], pool(), [str(w.message) for w in caught],
                  str(jinit.startup_report())]))
"""
    flags = "--xla_force_host_platform_device_count=4"
    row, pool, warned, table = run(code, XLA_FLAGS=flags)
    assert (row, pool) == ([4, "argument", "threads", "applied"], 4)
    caveat = "XLA keeps at least one thread for each CPU device."
    assert warned == [f"threads was set to 1, but is 4: {caveat}"]
    assert "4 (asked for 1)" in table
    assert "4 x cpu" in table


def test_start_methods_and_a_child_that_runs_jax():
    code = """
multiprocessing.set_start_method("spawn")
jinit.startup(0)
kept = report()["start_method"]
multiprocessing.set_start_method("fork", force=True)
jinit.startup(0)
replaced = report()["start_method"]
with multiprocessing.Pool(1) as workers:
    child = workers.apply(eval, ("int(__import__('jax').numpy.ones(3).sum())",))
print(json.dumps([kept, replaced, child]))
"""
    assert run(code) == [
        ["spawn", "default", "", "unchanged"],
        ["forkserver", "default", "", "applied"],
        3,
    ]


def test_a_drawn_seed_is_reported_and_repeats_the_run():
    code = """
first = jinit.startup()
drawn, seed = random.random(), report()["seed"][0]
assert bool(first == jinit.startup(seed)) and random.random() == drawn
jinit.startup()
print(json.dumps([seed, report()["seed"]]))
"""
    seed, row = run(code)
    assert row[0] != seed
    assert row[1:] == ["default", "", "applied"]


PRECISION_NAMES = ", ".join(map(repr, PRECISIONS))
BAD = [
    ("seed=-1", ValueError, "seed must be an integer in [0, 4294967295], not -1"),
    ("seed=2**32", ValueError, "seed must be an integer in [0, 4294967295], not 4294967296"),
    ("seed=True", TypeError, "seed must be an integer in [0, 4294967295], not True"),
    ("seed=1.0", TypeError, "seed must be an integer in [0, 4294967295], not 1.0"),
    ("threads=-1", ValueError, "threads must be an integer in [0, 256] (0: all cores), not -1"),
    ("threads=10**6", ValueError, "in [0, 256] (0: all cores), not 1000000"),
    ("threads='2'", TypeError, "threads must be an integer in [0, 256] (0: all cores), not '2'"),
    ("memory='lots'", ValueError,
     "memory must be one of 'preallocate', 'grow', 'cuda_async', 'vmm', not 'lots'"),
    ("memory=[]", ValueError, "'vmm', not []"),
    ("allow_tf32='no'", ValueError, "allow_tf32 must be one of True, False, not 'no'"),
    ("forkserver_instead_of_fork=None", ValueError,
     "forkserver_instead_of_fork must be one of True, False, not None"),
    ("matmul_precision='fastest'", ValueError,
     f"matmul_precision must be one of {PRECISION_NAMES}, not 'fastest'"),
]  # fmt: skip
BAD_VARIABLES = {
    ("JINIT_SEED", "4294967296"): "an integer in [0, 4294967295]",
    ("JINIT_SEED", "many"): "an integer in [0, 4294967295]",
    ("JINIT_THREADS", ""): "an integer in [0, 256] (0: all cores)",
    ("JINIT_START_METHOD", "thread"): "one of 'fork', 'forkserver', 'spawn'",
    ("JINIT_ALLOW_TF32", "true"): "one of '0', '1'",
    ("JINIT_MATMUL_PRECISION", "None"): f"one of {PRECISION_NAMES}",
    ("JINIT_MEMORY", "none"): "one of 'preallocate', 'grow', 'cuda_async', 'vmm'",
}


def test_bad_values_are_refused_and_change_nothing():
    code = f"""
good = dict(seed=3, threads=1, memory="grow", allow_tf32=False)
raised, untouched = [], state()
for bad in {[call for call, _, _ in BAD]}:
    try: jinit.startup(**{{**good, **eval(f"dict({{bad}})")}})
    except (TypeError, ValueError) as error: raised.append((type(error).__name__, str(error)))
    assert state() == untouched, bad
for name, text in {list(BAD_VARIABLES)}:
    os.environ[name] = text
    try: jinit.startup(**good)
    except (TypeError, ValueError) as error: raised.append((type(error).__name__, str(error)))
    del os.environ[name]
    assert state() == untouched, name
os.environ["JINIT_SEED"] = "5"  # an argument that loses is validated too
try: jinit.startup(seed=-1)
except ValueError: raised.append(None)
try: jinit.startup_report()
except RuntimeError as error: raised.append(str(error))
print(json.dumps(raised))
"""
    *raised, loser, report = run(code)
    arguments, variables = raised[: len(BAD)], raised[len(BAD) :]
    for (_, error, text), (kind, message) in zip(BAD, arguments, strict=True):
        assert kind == error.__name__
        assert message.endswith(f"{text}: pass one, or leave it out.")
    for ((name, given), legal), (kind, message) in zip(
        BAD_VARIABLES.items(), variables, strict=True
    ):
        assert kind == "ValueError"
        assert message == f"{name} must be {legal}, not {given!r}: correct or unset the variable."
    assert loser is None
    assert report == "There is nothing to report yet: call jinit.startup() first."


def test_with_warnings_as_errors_an_unknown_or_late_setting_changes_nothing():
    code = """
def refused(**arguments):
    untouched = state()
    try: jinit.startup(3, allow_tf32=False, **arguments)
    except UserWarning as warning: message = str(warning)
    assert state() == untouched
    return message
os.environ["JINIT_THREAD"] = "1"
messages = [refused()]
del os.environ["JINIT_THREAD"]
jax.devices()
messages.append(refused(memory="vmm"))
print(json.dumps(messages))
"""
    unknown, late = run(code)
    assert unknown == (
        "JINIT_THREAD is not a variable of jinit and changes nothing; "
        "the nearest one is JINIT_THREADS."
    )
    assert "too late for memory='vmm'" in late


def test_command_line_report():
    done = python("-m", "jinit", "env", "--json", warn="default", JINIT_SEED="5", JINIT_TREADS="1")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["settings"]["seed"] == {
        "value": 5,
        "requested": 5,
        "origin": "environment",
        "source": "JINIT_SEED",
        "status": "applied",
    }
    import jax
    import jaxlib

    versions = report["versions"]
    assert versions["python"] == sys.version.split()[0]
    assert versions["jinit"] == jinit.__version__
    assert (versions["jax"], versions["jaxlib"]) == (jax.__version__, jaxlib.__version__)
    assert {"flax", "numpy", "platform"} < set(versions)
    assert (report["backend"], report["devices"]) == ("cpu", {"cpu": 1})
    assert report["process_count"] == 1
    assert "JINIT_THREADS" in done.stderr

    table = python("-m", "jinit", "env", JINIT_SEED="5")
    assert table.returncode == 0, table.stderr
    lines = [line.split() for line in table.stdout.splitlines()]
    assert lines[0] == ["setting", "value", "origin", "status"]
    assert ["seed", "5", "environment", "(JINIT_SEED)", "applied"] in lines
    assert ["jax", jax.__version__] in lines
    assert ["devices", "1", "x", "cpu"] in lines


def test_command_line_bad_input_and_help():
    for arguments in (["env"], ["bogus"], ["env", "--yaml"]):
        done = python("-m", "jinit", *arguments, JINIT_SEED="-1")
        assert done.returncode == 2
        assert "error: " in done.stderr
        assert done.stdout == ""
    done = python("-m", "jinit")
    assert done.returncode == 0
    assert all(f"\n  {command} " in done.stdout for command in ("env", "demo"))


def test_demo_gets_the_arguments_that_follow_it(monkeypatch):
    from types import SimpleNamespace

    from jinit.__main__ import main

    stub = SimpleNamespace(main=lambda argv: len(argv))
    monkeypatch.setitem(sys.modules, "jinit.demo", stub)
    assert main(["demo", "--depth", "64", "--help"]) == 3


def test_report_of_every_status_is_plain_json():
    code = """
jinit.startup(1, memory="grow")
plain = jinit.startup_report().to_dict()
assert json.loads(jinit.startup_report().to_json()) == plain
plain["settings"].clear()
assert len(jinit.startup_report().settings) == 5
print(json.dumps(sorted(plain)))
"""
    assert run(code) == ["backend", "devices", "process_count", "settings", "versions"]


@pytest.mark.parametrize("name", ["startup", "startup_report"])
def test_the_functions_hide_the_module_of_the_same_name(name):
    assert callable(getattr(jinit, name))


def test_a_precision_that_the_user_set_before_is_left_by_the_default():
    code = """
jax.config.update("jax_default_matmul_precision", "highest")
jinit.startup(0)
kept = jax.config.jax_default_matmul_precision, report()["matmul_precision"]
jinit.startup(0, allow_tf32=True, matmul_precision="high")
print(json.dumps([*kept, jax.config.jax_default_matmul_precision]))
"""
    kept, reported, explicit = run(code)
    assert kept == "highest"
    assert (reported[0], reported[3]) == ("highest", "unchanged")
    assert explicit == "high"
