"""What the report tells, as a table, as JSON and on the command line."""

import json
import os
import sys
from types import SimpleNamespace
from typing import ClassVar

import jax
import jaxlib
import pytest

import jinit
from jinit.settings.report import Outcome, StartupReport, make_report
from tests.processes import python, run_cases

CODE = """
import json, jinit
jinit.startup(1, threads=2, memory="grow", xla_flags={"xla_cpu_enable_fast_math": True})
report = jinit.startup_report()
plain = report.to_dict()
assert json.loads(report.to_json()) == plain
plain["settings"].clear()
assert len(report.settings) == 16
assert repr(report) == str(report)
result = [json.loads(report.to_json()), str(report)]
"""


@pytest.fixture(scope="module")
def reported():
    (answer,) = run_cases([(CODE, {"JINIT_THREADS": "1"})])
    return answer["result"]


def test_the_report_is_plain_json(reported):
    plain, _ = reported
    assert sorted(plain) == [
        "backend", "compiler_options", "devices", "environment", "flags", "memory",
        "process_count", "process_index", "settings", "versions",
    ]  # fmt: skip
    assert plain["flags"] == {
        "xla_cpu_enable_fast_math": {
            "value": "true",
            "requested": "true",
            "origin": "argument",
            "source": "xla_flags",
            "status": "applied",
            "variable": "XLA_FLAGS",
            "note": "",
        }
    }
    assert (plain["backend"], plain["devices"]) == ("cpu", {"cpu": 1})
    assert (plain["process_count"], plain["process_index"]) == (1, 0)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert plain["memory"]["host"] == {"bytes_limit": total}
    assert plain["environment"] == {
        "JAX_PLATFORMS": "cpu",
        "JINIT_THREADS": "1",
        "PJRT_NPROC": "1",
        "XLA_FLAGS": "--xla_cpu_enable_fast_math=true",
        "XLA_PYTHON_CLIENT_ALLOCATOR": "bfc",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    versions = plain["versions"]
    assert versions["python"] == sys.version.split()[0]
    assert versions["jinit"] == jinit.__version__
    assert (versions["jax"], versions["jaxlib"]) == (jax.__version__, jaxlib.__version__)
    assert {"flax", "numpy", "optax", "platform"} < set(versions)


def test_the_table_shows_every_value_and_where_it_comes_from(reported):
    plain, table = reported
    lines = [" ".join(line.split()) for line in table.splitlines()]
    assert lines[0] == "setting value origin status"
    assert all(any(line.startswith(f"{name} ") for line in lines) for name in plain["settings"])
    for line in (
        "threads 1 environment (JINIT_THREADS) applied",
        "memory grow argument (memory) applied",
        "seed 1 argument (seed) applied",
        "xla_cpu_enable_fast_math true argument (xla_flags) applied",
        f"jax {jax.__version__}",
        "devices 1 x cpu",
        "process 0 of 1",
        "XLA_FLAGS --xla_cpu_enable_fast_math=true",
    ):
        assert line in lines


class CountingDevice:
    stats: ClassVar = {
        "bytes_limit": 3 * 2**30,
        "bytes_in_use": 2**29,
        "peak_bytes_in_use": 2**30,
        "num_allocs": 1,
    }

    def __str__(self):
        return "cuda:0"

    def memory_stats(self):
        return self.stats


def test_memory_that_the_backend_counts(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: [CountingDevice()])
    report = make_report({"a": Outcome(1, None, "default", "", "unchanged")}, {}, {"b": True})
    assert report.memory["cuda:0"] == {
        name: CountingDevice.stats[name]
        for name in ("bytes_limit", "bytes_in_use", "peak_bytes_in_use")
    }
    text = " ".join(str(report).split())
    assert "memory of cuda:0 limit 3.00 GiB, in use 0.50 GiB, peak in use 1.00 GiB" in text
    assert "for jax.jit: compiler_options={'b': True}" in text
    assert isinstance(report, StartupReport)


class DeviceOfAnAllocator:
    platform = "gpu"

    def __init__(self, stats):
        self.stats = stats

    def __str__(self):
        return "cuda:0"

    def memory_stats(self):
        return self.stats


@pytest.mark.parametrize(
    ("stats", "counted", "text"),
    [
        (
            {"bytes_limit": 0, "bytes_in_use": 2**29, "bytes_reserved": 0},  # of cuda_async
            {"bytes_in_use": 2**29},
            "no limit counted, in use 0.50 GiB",
        ),
        (None, {}, "not counted by this allocator"),  # of vmm
    ],
)
def test_memory_that_an_allocator_does_not_count(monkeypatch, stats, counted, text):
    monkeypatch.setattr(jax, "local_devices", lambda: [DeviceOfAnAllocator(stats)])
    report = make_report({"a": Outcome(1, None, "default", "", "unchanged")}, {}, {})
    assert report.memory["cuda:0"] == counted
    assert f"memory of cuda:0 {text} memory of host limit" in " ".join(str(report).split())


def test_the_memory_of_cpu_devices_is_the_hosts(reported):
    plain, _ = reported
    assert list(plain["memory"]) == ["host"]


@pytest.mark.thorough
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
    assert "the nearest is JINIT_THREADS" in done.stderr

    table = python("-m", "jinit", "env", JINIT_SEED="5")
    assert table.returncode == 0, table.stderr
    lines = [line.split() for line in table.stdout.splitlines()]
    assert ["seed", "5", "environment", "(JINIT_SEED)", "applied"] in lines


def test_command_line_bad_input_and_help():
    for arguments in (["env"], ["bogus"], ["env", "--yaml"]):
        done = python("-m", "jinit", *arguments, JINIT_SEED="-1")
        assert done.returncode == 2
        assert "error: " in done.stderr
        assert done.stdout == ""
    done = python("-m", "jinit")
    assert done.returncode == 0
    assert all(f"\n  {command} " in done.stdout for command in ("env", "demo"))


def test_a_backend_that_does_not_start_is_an_error_of_the_command_line():
    done = python("-m", "jinit", "env", JAX_PLATFORMS="tpu")
    assert done.returncode == 2
    assert "error: JAX's backend does not start" in done.stderr


def test_demo_gets_the_arguments_that_follow_it(monkeypatch):
    from jinit.__main__ import main

    stub = SimpleNamespace(main=lambda argv: len(argv))
    monkeypatch.setitem(sys.modules, "jinit.demo", stub)
    assert main(["demo", "--depth", "64", "--help"]) == 3
