import math

from jinit._tables import format_number, format_table


def test_numbers_have_three_digits_and_gaps_show_as_a_dash():
    assert [format_number(v) for v in (1.0, 1234.5, 1e-9)] == ["1", "1.23e+03", "1e-09"]
    assert format_number(None) == format_number(math.nan) == "-"


def test_brackets_in_cells_are_text_and_columns_align():
    text = format_table(["path", ">rms"], [["['a'][0]", "1"], ["b", "20"]], title="Layers")
    title, head, rule, first, second = text.splitlines()
    assert title == "Layers"
    assert "['a'][0]" in first
    assert len(rule) >= len(head)
    assert first.index("1") == second.index("20") + 1


def test_in_a_notebook_the_table_is_still_text(monkeypatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert "rms" in format_table(["leaf", ">rms"], [["kernel", "1"]])
