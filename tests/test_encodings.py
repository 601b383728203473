"""Everything that is printed can be printed on any output, whatever its encoding has."""

import io
import sys
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.cells import cell_len

import jinit
from jinit import amp
from jinit._progress import progress
from jinit._tables import format_table, printable
from jinit.demo import experiments, show
from jinit.inspect import coord_check, describe
from jinit.settings.report import Outcome, make_report
from tests.processes import python

NAME = "größe→漢"
"""Latin letters, a character of the library's own, and one that takes two cells."""
ENCODINGS = ("ascii", "latin-1", "cp1252", "cp437", "koi8-r", "shift_jis", "utf-8", "utf-16")
WITH_LINES = {"cp437", "koi8-r", "shift_jis", "utf-8", "utf-16"}


class Net(nn.Module):
    width: int = 4

    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(nn.Dense(self.width, name=NAME)(x))
        return nn.Dense(2)(nn.LayerNorm()(x))


def _make_net(width):
    net = Net(width)
    return net.init(jax.random.key(0), jnp.ones((3, 4))), net.apply


@pytest.fixture(scope="module")
def calibration():
    x, key = jnp.ones((3, 4)), jax.random.key(0)
    return jinit.calibrate(
        *(Net().init(key, x), Net().apply, x, lambda out, key: jnp.mean(out**2)),
        key=key, optimizer=optax.sgd(0.1), mode="explicit", samples=2, batch_size=4,
    )  # fmt: skip


@pytest.fixture(scope="module")
def printers(calibration):
    """Every printing of the library, as functions: what is computed is computed before."""
    x, key = jnp.ones((3, 4)), jax.random.key(0)
    params, report = calibration.params, calibration.report
    check = coord_check(
        _make_net, (2, 4), x, lambda out, key: jnp.mean(out**2), steps=1, batch_size=3, key=key
    )
    run = SimpleNamespace(
        recipe=SimpleNamespace(label=NAME, learning_rate=0.1),
        accuracy=0.9, final_loss=0.1, finite=np.array([True, False, True]),
        scales=np.array([8.0, 8.0, 4.0]), seconds=1.0,
    )  # fmt: skip
    outcomes = [experiments.Outcome(NAME, (run,))]
    policy = amp.initialize(Net().apply, opt_level="O2", verbosity=0).policy
    described, table = describe(Net(), x), jinit.keras_defaults().table
    seed = Outcome(NAME, 1, "argument", "seed", "applied")
    started = make_report({"seed": seed}, {}, {"xla_dump_to": NAME})
    return {
        "calibration": lambda: print(report),
        "members": lambda: print(repr(report)),
        "describe": lambda: print(described),
        "coord_check": lambda: print(check),
        "defaults": lambda: print(table),
        "policy": lambda: print(policy),
        "operations": lambda: print(amp.OPS),
        "explain": lambda: print(amp.explain(Net().apply, params, x)),
        "startup": lambda: print(started),
        "layers": lambda: print(show.layers_table(calibration)),
        "levels": lambda: print(show.levels_table(outcomes)),
        "rates": lambda: print(show.rates_table(outcomes)),
        "overflows": lambda: print(show.overflow_story(run)),
        "progress": _show_progress,
    }


def _show_progress():
    with progress(True, "passes") as bar:
        bar.begin("measuring", 1)
        bar.advance(jnp.ones(()))


def written(monkeypatch, encoding, prints):
    """What a function writes to an output of an encoding, which takes nothing else."""
    with monkeypatch.context() as patch:
        output = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
        patch.setattr(sys, "stdout", output)
        patch.setattr(sys, "stderr", output)
        prints()
        output.flush()
        return output.buffer.getvalue().decode(encoding)


@pytest.mark.cases
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_report_prints_on_every_output(encoding, printers, monkeypatch):
    texts = {name: written(monkeypatch, encoding, each) for name, each in printers.items()}
    assert all(texts[name].strip() for name in set(texts) - {"progress"})
    if encoding.startswith("utf"):
        assert NAME in texts["calibration"]
        assert NAME in texts["describe"]
        assert "8 → 4" in texts["levels"]
    if encoding == "ascii":
        assert "gr\\xf6\\xdfe>\\u6f22" in texts["calibration"]
        assert "8 > 4" in texts["levels"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_columns_stay_aligned(encoding, monkeypatch):
    rows = [[NAME, "1 → 2", "end"], ["b", "10 × 20", "end"]]
    text = written(
        monkeypatch, encoding, lambda: print(format_table(["name", ">→", "last"], rows, title="t"))
    )
    title, head, rule, first, second = text.splitlines()
    assert title == "t"
    assert cell_len(first) == cell_len(second)
    assert cell_len(head[: head.index("last")]) == cell_len(first[: first.index("end")])
    assert set(rule.strip()) == ({"─"} if encoding in WITH_LINES else {"-"})


def test_what_has_no_encoding_takes_everything(monkeypatch):
    surrogate = "a\udce9"  # how Python reads a byte that is not UTF-8
    for output in (None, io.StringIO(), SimpleNamespace(write=len)):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", output)
            shown = printable("→ é"), printable(surrogate)
        assert shown == ("→ é", "a\\udce9")


@pytest.mark.cases
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_the_command_line_prints_on_every_output(encoding):
    done = python("-m", "jinit", "env", PYTHONIOENCODING=encoding, JAX_NAME="→漢")
    assert (done.returncode, done.stderr) == (0, "")
    assert "------" in done.stdout
    assert ">\\u6f22" in done.stdout
