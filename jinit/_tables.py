"""Tables as text: every report of the library is laid out here."""

import io
import math
import sys
from collections.abc import Iterable, Sequence

__all__ = ["format_bytes", "format_count", "format_number", "format_table", "printable"]

_PLAIN = {"─": "-", "→": ">", "×": "x"}
"""The library's own characters in ASCII, each as wide as before, so that columns stay aligned."""


def printable(text: str) -> str:
    """Replaces the characters that ``sys.stdout`` cannot encode, so that print does not raise.

    An output may be ASCII or a Windows code page. The library's own characters become plain ones,
    others (a name, a path, a byte that is not UTF-8) the escapes that Python writes.

    Example:
        >>> printable("before → after")
        'before → after'
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    if _encodes(text, encoding):
        return text
    return "".join(c if _encodes(c, encoding) else _plain(c) for c in text)


def _encodes(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _plain(character: str) -> str:
    return _PLAIN.get(character) or character.encode("ascii", "backslashreplace").decode()


def format_number(value: float | None) -> str:
    """Formats a measured quantity in three significant digits, ``-`` where there is none.

    Example:
        >>> format_number(0.99871), format_number(2.5e-7), format_number(None)
        ('0.999', '2.5e-07', '-')
    """
    return "-" if value is None or math.isnan(value) else f"{value:.3g}"


def format_count(number: int) -> str:
    """Writes a whole number in three digits and a unit.

    Example:
        >>> format_count(0), format_count(768), format_count(85_907_216), format_count(7 * 10**9)
        ('0', '768', '85.9M', '7B')
    """
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def format_bytes(size: int) -> str:
    """Writes a number of bytes in three digits and a unit.

    Example:
        >>> format_bytes(12), format_bytes(4096), format_bytes(3 * 2**30)
        ('12 B', '4 KiB', '3 GiB')
    """
    for unit, scale in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size} B"


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
        The table in characters that ``sys.stdout`` has, without colour codes and without a final
        newline.

    Example:
        >>> print(format_table(["leaf", ">rms"], [["kernel", "1.0"]]))
          leaf     rms
         ──────────────
          kernel   1.0
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=printable(title) or None, title_justify="left", title_style="", box=box.SIMPLE_HEAD
    )
    for column in map(printable, columns):
        right = column.startswith(">")
        table.add_column(column[right:], justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(printable, row))
    text = io.StringIO()
    # force_jupyter: in a notebook rich would show the table instead of writing it to the file
    options = {"color_system": None, "markup": False, "highlight": False, "force_jupyter": False}
    Console(file=text, width=width, **options).print(table)
    lines = printable(text.getvalue()).splitlines()
    return "\n".join(line.rstrip() for line in lines if line.strip())
