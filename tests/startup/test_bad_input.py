"""Bad arguments and variables: what is said, and that nothing is changed."""

import json

import pytest

from jinit.settings.jax_options import PRNG_IMPLS
from jinit.settings.precision import PRECISIONS
from tests.processes import run_cases

PREAMBLE = "from tests.programs import *\n"
PRECISION_NAMES = ", ".join(map(repr, PRECISIONS))
IMPL_NAMES = ", ".join(map(repr, PRNG_IMPLS))
SEED, SWITCH = "an integer in [0, 4294967295]", "one of True, False"
THREADS = "an integer in [0, 256] (0: all cores)"
MEMORY = "one of 'preallocate', 'grow', 'cuda_async', 'vmm'"
BAD = [
    ("seed=-1", ValueError, f"seed must be {SEED}, not -1"),
    ("seed=2**32", ValueError, f"seed must be {SEED}, not 4294967296"),
    ("seed=True", TypeError, f"seed must be {SEED}, not True"),
    ("seed=1.0", TypeError, f"seed must be {SEED}, not 1.0"),
    ("threads=-1", ValueError, f"threads must be {THREADS}, not -1"),
    ("threads=10**6", ValueError, f"threads must be {THREADS}, not 1000000"),
    ("threads='2'", TypeError, f"threads must be {THREADS}, not '2'"),
    ("memory='lots'", ValueError, f"memory must be {MEMORY}, not 'lots'"),
    ("memory=[]", ValueError, f"memory must be {MEMORY}, not []"),
    ("expandable_segments='yes'", ValueError, f"expandable_segments must be {SWITCH}, not 'yes'"),
    ("memory_fraction=0", ValueError, "memory_fraction must be a number in (0, 1], not 0"),
    ("memory_fraction=1.5", ValueError, "memory_fraction must be a number in (0, 1], not 1.5"),
    ("memory_fraction=True", TypeError, "memory_fraction must be a number in (0, 1], not True"),
    ("memory_fraction='all'", ValueError, "memory_fraction must be a number in (0, 1], not 'all'"),
    ("memory_fraction=float('nan')", ValueError,
     "memory_fraction must be a number in (0, 1], not nan"),
    ("allow_tf32='no'", ValueError, f"allow_tf32 must be {SWITCH}, not 'no'"),
    ("forkserver_instead_of_fork=None", ValueError,
     f"forkserver_instead_of_fork must be {SWITCH}, not None"),
    ("matmul_precision='fastest'", ValueError,
     f"matmul_precision must be one of {PRECISION_NAMES}, not 'fastest'"),
    ("deterministic=None", ValueError, f"deterministic must be {SWITCH}, not None"),
    ("prng_impl='mt19937'", ValueError, f"prng_impl must be one of {IMPL_NAMES}, not 'mt19937'"),
    ("enable_x64='no'", ValueError, f"enable_x64 must be {SWITCH}, not 'no'"),
    ("debug_nans=2", ValueError, f"debug_nans must be {SWITCH}, not 2"),
    ("debug_key_reuse=''", ValueError, f"debug_key_reuse must be {SWITCH}, not ''"),
    ("cpu_devices=0", ValueError, "cpu_devices must be an integer in [1, 1024], not 0"),
    ("cpu_devices=1025", ValueError, "cpu_devices must be an integer in [1, 1024], not 1025"),
    ("compilation_cache=3", ValueError,
     "compilation_cache must be True (a folder of your own), False or a folder, not 3"),
    ("compilation_cache=''", ValueError,
     "compilation_cache must be True (a folder of your own), False or a folder, not ''"),
    ("distributed={'process_id': -1}", ValueError,
     "distributed['process_id'] must be an integer of at least 0, not -1"),
    ("distributed={'coordinator_address': 'localhost:0'}", ValueError,
     "distributed['coordinator_address'] must be 'host:port' with a port in [1, 65535], "
     "not 'localhost:0'"),
    ("distributed={'initialization_timeout': 0}", ValueError,
     "distributed['initialization_timeout'] must be a whole number of seconds of at least 1, "
     "not 0"),
    ("distributed={'num_processes': 2, 'process_id': 2}", ValueError,
     "distributed['process_id'] must be less than num_processes=2, not 2"),
    ("distributed={'local_device_ids': {0}}", ValueError,
     "distributed['local_device_ids'] must be a list of integers of at least 0, not {0}"),
    ("memory_fraction=10**400", ValueError,
     f"memory_fraction must be a number in (0, 1], not 1{'0' * 199}... (401 characters)"),
    ("xla_flags={'xla_dump_to': 'x' * 10**5}", ValueError,
     "xla_flags must be a dict such as {'xla_dump_to': 'dumps'}, a list such as "
     "['--xla_dump_to=dumps'] or a text of such flags, not {'xla_dump_to': '"
     f"{'x' * 183}... (100019 characters)"),
    ("compilation_cache='/etc/passwd/programs'", ValueError,
     "compilation_cache must be a folder that you can write to, which '/etc/passwd' is not, "
     "not '/etc/passwd/programs'"),
    ("xla_flags={'a': 1, '--a': 2}", ValueError,
     "xla_flags must be a dict such as {'xla_dump_to': 'dumps'}, a list such as "
     "['--xla_dump_to=dumps'] or a text of such flags, not {'a': 1, '--a': 2}"),
    ("platform='c p u'", ValueError,
     "platform must be a platform such as 'cpu', 'gpu' or 'tpu', or several joined by commas, "
     "not 'c p u'"),
    ("strict=1.5", ValueError, f"strict must be {SWITCH}, not 1.5"),
]  # fmt: skip
BAD_VARIABLES = {
    ("JINIT_SEED", "4294967296"): SEED,
    ("JINIT_SEED", "many"): SEED,
    ("JINIT_THREADS", ""): THREADS,
    ("JINIT_START_METHOD", "thread"): "one of 'fork', 'forkserver', 'spawn'",
    ("JINIT_ALLOW_TF32", "true"): "one of '0', '1'",
    ("JINIT_MATMUL_PRECISION", "None"): f"one of {PRECISION_NAMES}",
    ("JINIT_MEMORY", "none"): MEMORY,
    ("JINIT_EXPANDABLE_SEGMENTS", "True"): "one of '0', '1'",
    ("JINIT_MEMORY_FRACTION", "75%"): "a number in (0, 1]",
    ("JINIT_DETERMINISTIC", ""): "one of '0', '1'",
    ("JINIT_PRNG_IMPL", "philox"): f"one of {IMPL_NAMES}",
    ("JINIT_ENABLE_X64", "on"): "one of '0', '1'",
    ("JINIT_DEBUG_NANS", "2"): "one of '0', '1'",
    ("JINIT_DEBUG_KEY_REUSE", "2"): "one of '0', '1'",
    ("JINIT_CPU_DEVICES", "4096"): "an integer in [1, 1024]",
    ("JINIT_COMPILATION_CACHE", ""): "0, 1 or the path of a folder, with a /",
    ("JINIT_COMPILATION_CACHE", "true"): "0, 1 or the path of a folder, with a /",
    ("JINIT_STRICT", "2"): "one of '0', '1'",
    ("PJRT_NPROC", "100000"): "an integer in [0, 1024]",
    ("NPROC", "100000"): "an integer in [0, 1024]",
}
SET_GOOD = 'good = dict(seed=3, threads=1, memory="grow", allow_tf32=False)\n'
REFUSED = """
raised = []
for bad in {bad}:
    untouched = state()
    try: jinit.startup(**{{**good, **eval(f"dict({{bad}})")}})
    except Exception as error: raised.append([type(error).__name__, str(error)])
    assert state() == untouched, bad
"""


def refused(*calls, before="", **variables):
    code = PREAMBLE + SET_GOOD + before + REFUSED.format(bad=calls) + "result = raised"
    (answer,) = run_cases([(code, variables)])
    assert "result" in answer, answer
    return answer["result"]


def test_bad_arguments_are_refused_and_change_nothing():
    raised = refused(*(call for call, _, _ in BAD))
    assert raised == [
        [error.__name__, f"{text}: pass one, or leave it out."] for _, error, text in BAD
    ]


def test_bad_variables_are_refused_and_change_nothing():
    for (name, given), legal in BAD_VARIABLES.items():
        text = f"{name} must be {legal}, not {given!r}: correct or unset the variable."
        assert refused("", **{name: given}) == [["ValueError", text]]


def test_bad_variables_with_more_to_say():
    ((kind, text),) = refused("", JINIT_PLATFORM="gpu")
    assert kind == "ValueError"
    assert text.startswith("JINIT_PLATFORM must be made of 'cpu', 'tpu'")
    ending = ", the platforms that are installed here, not 'gpu': correct or unset the variable."
    assert text.endswith(ending)
    for given in ("yes", "[1]", '{"port": 1}', "", "2"):
        ((kind, text),) = refused("", JINIT_DISTRIBUTED=given)
        assert text.startswith("JINIT_DISTRIBUTED must be True, False or a dict of 'coordinator_a")
    bad = json.dumps({"coordinator_address": "here"})
    ((kind, text),) = refused("", JINIT_DISTRIBUTED=bad)
    assert text == (
        "JINIT_DISTRIBUTED['coordinator_address'] must be 'host:port' with a port in [1, 65535], "
        "not 'here': correct or unset the variable."
    )


def test_an_argument_that_loses_is_checked_too():
    assert refused("seed=-1", JINIT_SEED="5")[0][0] == "ValueError"


def test_strict_turns_warnings_into_errors_before_anything_is_changed():
    up = "jax.devices()\n"
    remedy, also = "call jinit.startup() before the first JAX operation.", "memory='grow'"
    assert refused("strict=True, threads=256", before=up) == [
        ["RuntimeError", f"JAX's backend is already up, too late for threads=256, {also}: {remedy}"]
    ]
    assert refused("strict=True, memory='vmm', threads=None", before=up, JINIT_STRICT="1") == [
        ["RuntimeError", f"JAX's backend is already up, too late for memory='vmm': {remedy}"]
    ]
    assert refused("strict=True", JINIT_THREAD="1") == [
        [
            "ValueError",
            "JINIT_THREAD is not a variable of jinit, of which the nearest is JINIT_THREADS: "
            "correct it, or go on without it and strict=True.",
        ]
    ]


def test_with_warnings_as_errors_nothing_is_changed():
    error = 'warnings.simplefilter("error")\n'
    assert refused("", before=error, JINIT_THREAD="1") == [
        [
            "UserWarning",
            "JINIT_THREAD is not a variable of jinit, of which the nearest is JINIT_THREADS: it "
            "is left out.",
        ]
    ]
    ((kind, text),) = refused("threads=None, memory='vmm'", before=error + "jax.devices()\n")
    assert kind == "UserWarning"
    assert "too late for memory='vmm'" in text


@pytest.mark.thorough
def test_a_backend_that_does_not_start_leaves_all_as_it_was():
    call = (
        "platform='tpu', cpu_devices=2, xla_flags={'xla_cpu_enable_fast_math': True}, "
        "memory_fraction=0.5"
    )
    code = (
        PREAMBLE
        + SET_GOOD
        + REFUSED.format(bad=(call,))
        + """
jinit.startup(3, threads=1)  # and it can still be started otherwise
result = [raised, pool(), jax.default_backend(), jax.device_count()]
"""
    )
    (answer,) = run_cases([(code, {})], JAX_PLATFORMS="")
    raised, pool, backend, devices = answer["result"]
    assert raised[0][0] == "RuntimeError"
    assert raised[0][1].startswith(
        "JAX's backend does not start, and every setting was changed back: Unable to initialize "
        "backend 'tpu': "
    )
    assert (pool, backend, devices) == (1, "cpu", 1)


def test_a_run_of_processes_that_cannot_connect_leaves_all_as_it_was():
    alone, nobody = refused(
        "distributed=True",
        "distributed=dict(coordinator_address='127.0.0.1:9', num_processes=2, process_id=1, "
        "initialization_timeout=1)",
    )
    assert alone == [
        "RuntimeError",
        "distributed={} did not connect: coordinator_address should be defined. Pass a dict with "
        "coordinator_address, num_processes and process_id, or True on a cluster that JAX knows.",
    ]
    assert nobody == [
        "TimeoutError",
        "The coordinator '127.0.0.1:9' of distributed= did not answer process 1 in 1 s: start "
        "process 0, and check the address and the firewall.",
    ]


def test_there_is_nothing_to_report_before_a_startup():
    code = """
import jinit
try: jinit.startup_report()
except RuntimeError as error: result = str(error)
"""
    assert run_cases([(code, {})]) == [
        {"result": "There is nothing to report yet: call jinit.startup() first."}
    ]


def test_what_fails_after_the_backend_is_changed_back_and_not_reported():
    code = (
        PREAMBLE
        + """
from jinit.settings import table
import dataclasses
def fail(): raise ValueError("the backend refuses it")
late = dataclasses.replace(table.SETTINGS["matmul_precision"], confirm=fail)
table.SETTINGS["matmul_precision"] = late
untouched = state()
try: jinit.startup(1, threads=1, enable_x64=True, debug_nans=True,
                   forkserver_instead_of_fork=False, compilation_cache="programs")
except ValueError as error: raised = str(error)
after = state()
kept = [after[i] == untouched[i] for i in (0, 1, 3, 4)]
result = [raised, kept, rows(), pool()]
"""
    )
    (answer,) = run_cases([(code, {})])
    assert "result" in answer, answer
    raised, kept, rows, pool = answer["result"]
    assert raised == "the backend refuses it"
    assert kept == [True] * 4  # Python, NumPy, JAX's options, the start method
    assert rows["threads"] == [1, "argument", "threads", "applied"]
    assert pool == 1
    assert not {"seed", "enable_x64", "debug_nans", "start_method"} & set(rows)


def test_a_generator_that_cannot_be_seeded_is_refused_before_anything_is_changed():
    before = "np.random.set_bit_generator(np.random.PCG64(1))\n"
    ((kind, text),) = refused("enable_x64=True", before=before)
    assert kind == "RuntimeError"
    assert text.startswith("NumPy's global generator is PCG64, but only MT19937 can be seeded")


def test_deterministic_mode_warns_before_it_changes_anything():
    code = (
        PREAMBLE
        + """
warnings.simplefilter("error")
untouched = state()
try: jinit.configure_deterministic_mode()
except UserWarning as warning: result = [str(warning), state() == untouched]
"""
    )
    (answer,) = run_cases([(code, {})])
    text = "deterministic mode costs speed on a GPU, in scatters most of all."
    assert answer["result"] == [text, True]
