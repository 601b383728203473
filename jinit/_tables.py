"""Tables as text: every report of the library is laid out here."""

import io
import math
from collections.abc import Iterable, Sequence

__all__ = ["format_number", "format_table"]


def format_number(value: float | None) -> str:
    """Formats a measured quantity in three significant digits, ``-`` where there is none.

    Example:
        >>> format_number(0.99871), format_number(2.5e-7), format_number(None)
        ('0.999', '2.5e-07', '-')
    """
    return "-" if value is None or math.isnan(value) else f"{value:.3g}"


def format_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "", width: int = 120
) -> str:
    """Lays out rows under column heads as plain text.

    Args:
        columns: The heads; one that begins with ``>`` is aligned to the right.
        rows: One string per column and row.
        title: A line above the table.
        width: The most characters a line may take; longer cells are folded.

    Returns:
        The table, without colour codes and without a final newline.

    Example:
        >>> print(format_table(["leaf", ">rms"], [["kernel", "1.0"]]))
          leaf     rms
         ──────────────
          kernel   1.0
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", title_style="", box=box.SIMPLE_HEAD)
    for column in columns:
        right = column.startswith(">")
        table.add_column(column[right:], justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    text = io.StringIO()
    # force_jupyter: in a notebook rich would show the table instead of writing it to the file
    options = {"color_system": None, "markup": False, "highlight": False, "force_jupyter": False}
    Console(file=text, width=width, **options).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines() if line.strip())
