"""No flag, variable or argument kills or hangs the process: it starts, or it gets an error."""

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from jinit.settings.table import SETTINGS, STRICT
from tests.processes import python, run_cases

PREAMBLE = "from tests.programs import *\nwarnings.simplefilter('ignore')\n"
START = """
untouched = state()
try:
    key = jinit.startup(**{arguments!r})
    result = ["started", int(jax.random.bits(key)) >= 0, len(str(jinit.startup_report())) > 0]
except (TypeError, ValueError, RuntimeError, OSError) as error:
    result = ["refused", state() == untouched, len(str(error)) > 20]
"""

NAMES = [
    "xla_cpu_enable_fast_math", "xla_force_host_platform_device_count", "xla_dump_to",
    "xla_gpu_autotune_level", "xla_backend_extra_options", "xla_disable_all_hlo_passes",
    "xla_tpu_anything", "xla_cpu_enable_fast_mth", "no_such_flag",
]  # fmt: skip
VALUES = ["true", "false", "0", "1", "3", "-1", "99999999999", "banana", "", "a b", "'", '"x y"']
text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
value = st.sampled_from(VALUES) | text
flag = st.builds("--{}={}".format, st.sampled_from(NAMES), value) | st.builds(
    "--{}".format, st.sampled_from(NAMES)
)
flags = st.lists(flag | text, max_size=3).map(" ".join)

VARIABLES = sorted(
    source.name for each in (*SETTINGS.values(), STRICT) for source in each.variables
)
numbers = st.sampled_from(["0", "1", "2", "-3", "8", "256", "1024", "99999", "1e9"])
words = st.sampled_from(
    ["true", "cpu", "tpu", "cpu,tpu", "grow", "vmm", "rbg", "highest", "TF32_TF32_F32", "spawn",
     "{}", '{"process_id": 0}', "0.5", "off", "None"]
)  # fmt: skip
variables = st.dictionaries(
    st.sampled_from([*VARIABLES, "PJRT_NPROC", "NPROC", "XLA_PYTHON_CLIENT_ALLOCATOR"]),
    numbers | words | text,
    max_size=2,
)
arguments = st.fixed_dictionaries(
    {},
    optional={
        "threads": st.integers(-1, 300) | st.none(),
        "xla_flags": st.none()
        | st.lists(flag, max_size=2)
        | st.dictionaries(
            st.sampled_from(NAMES) | text, value | st.booleans() | st.integers(), max_size=2
        ),
        "cpu_devices": st.integers(0, 2000),
        "memory_fraction": st.floats(allow_nan=False, allow_infinity=False),
        "deterministic": st.booleans(),
        "strict": st.booleans(),
        "matmul_precision": st.sampled_from(["high", "TF32_TF32_F32", "BF16_BF16_F32_X3"]),
    },
)


def _starts_or_is_refused(arguments, xla_flags, variables):
    given = {**variables, "XLA_FLAGS": xla_flags}
    (answer,) = run_cases([(PREAMBLE + START.format(arguments=arguments), given)])
    assert answer not in ("died", "hung")
    kind, held, told = answer["result"]
    assert kind in ("started", "refused")
    assert held
    assert told


without_shrinking = (Phase.explicit, Phase.reuse, Phase.generate)


@pytest.mark.thorough
@settings(
    max_examples=15, deadline=None, derandomize=True, phases=without_shrinking,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(arguments=arguments, xla_flags=flags, variables=variables)
def test_any_input_starts_or_is_refused(arguments, xla_flags, variables):
    _starts_or_is_refused(arguments, xla_flags, variables)


@pytest.mark.slow
@settings(
    max_examples=250, deadline=None, phases=without_shrinking,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(arguments=arguments, xla_flags=flags, variables=variables)
def test_very_many_inputs_start_or_are_refused(arguments, xla_flags, variables):
    _starts_or_is_refused(arguments, xla_flags, variables)


@pytest.mark.cases
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("JAX_NUM_CPU_DEVICES", "100000"),
        ("JAX_PLATFORMS", "bogus"),
        ("JAX_ENABLE_X64", "perhaps"),
        ("JAX_DEFAULT_MATMUL_PRECISION", "TF32_TF32_F32"),
        ("JAX_DEFAULT_PRNG_IMPL", "bogus"),
        ("PYTHONWARNINGS", "error"),
    ],
)
def test_variables_that_jax_reads_when_it_is_imported(name, text):
    code = """
import jinit
try: jinit.startup(0, xla_flags={"xla_cpu_enable_fast_math": True})
except (ValueError, RuntimeError) as error: print(type(error).__name__)
else: print("started")
"""
    done = python("-c", code, **{name: text})
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] in ("started", "ValueError", "RuntimeError")
    assert (done.stdout.split()[-1] == "started") == (name == "PYTHONWARNINGS")
