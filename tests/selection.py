"""Which tests a run takes: the quick suite, the rest of it, or what was asked for."""

import subprocess
import time
from pathlib import Path

import pytest

TIME_IS_UP = "the time for these tests is up"


def add_options(parser):
    group = parser.getgroup("jinit")
    group.addoption(
        "--rest",
        action="store_true",
        help="run what the quick suite leaves out, but for what is marked slow",
    )
    group.addoption(
        "--minutes",
        type=float,
        help="begin at a file that depends on the commit, and stop after this time",
    )
    group.addoption("--optimize", action="store_true", help="let XLA optimize as it does for users")


def choose(config, items):
    """Leaves out the tests that this run does not take, in place."""
    option = config.option
    if not option.optimize:
        _leave_out(config, items, _marked(items, "exact"))
    if option.markexpr or any("::" in argument for argument in config.args):
        return
    if option.rest:
        quick = _quick(items, "slow", "thorough", "exact")
        _leave_out(config, items, quick | _marked(items, "slow"))
    else:
        _leave_out(config, items, {*items} - _quick(items, "slow", "thorough"))
    if option.minutes:
        items[:] = _from_the_commit_on(items)


def _marked(items, *names):
    return {item for item in items if any(map(item.get_closest_marker, names))}


def _quick(items, *slower):
    """All but what has one of these marks, and of cases the first."""
    begun, further = set(), set()
    for item in items:
        function, _, case = item.nodeid.partition("[")
        if case and function in begun and item.get_closest_marker("cases"):
            further.add(item)
        begun.add(function)
    return {*items} - further - _marked(items, *slower)


def _leave_out(config, items, left):
    if left:
        config.hook.pytest_deselected(items=[*left])
        items[:] = [item for item in items if item not in left]


def _from_the_commit_on(items):
    """The files in turn, from one that the commit picks, so that many commits run them all."""
    files = list(dict.fromkeys(item.path for item in items))
    first = files[_commit() % len(files)]
    start = next(place for place, item in enumerate(items) if item.path == first)
    return items[start:] + items[:start]


def _commit():
    """The number of the commit that is checked out, or 0 where there is none."""
    command = ["git", "-C", Path(__file__).parent, "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(done.stdout, 16) if done.returncode == 0 else 0


class Deadline:
    """Skips, before their fixtures are made, the tests that are left when the time is up."""

    def __init__(self, minutes):
        self._end = time.monotonic() + 60 * minutes

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self):
        if time.monotonic() > self._end:
            pytest.skip(TIME_IS_UP)

    def pytest_terminal_summary(self, terminalreporter):
        stats = terminalreporter.stats
        late = [report for report in stats.get("skipped", ()) if TIME_IS_UP in str(report.longrepr)]
        ended = sum(len(stats.get(name, ())) for name in ("passed", "failed", "error", "skipped"))
        terminalreporter.section("what the time was enough for")
        terminalreporter.line(f"ran {ended - len(late)} of {ended} tests before the time was up")
