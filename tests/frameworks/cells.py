"""The cells of the table as parameters of tests: a few for the quick suite, the rest thorough."""

import pytest

from tests.frameworks.compare import FRAMEWORKS
from tests.frameworks.recipes import RECIPES

QUICK = {("linen", "mlp"), ("nnx", "mlp"), ("plain", "mlp")}


def cells(frameworks=FRAMEWORKS, columns=None, quick=QUICK, quick_column=None):
    """Every framework with every model, and with every column where there are several."""
    made = []
    for framework in frameworks:
        for name in RECIPES:
            for column in columns or [None]:
                values = (framework, name) if columns is None else (framework, name, column)
                taken = (framework, name) in quick and column == quick_column
                marks = [] if taken else [pytest.mark.thorough]
                made.append(pytest.param(*values, marks=marks, id="-".join(values)))
    return made
