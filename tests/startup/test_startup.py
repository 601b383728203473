"""The start of a process: in one call, in two, and beside what the user has set."""

import os

import pytest

import jinit
from tests.processes import python, run, run_case

PREAMBLE = "from tests.programs import *\n"
CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        (
            "pass",
            {"jax", "jaxlib", "numpy", "flax", "optax", "rich", "matplotlib", "multiprocessing"},
        ),
        ("jinit.startup(1)", {"flax", "optax", "rich", "matplotlib", "torch", "tensorflow"}),
    ],
)
def test_what_is_not_imported(code, unwanted):
    done = python("-c", f"import sys, jinit; {code}; print({unwanted} & set(sys.modules))")
    assert done.stdout.strip() == "set()", done.stderr


def test_the_key_the_streams_and_the_defaults():
    code = """
key = jinit.startup(np.int64(4294967295))
drawn = random.random(), float(np.random.random())
after = rows()
assert key.shape == () and jax.numpy.issubdtype(key.dtype, jax.dtypes.prng_key)
assert bool(key == jax.random.key(4294967295))
assert drawn == (random.Random(4294967295).random(), np.random.RandomState(4294967295).random())
print(json.dumps({"bits": int(jax.random.bits(key)), "report": after, "pool": pool(),
                  "started": multiprocessing.get_start_method(allow_none=True),
                  "precision": jax.config.jax_default_matmul_precision,
                  "set": [name for name in os.environ if name.startswith(("XLA_", "PJRT_"))]}))
"""
    found = run(PREAMBLE + code)
    default = ["default", "", "unchanged"]
    assert found == {
        "bits": 2226700399,  # the same on every Python and jax
        "report": {
            "xla_flags": [None, *default],
            "deterministic": [False, *default],
            "threads": [CORES, *default],
            "memory": [None, *default],
            "memory_fraction": [None, *default],
            "platform": ["cpu", "environment", "JAX_PLATFORMS", "unchanged"],
            "cpu_devices": [1, *default],
            "distributed": [False, *default],
            "start_method": ["forkserver", "default", "", "applied"],
            "compilation_cache": ["off", *default],
            "enable_x64": [False, *default],
            "prng_impl": ["threefry2x32", *default],
            "matmul_precision": ["default", "default", "", "applied"],
            "debug_nans": [False, *default],
            "debug_key_reuse": [False, *default],
            "seed": [4294967295, "argument", "seed", "applied"],
        },
        "pool": CORES,
        "started": "forkserver",
        "precision": "default",
        "set": [],
    }


MANY = """dict(seed=7, threads=1, forkserver_instead_of_fork=False, allow_tf32=False,
    enable_x64=True, memory='cuda_async', memory_fraction=0.5,
    xla_flags={'xla_cpu_enable_fast_math': True}, cpu_devices=1, prng_impl="threefry4x32",
    debug_nans=True)"""


def test_the_same_call_again_changes_nothing_and_starts_the_streams_again():
    code = f"""
jinit.startup(**{MANY})
first, drawn, before = rows(), random.random(), dict(os.environ)
key = jinit.startup(**{MANY})
assert random.random() == drawn and dict(os.environ) == before and pool() == 1
assert bool(jax.random.key(7) == key) and "[HIGHEST, HIGHEST]" in product()
result = [first, rows()]
"""
    first, again = run_case(code)
    status = {name: row[3] for name, row in again.items()}
    assert status == {**dict.fromkeys(first, "unchanged"), "seed": "applied"}
    assert {n: row[:3] for n, row in again.items()} == {n: row[:3] for n, row in first.items()}
    assert (first["threads"], first["xla_flags"]) == (
        [1, "argument", "threads", "applied"],
        [{"xla_cpu_enable_fast_math": "true"}, "argument", "xla_flags", "applied"],
    )


def test_another_call_says_what_differs():
    code = """
jinit.startup(1, threads=1, debug_nans=True)
first = caught_in(lambda: jinit.startup(2, threads=2, debug_nans=True))
after = rows("threads", "debug_nans")
second = caught_in(lambda: jinit.startup(2, threads=2, debug_nans=True))
third = caught_in(lambda: jinit.startup())
result = [first, second, third, after, rows("threads", "debug_nans")]
"""
    first, second, third, after, later = run_case(code)
    late = (
        "JAX's backend is already up, too late for threads=2: call jinit.startup() before the "
        "first JAX operation."
    )
    differs = "This startup asks for something else than the last one: "
    assert first == [f"{late} {differs}threads was 1 and is 2, seed was 1 and is 2."]
    assert second == [late]
    assert third == [
        f"{differs}threads was 2 and is None, debug_nans was True and is None, seed was 2 and is "
        "None."
    ]
    # Nobody changed it since the first call, whose argument it is.
    assert after["threads"] == [1, "argument", "threads", "too late"]
    assert later["debug_nans"] == [True, "argument", "debug_nans", "unchanged"]


def test_after_the_backend_what_can_be_set_is_set_and_the_rest_reported():
    code = """
jax.devices()
before, threads = dict(os.environ), pool()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    key = jinit.startup(7, threads + 1, memory="grow", matmul_precision="tensorfloat32")
assert bool(key == jax.random.key(7)) and dict(os.environ) == before and pool() == threads
assert "precision = [HIGH, HIGH]" in product()
result = {"threads": threads, "rows": rows("threads", "memory"),
          "where": [w.filename for w in caught], "warned": [str(w.message) for w in caught]}
"""
    found = run_case(code)
    threads = found["threads"]
    assert found["warned"] == [
        f"JAX's backend is already up, too late for threads={threads + 1}, memory='grow': call "
        "jinit.startup() before the first JAX operation."
    ]
    assert found["where"] == ["<string>"]
    assert found["rows"] == {
        "threads": [threads, "argument", "threads", "too late"],
        "memory": [None, "argument", "memory", "too late"],
    }


def test_variables_of_jax_are_never_overwritten():
    variables = {
        "PJRT_NPROC": "1",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "1",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": ".50",
        "JAX_DEFAULT_MATMUL_PRECISION": "high",
        "JAX_ENABLE_X64": "on",
        "JAX_NUM_CPU_DEVICES": "2",
        "JAX_COMPILATION_CACHE_DIR": "/of/the/user",
        "JINIT_MEMORY": "grow",
    }
    code = """
before = dict(os.environ)
for _ in range(2):
    jinit.startup(0, threads=3, memory_fraction=0.9, enable_x64=False, cpu_devices=3,
                  compilation_cache=False, platform="cpu")
assert dict(os.environ) == before
assert jax.config.jax_enable_x64 and jax.device_count() == 2
assert jax.config.jax_default_matmul_precision == "high"
print(json.dumps(jinit.startup_report().to_dict()["settings"]))
"""
    found = run(PREAMBLE + code, warn="ignore", **variables)
    memory = "XLA_PYTHON_CLIENT_PREALLOCATE=1"
    for name, value, requested, source in [
        ("threads", 2, 3, "PJRT_NPROC"),  # as many as there are devices
        ("memory", memory, "grow", "XLA_PYTHON_CLIENT_PREALLOCATE"),
        ("memory_fraction", 0.5, 0.9, "XLA_PYTHON_CLIENT_MEM_FRACTION"),
        ("matmul_precision", "high", "default", "JAX_DEFAULT_MATMUL_PRECISION"),
        ("enable_x64", True, False, "JAX_ENABLE_X64"),
        ("cpu_devices", 2, 3, "JAX_NUM_CPU_DEVICES"),
        ("compilation_cache", "/of/the/user", "off", "JAX_COMPILATION_CACHE_DIR"),
    ]:
        assert found[name] == {
            "value": value,
            "requested": requested,
            "origin": "environment",
            "source": source,
            "status": "overridden by the environment",
        }


@pytest.mark.thorough
def test_what_a_parent_set_is_not_its_childs_users():
    code = """
import subprocess, sys
jinit.startup(0, threads=1, memory="grow", xla_flags={"xla_cpu_enable_fast_math": True})
child = '''
from tests.programs import *
jinit.startup(0, threads=2, memory="vmm", xla_flags={"xla_cpu_enable_fast_math": False})
print(json.dumps([rows("threads", "memory", "xla_flags"), pool(), os.environ["XLA_FLAGS"]]))
'''
done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True)
result = json.loads(done.stdout)
"""
    found, pool, flags = run_case(code, XLA_FLAGS="--xla_gpu_autotune_level=1")
    assert found == {
        "threads": [2, "argument", "threads", "applied"],
        "memory": ["vmm", "argument", "memory", "applied"],
        "xla_flags": [{"xla_cpu_enable_fast_math": "false"}, "argument", "xla_flags", "applied"],
    }
    assert pool == 2
    assert sorted(flags.split()) == [
        "--xla_cpu_enable_fast_math=false",
        "--xla_gpu_autotune_level=1",
    ]


@pytest.mark.thorough
@pytest.mark.parametrize("users", ["--xla_gpu_autotune_level=1", ""])
def test_a_parents_flags_beside_its_users_are_not_its_childs_users(users):
    """The flag of the devices is another way to ask for what ``cpu_devices`` asks for."""
    code = """
import subprocess, sys
warnings.simplefilter("ignore")
jinit.startup(0, xla_flags={"xla_force_host_platform_device_count": 2}, deterministic=True)
child = '''
from tests.programs import *
if os.environ.get("LATER"): os.environ["XLA_FLAGS"] += " " + os.environ["LATER"]
jinit.startup(0, cpu_devices=3)
print(json.dumps([rows("cpu_devices", "deterministic"), jax.device_count()]))
'''
def done(**more):
    command, pipes = [sys.executable, "-c", child], dict(capture_output=True, text=True)
    done = subprocess.run(command, env={**os.environ, **more}, **pipes)
    return json.loads(done.stdout or json.dumps(done.stderr))
result = [done(), done(LATER="--xla_force_host_platform_device_count=5")]
"""
    own, users_later = run_case(code, XLA_FLAGS=users)
    assert own == [
        {
            "cpu_devices": [3, "argument", "cpu_devices", "applied"],
            "deterministic": [True, "environment", "XLA_FLAGS", "unchanged"],
        },
        3,
    ]
    row, devices = users_later
    overridden = [5, "environment", "XLA_FLAGS", "overridden by the environment"]
    assert (row["cpu_devices"], devices) == (overridden, 5)


def test_more_devices_than_threads_are_reported_as_they_run():
    code = """
warned = caught_in(lambda: jinit.startup(0, threads=1, cpu_devices=4))
result = [rows("threads"), pool(), warned, str(jinit.startup_report())]
"""
    row, pool, warned, table = run_case(code)
    assert (row["threads"], pool) == ([4, "argument", "threads", "applied"], 4)
    caveat = "XLA keeps a thread for each CPU device, and PJRT_NPROC in the environment wins."
    assert warned == [f"threads was set to 1, but is 4: {caveat}"]
    assert "4 (asked for 1)" in table
    assert "4 x cpu" in table


def test_start_methods_and_a_child_that_runs_jax():
    code = """
multiprocessing.set_start_method("spawn")
jinit.startup(0)
kept = rows("start_method")
multiprocessing.set_start_method("fork", force=True)
jinit.startup(0)
replaced = rows("start_method")
with multiprocessing.Pool(1) as workers:
    child = workers.apply(eval, ("int(__import__('jax').numpy.ones(3).sum())",))
print(json.dumps([kept["start_method"], replaced["start_method"], child]))
"""
    assert run(PREAMBLE + code) == [
        ["spawn", "default", "", "unchanged"],
        ["forkserver", "default", "", "applied"],
        3,
    ]


def test_a_drawn_seed_is_reported_and_repeats_the_run():
    code = """
first = jinit.startup()
drawn, seed = random.random(), rows("seed")["seed"][0]
warnings.simplefilter("ignore")
assert bool(first == jinit.startup(seed)) and random.random() == drawn
jinit.startup()
result = [seed, rows("seed")["seed"]]
"""
    seed, row = run_case(code)
    assert row[0] != seed
    assert row[1:] == ["default", "", "applied"]


def test_a_precision_that_the_user_set_before_is_left_by_the_default():
    code = """
jax.config.update("jax_default_matmul_precision", "highest")
jinit.startup(0)
kept = jax.config.jax_default_matmul_precision, rows("matmul_precision")["matmul_precision"]
warnings.simplefilter("ignore")
jinit.startup(0, allow_tf32=True, matmul_precision="high")
result = [*kept, jax.config.jax_default_matmul_precision]
"""
    kept, reported, explicit = run_case(code)
    assert kept == "highest"
    assert (reported[0], reported[3]) == ("highest", "unchanged")
    assert explicit == "high"


def test_deterministic_mode_without_a_startup():
    code = """
warned = caught_in(jinit.configure_deterministic_mode)
again = caught_in(jinit.configure_deterministic_mode)
flags = os.environ["XLA_FLAGS"]
os.environ["XLA_FLAGS"] = "--xla_gpu_deterministic_ops=false"
errors = []
for _ in range(2):
    try: jinit.configure_deterministic_mode()
    except RuntimeError as error: errors.append(str(error))
    os.environ["XLA_FLAGS"] = ""
    jax.devices()
result = [warned, again, flags, os.environ["XLA_FLAGS"], errors]
"""
    warned, again, flags, after, errors = run_case(code)
    assert warned == again
    assert warned == ["deterministic mode costs speed on a GPU, in scatters most of all."]
    assert (flags, after) == ("--xla_gpu_deterministic_ops=true", "")
    text = (
        "Deterministic mode cannot be had, its flags {'xla_gpu_deterministic_ops': 'true'} are "
        "%s: call it before the first JAX operation, without other values of them in XLA_FLAGS."
    )
    assert errors == [text % "overridden by the environment", text % "too late"]


@pytest.mark.parametrize("name", ["startup", "startup_report"])
def test_the_functions_hide_the_module_of_the_same_name(name):
    assert callable(getattr(jinit, name))
