"""What is said: the report of a call, and the count before one."""

import contextlib
import io
import json
import math
import re
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import random
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jinit
from jinit import fast_init
from jinit.fastinit import FastInit
from tests.fastinit.test_frameworks import Module, Net, OfData, X
from tests.fastinit.test_shardings import make_mesh

KEY = random.key(0)


def test_report():
    init = fast_init(OfData().init)
    assert init.report is None
    init(KEY, X)
    text = re.sub(r"\d+\.\d\d s", "- s", str(init.report))
    assert text == (
        "  way        made of            programs   leaves   numbers   which\n"
        " " + 88 * "─" + "\n"
        "  filled     0                         -        2        12\n"
        "  filled     1                         -        1         4\n"
        "  drawn      truncated normal          1        1        64   params/Dense_0/kernel\n"
        "  computed   2 drawn, by mul           1        1        32   params/Dense_1/kernel\n"
        "  computed   one another               1        2         4   params/drawn, params/scale\n"
        "7 leaves of 464 B, traced in - s, compiled and made in - s"
    )


def test_report_as_data():
    init = fast_init(Net().init)
    variables = init(KEY, X)
    data = init.report.to_dict()
    assert json.loads(init.report.to_json()) == json.loads(json.dumps(data))
    leaves = jax.tree.leaves(variables)
    assert sum(len(row["leaves"]) for row in data["rows"]) == len(leaves)
    assert sum(row["numbers"] for row in data["rows"]) == sum(leaf.size for leaf in leaves)
    assert data["bytes"] == sum(leaf.nbytes for leaf in leaves)
    assert data["reason"] is None
    paths = {jax.tree_util.keystr(p, simple=True, separator="/")
             for p, _ in jax.tree_util.tree_leaves_with_path(variables)}  # fmt: skip
    assert {path for row in data["rows"] for path in row["leaves"]} == paths


def test_report_of_whether_it_was_traced():
    init = fast_init(Net().init)
    init(KEY, X)
    first = init.report
    init(KEY, X)
    assert init.report is not first
    assert init.report.trace_seconds < first.trace_seconds / 5


@pytest.mark.parametrize(("verbose", "shown"), [(None, False), (False, False), (True, True)])
def test_what_is_printed(verbose, shown, capsys):
    fast_init(nn.Dense(3).init, verbose=verbose)(KEY, X)
    out, err = capsys.readouterr()
    assert ("truncated normal" in out) == shown
    assert bool(out) == shown
    assert bool(err) <= shown


def test_a_bar_for_long_work(monkeypatch):
    """For many numbers, and where a person looks on."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys.modules[FastInit.__module__], "_LONG", 10)
    texts = []
    for stream in (Terminal(), io.StringIO()):
        with contextlib.redirect_stderr(stream):
            fast_init(nn.Dense(3).init)(KEY, X)
        texts.append(stream.getvalue())
    assert "making fast_init(Module.init)" in texts[0]
    assert texts[1] == ""


def test_count_text():
    mesh = make_mesh()

    def place(path, leaf):
        return NamedSharding(mesh, P("model") if leaf.shape and leaf.shape[0] % 2 == 0 else P())

    assert str(jinit.count(Net().init, KEY, X, out_shardings=place)) == (
        "  module        parameters   state      bytes\n"
        " ─────────────────────────────────────────────\n"
        "  BatchNorm_0           16      16      128 B\n"
        "  Block_0              600       0   2.34 KiB\n"
        "  Block_1              600       0   2.34 KiB\n"
        "  Dense_0               27       0      108 B\n"
        "  Embed_0               88       0      352 B\n"
        "  total              1.33k      16   5.26 KiB\n"
        "by dtype: float32 5.26 KiB\n"
        "by device: 2.81 KiB on each of 8"
    )


def sums(tree):
    """Numbers and bytes of a tree of shapes."""
    leaves = jax.tree.leaves(tree)
    numbers = sum(math.prod(leaf.shape) for leaf in leaves)
    return numbers, sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_count_is_the_sum(param_dtype):
    net = Net(param_dtype=param_dtype)
    shapes = jax.eval_shape(net.init, KEY, X)
    found = jinit.count(net.init, KEY, X)
    params, params_bytes = sums(shapes["params"])
    state, state_bytes = sums(shapes["batch_stats"])
    assert (found.parameters, found.state) == (params, state)
    assert found.bytes == params_bytes + state_bytes
    by_dtype = {}
    for leaf in jax.tree.leaves(shapes):
        by_dtype[str(leaf.dtype)] = by_dtype.get(str(leaf.dtype), 0) + sums(leaf)[1]
    assert found.bytes_by_dtype == by_dtype
    assert found.bytes_by_device == {}
    for row in found.modules:
        numbers, size = sums(shapes["params"][row.name])
        other, more = sums(shapes["batch_stats"].get(row.name, {}))
        assert (row.parameters, row.state, row.bytes) == (numbers, other, size + more)
    assert json.loads(found.to_json()) == json.loads(json.dumps(found.to_dict()))


def test_count_by_device_is_what_lies_there():
    mesh = make_mesh()

    def place(path, leaf):
        return NamedSharding(mesh, P(("data", "model")) if leaf.shape == (8, 16) else P())

    init = fast_init(Net().init, out_shardings=place)
    found = init.count(KEY, X)
    lies = {}
    for leaf in jax.tree.leaves(init(KEY, X)):
        for shard in leaf.addressable_shards:
            name = str(shard.device)
            lies[name] = lies.get(name, 0) + shard.data.nbytes
    assert found.bytes_by_device == lies


def test_count_of_what_fits_nowhere():
    """A hundred thousand million numbers, of which nothing is made."""

    def init_fn(key):
        return {"w": random.normal(key, (10**6, 10**5), jnp.bfloat16)}

    found = jinit.count(init_fn, jax.eval_shape(lambda: KEY))
    assert (found.parameters, found.bytes) == (10**11, 2 * 10**11)
    assert "100B" in str(found)
    assert "186 GiB" in str(found)


def test_count_of_nnx():
    found = jinit.count(lambda rngs: Module(rngs), nnx.Rngs(0))
    rows = {row.name: (row.parameters, row.state) for row in found.modules}
    assert rows["layers"] == (3 * 72, 0)  # the one that is tied is counted once
    assert rows["norm"] == (16, 16)


def test_count_of_a_fast_init():
    init = fast_init(Net().init)
    assert isinstance(init, FastInit)
    assert jinit.count(init, KEY, X) == init.count(KEY, X) == jinit.count(Net().init, KEY, X)
    assert init.report is None


def test_count_of_keys_and_empty_arrays():
    def init_fn(key):
        return {"key": key, "empty": jnp.zeros((0, 3)), "s": jnp.asarray(1.5)}

    found = jinit.count(init_fn, KEY)
    assert (found.parameters, found.bytes) == (1, 12)
