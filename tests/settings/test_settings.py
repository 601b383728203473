"""The table of settings against JAX, the signature of startup, and itself."""

import inspect

import jax
import pytest

from jinit.settings import environment
from jinit.settings import threads as threads_module
from jinit.settings.environment import misspelt, set_variable, user_value
from jinit.settings.memory import MEMORY, POLICIES
from jinit.settings.precision import PRECISION, PRECISIONS
from jinit.settings.setting import Choice
from jinit.settings.threads import MAX_THREADS, THREADS
from jinit.startup import SETTINGS, startup

SOURCES = [source for setting in SETTINGS.values() for source in setting.variables]
ARGUMENTS = [source for setting in SETTINGS.values() for source in setting.arguments]


def test_every_argument_of_startup_is_in_the_table_with_its_default():
    signature = inspect.signature(startup).parameters.values()
    assert {source.name: source.default for source in ARGUMENTS} == {
        parameter.name: parameter.default for parameter in signature
    }


def test_every_setting_has_a_variable_that_the_docstring_names():
    names = [source.name for source in SOURCES]
    assert len(set(names)) == len(names) == 6
    assert all(f"``{name}``" in startup.__doc__ for name in names)


def test_precisions_are_those_of_jax():
    for name in PRECISIONS:
        with jax.default_matmul_precision(name):
            assert jax.config.jax_default_matmul_precision == name
    with pytest.raises(ValueError, match="enum value") as raised:
        jax.config.update("jax_default_matmul_precision", "bogus")
    assert str(raised.value).count("'") == 2 * len(PRECISIONS) + 2


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_written_by_the_user_is_recognised(monkeypatch, policy):
    for name, text in zip(MEMORY.native, POLICIES[policy], strict=True):
        monkeypatch.setenv(name, text.replace("false", "0").replace("bfc", "Default"))
    assert MEMORY.current() == policy
    assert MEMORY.status(policy) == "unchanged"
    assert [other for other in POLICIES if not MEMORY.conflicts(other)] == [policy]


def test_variables_without_a_policy_are_shown_as_they_are(monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_ALLOCATOR", "platform")
    assert MEMORY.current() == "XLA_PYTHON_CLIENT_ALLOCATOR=platform"


@pytest.mark.parametrize(
    ("variables", "precision", "allow_tf32", "chosen"),
    [
        ({}, None, True, Choice("default", "default", "")),
        ({}, None, False, Choice("highest", "argument", "allow_tf32")),
        ({}, "high", False, Choice("high", "argument", "matmul_precision")),
        ({"ALLOW_TF32": "1"}, "high", False, Choice("default", "environment", "ALLOW_TF32")),
        (
            {"ALLOW_TF32": "1", "MATMUL_PRECISION": "float32"},
            "high",
            False,
            Choice("float32", "environment", "MATMUL_PRECISION"),
        ),
    ],
)
def test_the_strongest_source_wins(monkeypatch, variables, precision, allow_tf32, chosen):
    for name, text in variables.items():
        monkeypatch.setenv(f"JINIT_{name}", text)
    found = PRECISION.choose({"matmul_precision": precision, "allow_tf32": allow_tf32})
    assert (found.value, found.origin) == (chosen.value, chosen.origin)
    assert found.source.removeprefix("JINIT_") == chosen.source


def test_what_jinit_sets_is_not_the_users(monkeypatch):
    monkeypatch.setattr(environment, "_WRITTEN", {})
    monkeypatch.setenv("PJRT_NPROC", "3")
    set_variable("PJRT_NPROC", "3")
    assert user_value("PJRT_NPROC") == "3"
    set_variable("PJRT_NPROC", "2")
    assert user_value("PJRT_NPROC") is None
    monkeypatch.setenv("PJRT_NPROC", "4")
    assert user_value("PJRT_NPROC") == "4"


@pytest.mark.parametrize(
    ("variables", "threads"),
    [
        ({}, None),
        ({"PJRT_NPROC": "3", "NPROC": "1"}, 3),
        ({"NPROC": "5"}, 5),
        ({"PJRT_NPROC": "-1"}, 1),
        ({"PJRT_NPROC": "many"}, None),
    ],
)
def test_threads_that_will_run(monkeypatch, variables, threads):
    monkeypatch.setattr(threads_module, "cpu_pool_size", lambda: None)
    for name in ("PJRT_NPROC", "NPROC"):
        monkeypatch.delenv(name, raising=False)
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    assert THREADS.current() == (threads or THREADS.variables[0].parse("JINIT_THREADS", "0"))


@pytest.mark.parametrize("threads", [1, 7, MAX_THREADS])
def test_threads_are_taken_as_they_are(threads):
    (argument,), (variable,) = THREADS.arguments, THREADS.variables
    assert argument.parse("threads", threads) == threads
    assert variable.parse("JINIT_THREADS", str(threads)) == threads


def test_the_nearest_name_of_a_misspelt_variable(monkeypatch):
    monkeypatch.setenv("JINIT_ALOW_TF32", "1")
    monkeypatch.setenv("JINIT_SEED", "1")
    known = [source.name for source in SOURCES]
    assert misspelt(known) == {"JINIT_ALOW_TF32": "JINIT_ALLOW_TF32"}
