"""How many lines a user of each framework writes, counted in the functions of the table."""

import inspect
import io
import tokenize

from tests.frameworks.compare import FRAMEWORKS

# The functions of a framework's file that each column runs; those that it does not have are not
# needed there.
COLUMNS = {
    "float32": ("forward", "train"),
    "in its place (initialize)": ("initialize", "forward", "train"),
    "O0 to O3, overflow": ("forward", "train_amp"),
    "O0 to O3, overflow (train_step)": ("forward", "train_in_one_call"),
    "calibrate, fold": ("fold", "forward", "train"),
    "calibrate, explicit": ("explicit", "forward", "train"),
    "keras_defaults": ("keras", "forward", "train"),
}
NEEDED = {"forward"}


def count(framework, column):
    """The logical lines of the functions' bodies, or None where the framework has no such cell."""
    module = FRAMEWORKS[framework]
    found = [getattr(module, name, None) for name in COLUMNS[column] if name not in NEEDED]
    if None in found:
        return None
    found += [getattr(module, name) for name in NEEDED if hasattr(module, name)]
    return sum(map(_lines, found))


def _lines(function):
    tokens = tokenize.generate_tokens(io.StringIO(inspect.getsource(function)).readline)
    return sum(token.type == tokenize.NEWLINE for token in tokens) - 1  # but for the first


def table():
    """A row a column of the table, a column a framework."""
    head = f"{'lines of user code':34}" + "".join(f"{name:>9}" for name in FRAMEWORKS)
    rows = [
        f"{column:34}" + "".join(f"{_shown(count(name, column)):>9}" for name in FRAMEWORKS)
        for column in COLUMNS
    ]
    return "\n".join([head, *rows])


def _shown(lines):
    return "-" if lines is None else str(lines)
