"""No framework asks for more than two lines more than linen does."""

import pytest

from tests.frameworks.compare import FRAMEWORKS
from tests.frameworks.lines import COLUMNS, count, table


@pytest.mark.parametrize("column", COLUMNS)
def test_no_framework_takes_more_than_two_lines_more_than_linen(column):
    counts = {framework: count(framework, column) for framework in FRAMEWORKS}
    taken = [lines for lines in counts.values() if lines is not None]
    assert max(taken) <= counts["linen"] + 2, counts


def test_the_table_has_a_row_a_column():
    assert len(table().splitlines()) == 1 + len(COLUMNS)
