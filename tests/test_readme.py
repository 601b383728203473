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
def test_the_quickstart_is_ten_lines_that_run_in_a_fresh_process(tmp_path):
    assert len([line for line in BLOCKS[0].splitlines() if line]) == 10
    program = tmp_path / "quickstart.py"
    program.write_text("\n".join(BLOCKS))
    done = python(program, warn="error::UserWarning", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"params/layers_\d/kernel +linear +(\S+) +(\S+)", done.stdout)
    assert len(rows) == 3
    assert all(abs(float(after) - 1) < 0.1 for _, after in rows)
    assert "amp O1 with bfloat16" in done.stdout


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
