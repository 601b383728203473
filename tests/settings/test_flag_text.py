"""The text of XLA_FLAGS, against what XLA itself reads, and against itself."""

import json
import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jinit.settings.flags.text import Tokens, format_flags, read_variable, split_flags
from tests.processes import python

PIECES = [
    "--xla_dump_to=", "--xla_dump_to", "--xla_cpu_enable_fast_math=true",
    "--xla_cpu_enable_fast_math", "'", '"', "\\", " ", "\t", "\n", "=", "/a", "b", "-", "--",
    "é", "\\'", '\\"', "'x y'", '"x y"', "\x0b", "--xla_dump_to='p q'", '--xla_dump_to="\\"',
]  # fmt: skip
WRITTEN = [
    "", "--xla_dump_to=/a", "--xla_dump_to='/a b' --xla_dump_to=/c", "-xla_dump_to=/a",
    '--xla_dump_to="a\\"b\\\\c"', '--xla_dump_to="unended \\', "--xla_dump_to=a'b c'",
    "--xla_dump_to='a'b --xla_dump_to=c", "--xla_dump_to='a'--xla_dump_to=c",
    " \t--xla_dump_to=/a\n--xla_cpu_enable_fast_math", "--xla_dump_to==", "--xla_dump_to=\"'\"",
    "--xla_dump_to='\"'", "--xla_dump_to=/a junk --xla_dump_to=/b",
]  # fmt: skip


def _texts():
    draw = random.Random(0)
    drawn = ["".join(draw.choices(PIECES, k=draw.randint(1, 6))) for _ in range(150)]
    return [*WRITTEN, *("--xla_dump_to=" + text for text in drawn), *drawn]


def test_a_text_is_split_as_xla_splits_it():
    texts = _texts()
    done = python("-m", "tests.settings.xla_reads", given=json.dumps(texts))
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout)
    legal = {"xla_dump_to": str, "xla_cpu_enable_fast_math": (str, type(None))}
    kept = 0
    for text, folder in zip(texts, read, strict=True):
        flags, ignored = split_flags(text)
        known = all(isinstance(flags[name], legal.get(name, ())) for name in flags)
        boolean = flags.get("xla_cpu_enable_fast_math") in (None, "true", "false", "1", "0")
        # Where it begins with a word, XLA takes the text for a file's name and ends the process.
        survives = known and boolean and bool(flags or not text) and ignored != text
        assert (folder is not None) == (survives or not text), text
        if folder is not None:
            assert folder == flags.get("xla_dump_to", ""), text
            kept += 1
    assert kept > 100


names = st.from_regex(r"[a-z0-9_]+", fullmatch=True)
values = st.none() | st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12
)


@given(st.dictionaries(names, values, max_size=4))
def test_what_is_written_is_read_back(flags):
    assert split_flags(format_flags(flags)) == Tokens(flags, "")


@given(st.text())
def test_any_text_is_split_and_what_is_split_is_stable(text):
    flags, ignored = split_flags(text)
    assert not ignored.startswith("-")
    assert split_flags(format_flags(flags)).flags == flags or "" in flags


@pytest.mark.parametrize("content", ["--xla_a=1\n--xla_b='x y'\n", ""])
def test_a_file_of_flags(tmp_path, content):
    path = tmp_path / "flags"
    path.write_text(content)
    os.environ["XLA_FLAGS"] = str(path)
    assert read_variable("XLA_FLAGS") == split_flags(content)


def test_what_cannot_be_read_is_ignored_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for text in (
        str(tmp_path / "pipe"),
        str(tmp_path),
        "/nowhere",
        "junk --xla_a=1",
        " ",
        "x" * 5000,
    ):
        os.environ["XLA_FLAGS"] = text
        assert read_variable("XLA_FLAGS") == Tokens({}, text)
    del os.environ["XLA_FLAGS"]
    assert read_variable("XLA_FLAGS") == Tokens({}, "")
