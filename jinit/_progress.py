"""What is said while long work runs, where it was asked for."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

__all__ = ["Progress", "progress"]


class Progress:
    """Counts steps; this one says nothing."""

    def begin(self, what: str, steps: int) -> None:
        """Says what is done next, and in how many steps."""

    def advance(self, result: Any) -> None:
        """Counts one step."""


class _Bar(Progress):
    """A bar on standard error."""

    def __init__(self, bar: Any) -> None:
        self.bar, self.task = bar, bar.add_task("tracing the model", total=None)

    def begin(self, what: str, steps: int) -> None:
        self.bar.update(self.task, description=what, total=steps, completed=0)

    def advance(self, result: Any) -> None:
        jax.block_until_ready(result)
        self.bar.advance(self.task)


@contextlib.contextmanager
def progress(verbose: bool, unit: str) -> Iterator[Progress]:
    """Shows a bar while the context lasts, if ``verbose``; ``unit`` names the steps."""
    if not verbose:
        yield Progress()
        return
    from rich import progress as rich_progress
    from rich.console import Console

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn(unit),
        rich_progress.TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with rich_progress.Progress(*columns, console=console, transient=True) as bar:
        yield _Bar(bar)
