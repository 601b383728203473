"""The README is true: its code runs, its commands and links exist."""

import re
from pathlib import Path

import pytest

import jinit
from tests.processes import python

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.thorough
def test_the_quickstart_runs_in_a_fresh_process_in_linen_and_in_nnx(tmp_path):
    program = tmp_path / "quickstart.py"
    program.write_text("\n".join(BLOCKS) + 'print("losses", loss)\n')
    done = python(program, warn="error::UserWarning", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    layers = ("params/Dense_0/kernel", "params/Dense_1/kernel", "first/kernel", "last/kernel")
    for layer in layers:
        ((_, after),) = re.findall(rf"^  {layer} +linear +(\S+) +(\S+)", done.stdout, re.MULTILINE)
        assert abs(float(after) - 1) < 0.1
    assert done.stdout.count("amp O2 with bfloat16") == 2
    assert re.search(r"losses [\d.]+", done.stdout)


def test_nnx_takes_no_more_lines_than_linen():
    """In each of the two tables of the quickstart."""
    lines = [len([line for line in block.splitlines() if line]) for block in BLOCKS]
    _, linen, nnx, linen_step, nnx_step = lines
    assert nnx <= linen + 2
    assert nnx_step <= linen_step


def test_every_name_in_the_box_exists():
    for name in re.findall(r"`jinit\.([a-z_.]+)\(?", README):
        value = jinit
        for part in name.split("."):
            value = getattr(value, part)


def test_every_name_that_jinit_lists_exists():
    assert [name for name in jinit.__all__ if getattr(jinit, name) is None] == []
    assert set(jinit.__all__) <= set(dir(jinit))
    with pytest.raises(AttributeError, match="module 'jinit' has no attribute 'empirical_innit'"):
        _ = jinit.empirical_innit


@pytest.mark.parametrize(
    ("name", "home"),
    [
        ("Normed", "empirical"),
        ("get_wrapped_submodules", "empirical"),
        ("wrap_all_leaf_modules", "empirical"),
        ("register_key", "reproducibility"),
    ],
)
def test_names_that_have_moved_still_answer_and_say_where_they_are(name, home):
    with pytest.warns(DeprecationWarning, match=rf"jinit.{name} is jinit.{home}.{name} now"):
        assert getattr(jinit, name) is getattr(getattr(jinit, home), name)
    assert name not in jinit.__all__


def test_the_startup_variables_in_the_readme_are_all_there_are():
    from jinit.settings.table import SETTINGS, STRICT

    named = set(re.findall(r"`(JINIT_[A-Z0-9_]+)`", README))
    settings = (*SETTINGS.values(), STRICT)
    assert named == {source.name for setting in settings for source in setting.variables}
