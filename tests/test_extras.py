import importlib.util

import pytest

from jinit._extras import require
from jinit.demo import main
from jinit.empirical import Report
from jinit.inspect import CoordCheck


@pytest.fixture
def nothing_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def test_what_is_installed_is_no_error():
    require("demo", "sklearn", "matplotlib")


def test_a_plot_without_matplotlib_says_what_to_install(nothing_installed):
    for result in (Report(()), CoordCheck((), (), 0.25)):
        with pytest.raises(ModuleNotFoundError, match=r"matplotlib not installed: run pip install"):
            result.plot()


def test_the_demo_says_what_to_install_before_it_starts(nothing_installed, capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "sklearn and matplotlib not installed: run pip install 'jinit[demo]'" in (
        capsys.readouterr().err
    )
