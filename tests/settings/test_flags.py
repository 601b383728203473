"""XLA flags through startup: merged, checked, written once, and reported."""

import pytest

from tests.processes import run_cases

CALL = """
import os, warnings
import jax, jinit
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    jinit.startup(0, {arguments})
report = jinit.startup_report()
result = dict(
    text=os.environ.get("XLA_FLAGS"), tpu=os.environ.get("LIBTPU_INIT_ARGS"),
    warned=[str(warning.message) for warning in caught],
    flags={{name: [found.value, found.origin, found.source, found.status]
           for name, found in report.flags.items()}},
    setting=[report.settings["xla_flags"].value, report.settings["xla_flags"].status],
    deterministic=[getattr(report.settings["deterministic"], name)
                   for name in ("value", "origin", "source", "status")],
    devices=[report.settings["cpu_devices"].value, jax.device_count()],
    options=report.compiler_options,
)
"""
MATH, LEVEL = "xla_cpu_enable_fast_math", "xla_gpu_autotune_level"


def case(arguments, before="", **variables):
    return before + CALL.format(arguments=arguments), variables


CASES = {
    "dict": case(f"xla_flags={{'{MATH}': True, '--{LEVEL}': 0}}"),
    "list": case("xla_flags=['--xla_dump_to=/a b', 'xla_cpu_enable_fast_math']"),
    "text": case("xla_flags='--xla_dump_to=\"/a b\" --xla_cpu_enable_fast_math'"),
    "users": case(
        f"xla_flags=dict({MATH}=True, {LEVEL}=3)",
        XLA_FLAGS=f"--{MATH} --xla_gpu_autotune_level=1 --{MATH} --{LEVEL}=2",
    ),
    "users bad": case(
        "", XLA_FLAGS=f"--xla_gpu_autotune_levl=1 --{MATH} --{LEVEL}=high junk --{LEVEL}=1"
    ),
    "users file": case("", XLA_FLAGS="/no/such/file"),
    "tpu": case(
        f"xla_flags=dict(xla_tpu_a=1, xla_tpu_b=1, {MATH}=1)",
        XLA_FLAGS="--xla_tpu_c=3",
        LIBTPU_INIT_ARGS="--xla_tpu_b=2 --odd=4",
    ),
    "late": case(
        f"xla_flags=dict({MATH}=True, {LEVEL}=2, xla_dump_to=None or '', no_such=1)",
        before="import jax; jax.devices();",
    ),
    "variable": case(f"xla_flags=dict({LEVEL}=3)", JINIT_XLA_FLAGS=f"--{LEVEL}=1"),
    "variable off": case(f"xla_flags=dict({LEVEL}=3)", JINIT_XLA_FLAGS=""),
    "not deterministic": case("deterministic=True", XLA_FLAGS="--xla_gpu_deterministic_ops=false"),
    "deterministic as a number": case(
        "deterministic=True, xla_flags=dict(xla_gpu_deterministic_ops=1)",
        XLA_FLAGS="--xla_gpu_deterministic_ops",
    ),
    "deterministic by the user": case("", XLA_FLAGS="--xla_gpu_deterministic_ops=1"),
    "deterministic forbidden": case("deterministic=True", JINIT_DETERMINISTIC="0"),
    "users bad asked good": case(f"xla_flags=dict({LEVEL}=1)", XLA_FLAGS=f"--{LEVEL}=high"),
    "users bad devices": case(
        "cpu_devices=2", XLA_FLAGS="--xla_force_host_platform_device_count=99999"
    ),
    "set too late": case(
        f"xla_flags=dict({MATH}=True), deterministic=True",
        before="import jax, os; jax.devices(); os.environ['XLA_FLAGS'] = '"
        f"--{MATH}=true --xla_force_host_platform_device_count=8 "
        "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=3';",
    ),
    "twice": case(
        f"xla_flags=dict({LEVEL}=0)",
        before=f"import jinit; jinit.startup(0, xla_flags=dict({MATH}=True));",
    ),
}


class Answers(dict):
    """The answers of the cases by name; a case runs when a test first asks for it."""

    def __missing__(self, name):
        (answer,) = run_cases([CASES[name]], XLA_FLAGS="")
        self[name] = answer.get("result", answer)
        return self[name]


@pytest.fixture(scope="module")
def found():
    return Answers()


@pytest.mark.thorough
def test_three_ways_to_give_flags(found):
    assert found["dict"] == {
        "text": f"--{MATH}=true --{LEVEL}=0",
        "tpu": None,
        "warned": [],
        "flags": {
            MATH: ["true", "argument", "xla_flags", "applied"],
            LEVEL: ["0", "argument", "xla_flags", "applied"],
        },
        "setting": [{MATH: "true", LEVEL: "0"}, "applied"],
        "options": {},
        "deterministic": [False, "default", "", "unchanged"],
        "devices": [1, 1],
    }
    written = f'--xla_dump_to="/a b" --{MATH}=true'
    assert (found["list"]["text"], found["list"]["warned"]) == (written, [])
    assert (found["text"]["text"], found["text"]["warned"]) == (written, [])


def test_the_users_flags_win_and_are_written_once_with_their_values(found):
    answer = found["users"]
    assert answer["text"] == f"--{MATH}=true --{LEVEL}=2"
    assert answer["flags"] == {
        MATH: ["true", "environment", "XLA_FLAGS", "unchanged"],
        LEVEL: ["2", "environment", "XLA_FLAGS", "overridden by the environment"],
    }
    assert answer["setting"] == [{MATH: "true", LEVEL: "2"}, "overridden by the environment"]
    assert answer["warned"] == []


@pytest.mark.thorough
def test_the_users_bad_flags_are_removed_with_a_warning(found):
    answer = found["users bad"]
    assert answer["text"] == f"--{MATH}=true"
    assert answer["flags"] == {
        "xla_gpu_autotune_levl": [None, "environment", "XLA_FLAGS", "refused"],
        MATH: ["true", "environment", "XLA_FLAGS", "unchanged"],
        LEVEL: [None, "environment", "XLA_FLAGS", "refused"],
    }
    assert answer["warned"] == [
        f"XLA_FLAGS: 'junk --{LEVEL}=1' is neither a flag, which begins with --, nor a file of "
        "flags that can be read: it is left out. XLA_FLAGS: --xla_gpu_autotune_levl=1 is not "
        f"known to this jaxlib; the nearest one is --{LEVEL}: it is left out. XLA_FLAGS: "
        f"--{LEVEL}=high does not take the value 'high': it is left out."
    ]
    assert found["users file"]["text"] is None
    assert found["users file"]["warned"] == [
        "XLA_FLAGS: '/no/such/file' is neither a flag, which begins with --, nor a file of flags "
        "that can be read: it is left out."
    ]


@pytest.mark.thorough
def test_flags_of_a_tpu_go_to_its_own_variable(found):
    answer = found["tpu"]
    assert answer["text"] == f"--{MATH}=1"
    assert sorted(answer["tpu"].split()) == [
        "--odd=4", "--xla_tpu_a=1", "--xla_tpu_b=2", "--xla_tpu_c=3",
    ]  # fmt: skip
    assert answer["flags"]["xla_tpu_b"][3] == "overridden by the environment"
    assert answer["warned"] == []


def test_flags_that_are_too_late_are_offered_for_single_programs(found):
    answer = found["late"]
    assert answer["text"] == ""
    assert answer["flags"][MATH] == [None, "argument", "xla_flags", "too late"]
    assert answer["options"] == {MATH: True, LEVEL: "2", "xla_dump_to": ""}
    assert answer["setting"] == [None, "refused"]
    assert answer["warned"] == [
        "xla_flags: --no_such=1 is not known to this jaxlib: it is left out. JAX's backend is "
        f"already up, too late for --{MATH}=true, --{LEVEL}=2, --xla_dump_to=: call "
        "jinit.startup() before the first JAX operation, or pass compiler_options="
        f"{{'{MATH}': True, '{LEVEL}': '2', 'xla_dump_to': ''}} to jax.jit."
    ]


@pytest.mark.thorough
def test_the_variable_overrides_the_argument(found):
    assert found["variable"]["text"] == f"--{LEVEL}=1"
    assert found["variable"]["flags"][LEVEL][1:3] == ["environment", "JINIT_XLA_FLAGS"]
    assert found["variable off"]["text"] == ""
    assert found["variable off"]["setting"] == [None, "unchanged"]


@pytest.mark.thorough
def test_the_user_can_forbid_determinism(found):
    answer = found["not deterministic"]
    assert answer["text"] == "--xla_gpu_deterministic_ops=false"
    assert answer["flags"]["xla_gpu_deterministic_ops"][3] == "overridden by the environment"


@pytest.mark.thorough
def test_what_the_report_says_of_determinism(found):
    name = "xla_gpu_deterministic_ops"
    environment = ["environment", "XLA_FLAGS"]
    overridden = "overridden by the environment"
    assert found["not deterministic"]["deterministic"] == [False, *environment, overridden]
    for each in ("deterministic as a number", "deterministic by the user"):
        assert found[each]["deterministic"] == [True, *environment, "unchanged"]
        assert found[each]["flags"][name][1:] == [*environment, "unchanged"]
    forbidden = ["environment", "JINIT_DETERMINISTIC", "applied"]
    assert found["deterministic forbidden"]["deterministic"] == [False, *forbidden]
    assert found["deterministic forbidden"]["text"] == f"--{name}=false"


@pytest.mark.thorough
def test_a_bad_flag_of_the_user_does_not_stand_in_the_way_of_a_good_one(found):
    answer = found["users bad asked good"]
    assert answer["text"] == f"--{LEVEL}=1"
    assert answer["flags"][LEVEL] == ["1", "argument", "xla_flags", "applied"]
    assert answer["warned"] == [
        f"XLA_FLAGS: --{LEVEL}=high does not take the value 'high': it is left out."
    ]
    assert found["users bad devices"]["devices"] == [2, 2]


@pytest.mark.thorough
def test_what_the_user_set_too_late_is_not_in_force(found):
    answer = found["set too late"]
    assert {row[3] for row in answer["flags"].values()} == {"too late"}
    assert {row[0] for row in answer["flags"].values()} == {None}
    assert answer["deterministic"] == [False, "argument", "deterministic", "too late"]
    assert answer["devices"] == [1, 1]
    assert "too late for " in answer["warned"][0]
    assert "--xla_force_host_platform_device_count=8" in answer["warned"][0]


@pytest.mark.thorough
def test_a_flag_of_an_earlier_call_is_not_the_environments(found):
    assert found["twice"]["flags"] == {
        LEVEL: [None, "argument", "xla_flags", "too late"],
        MATH: ["true", "argument", "xla_flags", "unchanged"],
    }


REFUSED = """
import os
import jinit
from jax._src.xla_bridge import backends_are_initialized as is_up
try: jinit.startup({arguments})
except (ValueError, RuntimeError) as error: result = [type(error).__name__, str(error)]
assert not is_up() and os.environ.get("XLA_FLAGS") == {before!r}
assert "_JINIT_WRITTEN" not in os.environ
"""
LEGAL = (
    "must be a dict such as {'xla_dump_to': 'dumps'}, a list such as ['--xla_dump_to=dumps'] or a "
    "text of such flags"
)
BAD = {
    "strict=True, xla_flags={'xla_cpu_enable_fast_mth': True}": (
        "xla_flags: --xla_cpu_enable_fast_mth=true is not known to this jaxlib; the nearest one "
        f"is --{MATH}: correct it, or go on without it and strict=True."
    ),
    "deterministic=True, xla_flags={'xla_gpu_deterministic_ops': False}": (
        "xla_flags asks for --xla_gpu_deterministic_ops=false, deterministic for true: they "
        "contradict each other, give only one."
    ),
    "cpu_devices=2, xla_flags={'xla_force_host_platform_device_count': 4}": (
        "xla_flags asks for --xla_force_host_platform_device_count=4, cpu_devices for 2: they "
        "contradict each other, give only one."
    ),
    "xla_flags=3": f"xla_flags {LEGAL}, not 3: pass one, or leave it out.",
    "xla_flags={'a': None}": f"xla_flags {LEGAL}, not {{'a': None}}: pass one, or leave it out.",
    "xla_flags={'a b': 1}": f"xla_flags {LEGAL}, not {{'a b': 1}}: pass one, or leave it out.",
    "xla_flags={1: 1}": f"xla_flags {LEGAL}, not {{1: 1}}: pass one, or leave it out.",
    "xla_flags=['--a=\\0']": f"xla_flags {LEGAL}, not ['--a=\\x00']: pass one, or leave it out.",
    "xla_flags='a=1'": f"xla_flags {LEGAL}, not 'a=1': pass one, or leave it out.",
    "xla_flags=[['--a']]": f"xla_flags {LEGAL}, not [['--a']]: pass one, or leave it out.",
    "xla_flags='--a=\\ud800'": f"xla_flags {LEGAL}, not '--a=\\ud800': pass one, or leave it out.",
}


@pytest.mark.thorough
def test_bad_flags_are_refused_and_change_nothing():
    cases = [(REFUSED.format(arguments=bad, before=None), {}) for bad in BAD]
    in_environment = {"XLA_FLAGS": "--xla_cpu_enable_fast_mth=1"}
    before = in_environment["XLA_FLAGS"]
    cases.append((REFUSED.format(arguments="strict=True", before=before), in_environment))
    cases.append((REFUSED.format(arguments="", before=None), {"JINIT_XLA_FLAGS": "no flag"}))
    *found, users, variable = [answer.get("result", answer) for answer in run_cases(cases)]
    assert found == [["ValueError", text] for text in BAD.values()]
    assert users[1].startswith("XLA_FLAGS: --xla_cpu_enable_fast_mth=1 is not known to this")
    assert variable == [
        "ValueError",
        f"JINIT_XLA_FLAGS {LEGAL}, not 'no flag': correct or unset the variable.",
    ]
