"""What is found out about flags, and how it is remembered."""

import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest

from jinit.settings.flags import check, remembered
from jinit.settings.flags.check import UNCHECKED, check_flags, check_tpu_flags
from jinit.settings.flags.names import flag_names
from jinit.settings.jax_options import MAX_CPU_DEVICES
from tests.processes import python

ENDS = "ends the process at its first computation"
FAULTS = [
    ({"xla_cpu_enable_fast_math": None, "xla_dump_to": "/no/such/folder"}, {}),
    ({"xla_cpu_enable_fast_mth": "true"},
     {"xla_cpu_enable_fast_mth": "is not known to this jaxlib; the nearest one is "
      "--xla_cpu_enable_fast_math"}),
    ({"zzz": "1", "xla_cpu_enable_fast_math": "true"}, {"zzz": "is not known to this jaxlib"}),
    ({"xla_cpu_enable_fast_math": "banana"},
     {"xla_cpu_enable_fast_math": "does not take the value 'banana'"}),
    ({"xla_gpu_enable_command_buffer": "zzz", "xla_dump_to": None},
     {"xla_gpu_enable_command_buffer": "does not take the value 'zzz'",
      "xla_dump_to": "needs a value"}),
    ({"xla_cpu_enable_fast_math": "false", "xla_backend_extra_options": "abc"},
     {"xla_backend_extra_options": ENDS}),
    ({"xla_disable_all_hlo_passes": "true"}, {"xla_disable_all_hlo_passes": ENDS}),
    ({"xla_force_host_platform_device_count": "99999"},
     {"xla_force_host_platform_device_count": f"is more than {MAX_CPU_DEVICES}"}),
    ({"xla_force_host_platform_device_count": "0"},
     {"xla_force_host_platform_device_count": ENDS}),
]  # fmt: skip
WITHDRAWN = [
    "xla_gpu_lhs_enable_gpu_async_tracker",
    "xla_gpu_enable_address_computation_fusion",
    "xla_gpu_enable_custom_fusions",
    "xla_gpu_enable_nccl_per_stream_comms",
    "xla_gpu_cudnn_gemm_fusion",
]


@pytest.mark.cases
@pytest.mark.parametrize(("flags", "faults"), FAULTS, ids=lambda found: "-".join(found) or "none")
def test_faults_are_found_and_found_again_without_a_child(monkeypatch, flags, faults):
    assert check_flags(flags) == faults
    monkeypatch.setattr(subprocess, "run", None)
    assert check_flags(dict(reversed(flags.items()))) == faults


@pytest.mark.thorough
def test_flags_that_are_still_advised_and_end_this_jaxlib(monkeypatch):
    monkeypatch.setattr(check, "_nearest", lambda name: "")
    found = check_flags({**dict.fromkeys(WITHDRAWN, "true"), "xla_gpu_autotune_level": "0"})
    assert found == dict.fromkeys(WITHDRAWN, "is not known to this jaxlib")


@pytest.mark.thorough
def test_a_folder_to_dump_to_is_any_text_and_stays_empty(monkeypatch, tmp_path):
    assert check_flags({"xla_dump_to": str(tmp_path), "xla_dump_hlo_as_text": "true"}) == {}
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(subprocess, "run", None)
    assert check_flags({"xla_dump_to": "/elsewhere", "xla_dump_hlo_as_text": "true"}) == {}


def test_a_flag_that_fails_only_beside_another_is_found():
    def ask(program, flags):
        return ENDS if {"a", "c"} <= set(flags) else ""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "_ask", ask)
        assert check_flags({"a": "1", "b": "1", "c": "1", "d": "1"}) == {"c": ENDS}


def test_a_child_that_hangs_is_a_fault_and_one_that_cannot_start_is_none(monkeypatch):
    flags = {"xla_cpu_enable_fast_math": "1"}
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/no/such/python")
        assert check_flags(flags) == dict.fromkeys(flags, UNCHECKED)
        patch.setattr(sys, "executable", "")
        assert check_flags(flags) == dict.fromkeys(flags, UNCHECKED)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [])
        patch.setattr(sys, "executable", sys._base_executable)
        assert check_flags(flags) == dict.fromkeys(flags, UNCHECKED)  # a Python without jaxlib
    with monkeypatch.context() as patch:
        patch.setattr(sys, "frozen", True, raising=False)
        assert check_flags(flags) == dict.fromkeys(flags, UNCHECKED)
    for program in ("/bin/true", "/bin/false"):  # one that ends without a word
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", program)
            assert check_flags(flags) == dict.fromkeys(flags, UNCHECKED)
    with monkeypatch.context() as patch:
        patch.setenv("_JINIT_CHECKS_FLAGS", "1")  # inside such a child
        assert check_flags(flags) == dict.fromkeys(flags, UNCHECKED)
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryDirectory", _no_folder)
        assert check_flags(flags) == dict.fromkeys(flags, UNCHECKED)
    with monkeypatch.context() as patch:
        patch.setattr(check, "_SECONDS", 0.01)
        assert check_flags(flags) == dict.fromkeys(flags, UNCHECKED)
    hangs = "keeps a small program from ending within 120 s"
    with monkeypatch.context() as patch:
        patch.setattr(check, "_ask", lambda program, flags: hangs if flags else "")
        assert check_flags(flags) == dict.fromkeys(flags, hangs)
    assert check_flags(flags) == {}  # none of this was kept


def _no_folder():
    raise FileNotFoundError("No usable temporary directory found")


@pytest.mark.thorough
def test_a_child_has_none_of_the_variables_that_the_flags_are_tried_without(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, "", Path("x")])  # what is no text is left out
    names = ("JAX_ENABLE_X64", "JINIT_SEED", "PYTHONWARNINGS", "LIBTPU_INIT_ARGS")
    for name in names:
        monkeypatch.setenv(name, "error")
    environ = check._child_environment({"xla_a": "b c"})
    assert not set(names) & set(environ)
    assert environ["XLA_FLAGS"] == '--xla_a="b c"'
    assert environ["PYTHONPATH"].split(os.pathsep) == [each for each in sys.path if each][:-1]
    assert check_flags({"xla_cpu_enable_fast_math": "0"}) == {}


def test_nothing_is_imported_from_where_a_program_runs(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('foreign code')")
    monkeypatch.chdir(tmp_path)
    assert check_flags({"xla_cpu_enable_fast_math": "1", "xla_gpu_autotune_level": "3"}) == {}


BROKEN = ["", "{", "[]", '{"--a=1": "yes"}', '{"--a=1": {"a": 1}}', "\udcff"]


@pytest.mark.parametrize("text", BROKEN)
def test_a_memory_that_is_broken_is_replaced(tmp_path, monkeypatch, text):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(check, "_find_faults", lambda flags: {"a": "is wrong"})
    path = tmp_path / "jinit" / "xla_flags" / f"jaxlib-{version('jaxlib')}.json"
    path.parent.mkdir(parents=True)
    path.write_text(text, errors="surrogateescape")
    assert check_flags({"a": "1"}) == {"a": "is wrong"}
    assert json.loads(path.read_text()) == {"--a=1": {"a": "is wrong"}}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_memory_keeps_the_last_hundred(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for number in range(103):
        with remembered.remembered("jaxlib") as memory:
            memory[f"--a={number}"] = {}
    with remembered.remembered("jaxlib") as memory:
        assert list(memory) == [f"--a={number}" for number in range(3, 103)]


def test_a_memory_that_others_could_write_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(check, "_find_faults", lambda flags: {})
    folder = tmp_path / "jinit" / "xla_flags"
    folder.mkdir(parents=True)
    path = folder / f"jaxlib-{version('jaxlib')}.json"
    path.write_text('{"--a=1": {"a": "is forged"}}')
    os.chmod(folder, 0o777)
    assert check_flags({"a": "1"}) == {}


@pytest.mark.thorough
def test_names_in_the_library_hold_every_flag_that_xla_tells_of():
    done = python("-c", check._READ, warn="default", XLA_FLAGS="--help")
    told = {line[3:].partition("=")[0] for line in done.stderr.splitlines() if line[:3] == "\t--"}
    assert len(told) > 60
    assert told <= flag_names("jaxlib")
    assert flag_names("no_such_package") == frozenset()


def test_flags_of_a_tpu_are_looked_up_by_name(monkeypatch, tmp_path):
    flags = {"xla_tpu_a": "1", "xla_tpu_b": "1"}
    assert check_tpu_flags(flags) == dict.fromkeys(flags, UNCHECKED)
    package = tmp_path / "libtpu"
    package.mkdir()
    (package / "libtpu.so").write_bytes(b"\x7fELF\0xla_tpu_a\0xla_tpu_c\0rest")
    metadata = tmp_path / "libtpu-9.9.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: libtpu\nVersion: 9.9\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert check_tpu_flags(flags) == {"xla_tpu_b": "is not known to this libtpu"}
    (package / "libtpu.so").unlink()
    assert check_tpu_flags(flags) == {"xla_tpu_b": "is not known to this libtpu"}  # remembered
