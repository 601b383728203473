"""The table of settings against JAX, the signature of startup, and itself."""

import inspect
from types import SimpleNamespace
from typing import get_args

import jax
import pytest

from jinit.settings import precision as precision_module
from jinit.settings import threads as threads_module
from jinit.settings.environment import misspelt, set_variable, user_value
from jinit.settings.jax_options import PRNG_IMPL, PRNG_IMPLS
from jinit.settings.memory import MEMORY, POLICIES
from jinit.settings.precision import PRECISION, PRECISIONS, PRESETS, check_platform
from jinit.settings.setting import Choice
from jinit.settings.table import SETTINGS, STRICT
from jinit.settings.threads import MAX_THREADS, THREADS
from jinit.startup import startup
from jinit.typing import MatmulPrecision, MemoryPolicy, PRNGImpl

TABLE = (*SETTINGS.values(), STRICT)
SOURCES = [source for setting in TABLE for source in setting.variables]
ARGUMENTS = [source for setting in TABLE for source in setting.arguments]


def test_every_argument_of_startup_is_in_the_table_with_its_default():
    signature = inspect.signature(startup).parameters.values()
    assert {source.name: source.default for source in ARGUMENTS} == {
        parameter.name: parameter.default for parameter in signature
    }


def test_every_argument_has_a_variable_by_the_rule_that_the_docstring_gives():
    variables = {source.name for source in SOURCES}
    assert len(variables) == len(SOURCES)
    by_rule = {f"JINIT_{source.name.upper()}" for source in ARGUMENTS}
    assert by_rule - variables == {"JINIT_FORKSERVER_INSTEAD_OF_FORK"}
    assert variables - by_rule == {"JINIT_START_METHOD"}
    assert "``JINIT_START_METHOD``" in startup.__doc__


def test_what_needs_a_fresh_backend_is_applied_before_the_rest_and_the_seed_last():
    order = [setting.needs_fresh_backend for setting in SETTINGS.values() if not setting.flags]
    assert order == sorted(order, reverse=True)
    assert list(SETTINGS)[-1] == "seed"


@pytest.mark.parametrize("impl", PRNG_IMPLS)
def test_generators_are_those_of_jax(impl):
    assert str(jax.random.key_impl(jax.random.key(0, impl=impl))) == impl
    assert bool(PRNG_IMPL.advice(impl)) == (not impl.startswith("threefry"))


def test_a_generator_that_is_missing_here_is_missing_in_the_table():
    with pytest.raises(ValueError, match="unrecognized PRNG") as raised:
        jax.random.key(0, impl="bogus")
    assert all(impl in str(raised.value) for impl in PRNG_IMPLS)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_preset_is_refused_exactly_where_a_product_would_fail(precision):
    square = jax.ShapeDtypeStruct((4, 4), jax.numpy.float32)
    with jax.default_matmul_precision(precision):
        try:
            jax.jit(jax.numpy.dot).lower(square, square).compile()
        except ValueError:
            fails = True
        else:
            fails = False
        for refuse in (lambda: check_platform(precision, None), PRECISION.confirm):
            if fails:
                with pytest.raises(ValueError, match=f"matmul_precision='{precision}' is not to"):
                    refuse()
            else:
                refuse()


@pytest.mark.parametrize(
    ("said", "kind", "text"),
    [
        (
            "UNIMPLEMENTED: Unsupported algorithm on the current device(s): ALG_DOT_F16_F16_F16",
            ValueError,
            "matmul_precision='F16_F16_F16' is not to be had for float32 products on cpu: choose "
            "another, such as 'high' or 'highest', which every backend has.",
        ),
        *(
            (
                said,
                RuntimeError,
                "matmul_precision='F16_F16_F16' could not be tried on cpu: remove what is in the "
                f"way, or choose 'high' or 'highest', which need no trial. JAX says: {said}",
            )
            for said in (
                "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 2048 bytes.",
                "INTERNAL: failed in ALG_DOT_F16_F16_F16",
                "UNIMPLEMENTED: something else",
            )
        ),
    ],
)
def test_a_product_that_fails_says_why(monkeypatch, said, kind, text):
    def compiled(*shapes):
        raise jax.errors.JaxRuntimeError(said)

    monkeypatch.setattr(jax, "jit", lambda fn: SimpleNamespace(lower=compiled))
    with jax.default_matmul_precision("F16_F16_F16"), pytest.raises(kind) as raised:
        PRECISION.confirm()
    assert (type(raised.value), str(raised.value)) == (kind, text)


def test_the_platform_that_a_preset_is_refused_for(monkeypatch):
    monkeypatch.setattr(precision_module, "backend_is_up", lambda: False)
    refused = {
        platform: [preset for preset in PRESETS if _is_refused(preset, platform)]
        for platform in ("cpu", "cpu,cuda", "cuda", "tpu")
    }
    assert refused["cpu"] == refused["cpu,cuda"]
    assert refused["cuda"] == refused["tpu"] == [p for p in PRESETS if p.startswith("ANY_F8")]
    assert set(refused["cpu"]) == {
        *refused["cuda"], "F16_F16_F32", "BF16_BF16_BF16", "BF16_BF16_F32_X9",
        "TF32_TF32_F32", "TF32_TF32_F32_X3",
    }  # fmt: skip


def _is_refused(preset, platform):
    text = ""
    try:
        check_platform(preset, platform)
    except ValueError as error:
        text = str(error)
    assert not text or text.endswith("such as 'high' or 'highest', which every backend has.")
    return bool(text)


def test_a_type_checker_knows_the_values_that_a_start_takes():
    assert get_args(MatmulPrecision) == PRECISIONS
    assert get_args(PRNGImpl) == PRNG_IMPLS
    assert get_args(MemoryPolicy) == tuple(POLICIES)


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
    monkeypatch.setenv("_JINIT_WRITTEN", "no JSON of ours")
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


@pytest.mark.parametrize(
    ("memory", "expandable", "chosen"),
    [
        (None, None, None),
        (None, True, "cuda_async"),
        (None, False, "preallocate"),
        ("vmm", True, "vmm"),
        ("grow", False, "grow"),
        ("grow", None, "grow"),
    ],
)
def test_both_names_of_the_memory_policy(memory, expandable, chosen):
    found = MEMORY.choose({"memory": memory, "expandable_segments": expandable})
    assert found.value == chosen


@pytest.mark.parametrize(
    ("memory", "expandable"), [("grow", True), ("preallocate", True), ("vmm", False)]
)
def test_two_memory_policies_that_contradict_each_other(monkeypatch, memory, expandable):
    text = f"asks for '{memory}', .* for '.*': they contradict each other, give only one."
    with pytest.raises(ValueError, match=f"memory {text}"):
        MEMORY.choose({"memory": memory, "expandable_segments": expandable})
    monkeypatch.setenv("JINIT_MEMORY", memory)
    found = MEMORY.choose({"memory": None, "expandable_segments": expandable})
    assert (found.value, found.source) == (memory, "JINIT_MEMORY")  # the variable overrides
    monkeypatch.setenv("JINIT_EXPANDABLE_SEGMENTS", str(int(expandable)))
    with pytest.raises(ValueError, match=f"JINIT_MEMORY {text}"):
        MEMORY.choose({"memory": None, "expandable_segments": None})


def test_two_settings_never_write_both_variables_of_the_fraction(monkeypatch):
    fraction = SETTINGS["memory_fraction"]
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    assert fraction.status(0.9) == "overridden by the environment"
    assert fraction.status(0.5) == "unchanged"
    assert fraction.current() == 0.5
