"""Each setting in a process of its own: asked for in time, by its variable, and too late."""

import json
import os
import random
import socket

import pytest

from jinit.settings.table import SETTINGS
from tests.processes import run_cases

PRELUDE = """
import glob, json, multiprocessing, os, random, re, tempfile, warnings
import jax, jax.numpy as jnp, numpy as np
import jinit
folder = tempfile.mkdtemp()

def pool():
    comms = [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
    return comms.count("tf_XLAEigen\\n")

def raises(fn, *args):
    try: fn(*args)
    except Exception as error: return type(error).__name__
    return None

def compile():
    jax.jit(lambda x: 2 * x + 1)(1.0)

def precision():
    square = np.ones((2, 2), "f")
    lowered = jax.jit(jnp.dot).lower(square, square)
    return re.findall(r"precision = (\\[.*?\\])", lowered.as_text())[0]

def gpu():
    names = ("PREALLOCATE", "ALLOCATOR")
    return [os.environ.get("XLA_PYTHON_CLIENT_" + name) for name in names]

def answer():
    return {"seen": see(), **{name: getattr(row, name) for row in
            [jinit.startup_report().settings[NAME]] for name in ("value", "origin", "status")}}
"""
CALL = """
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    key = jinit.startup(**ARGUMENTS)
result = {**answer(), "warned": [str(warning.message) for warning in caught]}
"""
TOO_LATE = "jax.random.key(0); compile()" + CALL
BY_VARIABLE = "ARGUMENTS = {}" + CALL
ADVICE = {
    "deterministic": "deterministic mode costs speed on a GPU, in scatters most of all.",
    "prng_impl": "rbg draws other numbers under vmap than in a loop, and may on another version "
    "of XLA.",
}

ALL_CORES = len(os.sched_getaffinity(0))
DRAWN = random.Random(5).random()
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    ALONE = {
        "coordinator_address": f"127.0.0.1:{free.getsockname()[1]}",
        "num_processes": 1,
        "process_id": 0,
    }

ROWS = [
    # setting, its arguments, its variable, what to see, what is seen in time, and what too late
    ("seed", "dict(seed=5)", "5", "random.random()", DRAWN, DRAWN),
    ("threads", "dict(threads=1)", "1", "pool()", 1, ALL_CORES),
    ("start_method", "dict(forkserver_instead_of_fork=False)", "fork",
     "multiprocessing.get_start_method()", "fork", "fork"),
    ("matmul_precision", "dict(allow_tf32=False)", "highest", "precision()",
     "[HIGHEST, HIGHEST]", "[HIGHEST, HIGHEST]"),
    ("matmul_precision", "dict(matmul_precision='high')", "high", "precision()",
     "[HIGH, HIGH]", "[HIGH, HIGH]"),
    ("memory", "dict(memory='preallocate')", "preallocate", "gpu()", ["true", "bfc"], [None] * 2),
    ("memory", "dict(memory='grow')", "grow", "gpu()", ["false", "bfc"], [None] * 2),
    ("memory", "dict(memory='cuda_async')", "cuda_async", "gpu()",
     ["false", "cuda_async"], [None] * 2),
    ("memory", "dict(memory='vmm')", "vmm", "gpu()", ["false", "vmm"], [None] * 2),
    ("memory", "dict(expandable_segments=True)", "cuda_async", "gpu()",
     ["false", "cuda_async"], [None] * 2),
    ("memory", "dict(expandable_segments=False)", "preallocate", "gpu()",
     ["true", "bfc"], [None] * 2),
    ("memory_fraction", "dict(memory_fraction=0.5)", "0.5",
     "list(map(os.environ.get, ('XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION')))",
     ["0.5", None], [None, None]),
    ("xla_flags", "dict(xla_flags={'xla_force_host_platform_device_count': 3})",
     "--xla_force_host_platform_device_count=3", "jax.device_count()", 3, 1),
    ("deterministic", "dict(deterministic=True)", "1", "os.environ.get('XLA_FLAGS')",
     "--xla_gpu_deterministic_ops=true", None),
    ("prng_impl", "dict(prng_impl='rbg')", "rbg", "str(jax.random.key_impl(key))", "rbg", "rbg"),
    ("enable_x64", "dict(enable_x64=True)", "1", "str(jnp.arange(2.0).dtype)",
     "float64", "float64"),
    ("debug_nans", "dict(debug_nans=True)", "1", "raises(jnp.log, -1.0)",
     "FloatingPointError", "FloatingPointError"),
    ("debug_key_reuse", "dict(debug_key_reuse=True)", "1",
     "raises(lambda: (jax.random.bits(key), jax.random.bits(key)))",
     "KeyReuseError", "KeyReuseError"),
    ("platform", "dict(platform='cpu')", "cpu", "jax.config.jax_platforms", "cpu", ""),
    ("cpu_devices", "dict(cpu_devices=3)", "3", "jax.device_count()", 3, 1),
    ("compilation_cache", "dict(compilation_cache=folder)", "FOLDER",
     "compile() or len(glob.glob(jax.config.jax_compilation_cache_dir + '/*')) > 0", True, True),
    ("distributed", f"dict(distributed={ALONE})", json.dumps(ALONE),
     "jax.distributed.is_initialized()", True, False),
]  # fmt: skip
SOON_ENOUGH = {
    *("seed", "start_method", "matmul_precision", "compilation_cache"),
    *("prng_impl", "enable_x64", "debug_nans", "debug_key_reuse"),
}


def variable(name, text, folder):
    return {f"JINIT_{name.upper()}": text.replace("FOLDER", str(folder))}


def three_answers(row, folder):
    name, arguments, text, see, _, _ = ROWS[row]
    head = f"{PRELUDE}\nNAME = {name!r}\nsee = lambda: {see}\nARGUMENTS = {arguments}\n"
    given = variable(name, text, folder)
    cases = [(head + CALL, {}), (head + BY_VARIABLE, given), (head + TOO_LATE, {})]
    # Without the variable, as where there are other platforms: it would win over the argument.
    answers = run_cases(cases, JAX_PLATFORMS="")
    return [answer.get("result", answer) for answer in answers]


@pytest.mark.cases
@pytest.mark.parametrize("row", range(len(ROWS)), ids=lambda row: f"{ROWS[row][0]}-{row}")
def test_a_setting_in_time_by_its_variable_and_too_late(tmp_path, row):
    name, _, _, _, in_time, late = ROWS[row]
    argument, by_variable, after = three_answers(row, tmp_path)
    advice = [ADVICE[name]] if name in ADVICE else []
    for found, origin in ((argument, "argument"), (by_variable, "environment")):
        assert (found["seen"], found["origin"], found["status"]) == (in_time, origin, "applied")
        assert found["warned"] == advice
    assert by_variable["value"] == argument["value"] or name == "compilation_cache"
    status = "applied" if name in SOON_ENOUGH else "unchanged" if name == "platform" else "too late"
    assert (after["seen"], after["status"]) == (late, status)
    if status == "too late":
        assert after["warned"][0].startswith("JAX's backend is already up, too late for ")
    else:
        assert after["warned"] == advice


def test_there_is_a_row_for_every_setting():
    assert {row[0] for row in ROWS} == set(SETTINGS)
