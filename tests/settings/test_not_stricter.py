"""No check of startup's is stricter than JAX itself: what JAX takes, startup takes."""

import os
from pathlib import Path

import numpy as np
import pytest

from jinit.settings import platforms
from jinit.settings.compilation_cache import COMPILATION_CACHE
from jinit.settings.distributed import DISTRIBUTED
from jinit.settings.jax_options import PLATFORM, PRNG_IMPLS
from jinit.settings.precision import PRECISIONS
from jinit.settings.setting import Choice
from tests.processes import run_cases

JAX = """
import jax, warnings
jax.config.update({option!r}, {value!r})
result = str(jax.devices()[0].platform), str({see})
jax.jit(lambda x: x @ x).lower(jax.ShapeDtypeStruct((2, 2), "float32")).compile()
jax.random.normal(jax.random.key(0))
"""
OURS = """
import jax, jinit, warnings
warnings.simplefilter("ignore")
jinit.startup(1, {name}={value!r})
result = str(jax.devices()[0].platform), str({see})
"""
PLATFORMS = [
    *("cpu", "cuda,cpu", "cpu,cuda", "cpu,cpu", "cuda,cuda,cpu", "", "cuda", "rocm,cpu"),
    *("cpu,", ",cpu", "CPU", "bogus,cpu", "tpu,cpu", "cuda,bogus"),
]
TABLE = [
    *(("platform", "jax_platforms", value) for value in PLATFORMS),
    *(("prng_impl", "jax_default_prng_impl", value) for value in (*PRNG_IMPLS, "fry", "RBG")),
    *(
        ("matmul_precision", "jax_default_matmul_precision", value)
        for value in (*PRECISIONS, "HIGHEST", "fp32")
    ),
    *(("cpu_devices", "jax_num_cpu_devices", value) for value in (1, 3, 64, 1.0)),
    *(("enable_x64", "jax_enable_x64", value) for value in (True, False)),
]
"""Of each setting's values: all that JAX names, and some that it does not."""


def _program(program, name, option, value):
    seen = "jax.device_count()" if name == "cpu_devices" else f"jax.config.values[{option!r}]"
    return program.format(name=name, option=option, value=value, see=seen)


@pytest.mark.thorough
def test_startup_takes_what_jax_takes():
    cases = [(_program(program, name, option, value), {})
             for name, option, value in TABLE for program in (JAX, OURS)]  # fmt: skip
    answers = run_cases(cases, JAX_PLATFORMS="")
    for row, theirs, ours in zip(TABLE, answers[::2], answers[1::2], strict=True):
        assert ("result" in theirs) == ("result" in ours), (row, theirs, ours)
        if "result" in theirs and row[2] != "":  # for which JAX has other words
            assert theirs == ours, row


def test_a_variable_gives_an_order_of_preference():
    code = _program(OURS, "threads", "jax_platforms", 1).replace(", threads=None", "")
    given = ("cuda,cpu", "gpu,cpu", "cpu,gpu", "")
    answers = run_cases([(code, {"JINIT_PLATFORM": each}) for each in given], JAX_PLATFORMS="")
    chosen = ("cuda,cpu", "cuda,cpu", "cpu,cuda", "")
    assert [each.get("result", each) for each in answers] == [["cpu", each] for each in chosen]


def test_a_platform_that_is_not_there_is_refused_where_it_would_be_started(monkeypatch):
    """With a GPU, JAX starts CUDA, and so needs its plugin."""
    choice = Choice("cuda,cpu", "argument", "platform")
    PLATFORM.verify(choice)
    monkeypatch.setattr(platforms, "skipped_platforms", list)
    with pytest.raises(ValueError, match=r"platform must be made of 'cpu'.*not 'cuda,cpu'"):
        PLATFORM.verify(choice)


@pytest.mark.parametrize("devices", [[0, 1], (0, 1), range(2), np.arange(2), [np.int64(0), 1]])
def test_numbers_of_devices_are_any_that_have_an_order(devices):
    parse = DISTRIBUTED.arguments[0].parse
    assert parse("distributed", {"local_device_ids": devices}) == {"local_device_ids": [0, 1]}


@pytest.mark.parametrize(
    "devices", [{0, 1}, "01", [True], [0.5], np.ones(2), [-1], {0: 1, 2: 3}, b"01"]
)
def test_what_is_no_number_of_devices_is_refused(devices):
    parse = DISTRIBUTED.arguments[0].parse
    with pytest.raises(ValueError, match=r"local_device_ids'\] must be a list of integers"):
        parse("distributed", {"local_device_ids": devices})


def test_a_cache_that_is_only_read_is_taken_with_a_word(tmp_path, monkeypatch):
    """Images of containers bring a cache along that nobody can write to."""
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK)
    choice = Choice(str(tmp_path), "argument", "compilation_cache")
    COMPILATION_CACHE.verify(choice)
    assert COMPILATION_CACHE.advice(str(tmp_path)) == (
        f"you cannot write to {str(tmp_path)!r}: programs are taken from there, and none kept"
    )
    to_be_made = Choice(str(Path(tmp_path) / "new"), "argument", "compilation_cache")
    with pytest.raises(ValueError, match="a folder that you can write to"):
        COMPILATION_CACHE.verify(to_be_made)
