"""What the plugin of a GPU reads when JAX registers it: set before, and too late after."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from jinit.settings import platforms
from tests.processes import ROOT, run_cases

PLUGIN = Path(__file__).with_name("gpu_plugin.py")
HEAD = """
from tests.programs import *
import importlib
from jax._src import hardware_utils, xla_bridge
hardware_utils.has_visible_nvidia_gpu = lambda: {gpu}

def read(name):
    (options,) = importlib.import_module("jax_plugins." + name).READ
    kept = "allocator", "preallocate", "memory_fraction", "jax_platforms"
    return {{key: options[key] for key in kept if key in options}}

def refusal(**arguments):
    untouched = state()
    try: jinit.startup(0, **arguments)
    except Exception as error: text = f"{{type(error).__name__}}: {{error}}"
    assert state() == untouched
    return text
"""
MEMORY = {"allocator": "bfc", "preallocate": False, "memory_fraction": 0.3}
ASKED = "memory='grow', memory_fraction=0.3"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Returns the variables of a Python in which plugins are installed."""

    def install(*names):
        folder = tmp_path_factory.mktemp("plugins")
        (folder / "jax_plugins").mkdir()
        for name in names:
            shutil.copy(PLUGIN, folder / "jax_plugins" / f"{name}.py")
        return {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), "JAX_PLATFORMS": ""}

    return install


@pytest.fixture(scope="module")
def cuda(installed):
    return installed("xla_cuda12")


@pytest.fixture(scope="module")
def unknown(installed):
    return installed("fakegpu")


def run(code, server, gpu=True, **variables):
    (answer,) = run_cases([(HEAD.format(gpu=gpu) + code, variables)], **server)
    assert "result" in answer, answer
    return answer["result"]


@pytest.mark.cases
@pytest.mark.parametrize(
    ("argument", "variable", "chosen"),
    [
        ("cpu", None, "cpu"),
        (None, None, ""),
        ("cuda", None, "cuda"),
        ("gpu", None, "cuda"),
        ("gpu,cpu", None, "cuda,cpu"),
        (None, "gpu", "cuda"),
        (None, "cpu", "cpu"),
    ],
)
def test_a_plugin_reads_what_startup_sets_whatever_the_platform(cuda, argument, variable, chosen):
    code = f"""
jinit.startup(0, {ASKED}, platform={argument!r})
result = [read("xla_cuda12"), rows("memory", "memory_fraction"), jax.config.jax_platforms]
"""
    variables = {"JINIT_PLATFORM": variable} if variable else {}
    found, reported, active = run(code, cuda, **variables)
    assert found == {**MEMORY, "jax_platforms": chosen}
    assert active == chosen
    assert reported == {
        "memory": ["grow", "argument", "memory", "applied"],
        "memory_fraction": [0.3, "argument", "memory_fraction", "applied"],
    }


def test_a_plugin_that_nobody_knows_reads_it_too(unknown):
    for platform in ("cpu", "fakegpu", "fakegpu,cpu"):
        code = f"jinit.startup(0, {ASKED}, platform={platform!r}); result = read('fakegpu')"
        assert run(code, unknown) == {**MEMORY, "jax_platforms": platform}


def test_asking_for_a_gpu_again_changes_nothing(cuda):
    code = f"""
from jinit.settings import jax_options
jinit.startup(0, {ASKED}, platform="gpu")
jax_options._current_platform = lambda: "cuda"  # as the client of a GPU says
warned = caught_in(lambda: jinit.startup(0, {ASKED}, platform="gpu"))
settings = jinit.startup_report().settings
result = [warned, {{name: settings[name].status for name in ("platform", "memory")}}]
"""
    assert run(code, cuda) == [[], {"platform": "unchanged", "memory": "unchanged"}]


def test_of_the_installed_gpus_those_are_started_that_are_there(installed):
    code = f"jinit.startup(0, {ASKED}, platform='gpu'); result = jax.config.jax_platforms"
    assert run(code, installed("xla_cuda12", "xla_rocm7")) == "cuda"


def test_what_is_not_installed_is_refused_before_plugins_are_registered(cuda):
    code = f"""
refused = [refusal(platform=each, {ASKED}) for each in ("cdua", "tpu,rocm")]
jinit.startup(0, {ASKED}, platform="cuda")
result = [refused, read("xla_cuda12")]
"""
    refused, found = run(code, cuda)
    for text, platform in zip(refused, ("cdua", "tpu,rocm"), strict=True):
        assert text.startswith("ValueError: platform must be made of 'cpu', 'tpu'")
        assert text.endswith(
            f"'cuda', the platforms that are installed here, not {platform!r}: pass one, or leave "
            "it out."
        )
    assert found == {**MEMORY, "jax_platforms": "cuda"}


def test_plugins_are_found_where_jax_finds_them(monkeypatch):
    monkeypatch.setattr(platforms, "plugins_are_registered", lambda: False)
    monkeypatch.setattr(platforms, "registered_platforms", lambda: ["cpu", "tpu"])
    modules = ["jax_plugins.xla_rocm60", "jax_plugins.xla_cuda13"]
    entries = [SimpleNamespace(value=name) for name in modules]
    monkeypatch.setattr(platforms, "entry_points", lambda group: entries * (group == "jax_plugins"))
    pairs = "mine:/of/mine.so,not a pair".replace(":", os.pathsep)
    monkeypatch.setenv("PJRT_NAMES_AND_LIBRARY_PATHS", pairs)
    assert platforms.known_platforms() == ["cpu", "tpu", "rocm", "cuda", "mine"]
    assert platforms.written_out("gpu,cpu") == "cuda,rocm,cpu"
    assert not platforms.others_may_come()
    entries.append(SimpleNamespace(value="vendor.cudalike"))
    assert platforms.known_platforms() == ["cpu", "tpu", "rocm", "cuda", "mine"]
    assert platforms.others_may_come()


def test_a_gpu_that_is_not_there_is_refused_before_plugins_are_registered(cuda):
    code = f"""
refused = refusal(platform="gpu", {ASKED})
result = [refused, xla_bridge._plugins_registered]
"""
    refused, registered = run(code, cuda, gpu=False)
    assert refused.startswith("ValueError: platform must be made of 'cpu', 'tpu'")
    assert not registered


def test_what_an_unknown_plugin_does_not_bring_leaves_all_as_it_was(unknown):
    code = f"""
refused = refusal(platform="bogus", {ASKED})
warned = caught_in(lambda: jinit.startup(0, memory="vmm", memory_fraction=0.3, platform="cpu"))
result = [refused, warned, rows("memory", "memory_fraction")]
"""
    refused, warned, reported = run(code, unknown)
    assert refused.startswith(
        "RuntimeError: JAX's backend does not start, and every setting was changed back: Unable to "
        "initialize backend 'bogus': Backend 'bogus' is not in the list of known backends: ['cpu', "
    )
    # What the plugin has read in the call that failed cannot be changed back.
    assert warned == [
        "JAX's plugins are already registered, too late for memory='vmm': call jinit.startup() "
        "before the first JAX operation."
    ]
    assert reported == {
        "memory": ["grow", "argument", "memory", "too late"],
        "memory_fraction": [0.3, "argument", "memory_fraction", "unchanged"],
    }


REGISTERED = {
    "by its list of platforms": "xla_bridge._discover_and_register_pjrt_plugins()",
    "by a backend that was cleared": "jax.devices(); jax.extend.backend.clear_backends()",
}


@pytest.mark.cases
@pytest.mark.parametrize("how", REGISTERED)
def test_plugins_that_the_user_registered_make_it_too_late(cuda, how):
    code = f"""
import jax.extend
{REGISTERED[how]}
strict = refusal({ASKED}, strict=True)
os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # which is too late as well
warned = caught_in(lambda: jinit.startup(0, {ASKED}, platform="cpu"))
result = [strict, warned, rows("memory", "memory_fraction", "platform"),
          read("xla_cuda12"), "XLA_CLIENT_MEM_FRACTION" in os.environ]
"""
    strict, warned, reported, found, is_set = run(code, cuda)
    late = (
        "JAX's plugins are already registered, too late for memory='grow', memory_fraction=0.3: "
        "call jinit.startup() before the first JAX operation."
    )
    assert (strict, warned) == (f"RuntimeError: {late}", [late])
    assert reported["memory"] == [None, "argument", "memory", "too late"]
    assert reported["memory_fraction"] == [None, "argument", "memory_fraction", "too late"]
    assert reported["platform"] == ["cpu", "argument", "platform", "applied"]
    assert found == {"allocator": "default", "jax_platforms": ""}
    assert not is_set


@pytest.mark.cases
@pytest.mark.parametrize(
    ("variables", "policy"),
    [
        ({}, None),
        ({"PREALLOCATE": "0"}, "grow"),
        ({"PREALLOCATE": "yes", "ALLOCATOR": "Default"}, "preallocate"),
        ({"ALLOCATOR": "cuda_async"}, "XLA_PYTHON_CLIENT_ALLOCATOR=cuda_async"),
        ({"PREALLOCATE": "false", "ALLOCATOR": "vmm"}, "vmm"),
    ],
)
def test_what_the_users_variables_amount_to_is_reported(cuda, variables, policy):
    code = 'jinit.startup(0); result = rows("memory")["memory"]'
    given = {f"XLA_PYTHON_CLIENT_{name}": text for name, text in variables.items()}
    value, origin, source, status = run(code, cuda, **given)
    assert (value, status) == (policy, "unchanged")
    assert (origin == "environment", source) == (bool(given), ", ".join(given))
