import json

import pytest

from optax_lamblion.cli import _output


@pytest.fixture
def table():
    table = _output.Table("Sizes [of] things", ["name", "bytes", "why"], left=["why"])
    table.add("a", "10", "small")
    table.add("longer", "1,000", "[b]big[/b]", dimmed=True)
    return table


def test_plain_tables_are_aligned(table):
    assert _output.plain_table(table).splitlines() == [
        "Sizes [of] things",
        "",
        "name    bytes  why",
        "------  -----  ----------",
        "a          10  small",
        "longer  1,000  [b]big[/b]",
    ]


def test_pipes_get_plain_tables(table, capsys):
    _output.print_table(table)
    assert capsys.readouterr().out == _output.plain_table(table) + "\n"


def test_terminals_get_rich_tables_with_the_same_words(table, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    _output.print_table(table)
    out = capsys.readouterr().out
    assert out != _output.plain_table(table) + "\n"
    assert all(cell in out for row in table.rows for cell in row)


def test_json_has_null_where_a_number_is_not_finite():
    text = _output.to_json({"a": [float("nan"), 1.5], "b": (float("inf"),)})
    assert json.loads(text) == {"a": [None, 1.5], "b": [None]}


def test_what_a_terminal_would_obey_is_escaped():
    assert _output.printable("a\x1b[2J\x07\u202eb\n\ud800") == r"a\x1b[2J\x07\u202eb\n\ud800"
    assert _output.printable("Grösse: 3 µm, 重み") == "Grösse: 3 µm, 重み"
    assert len(_output.printable("x" * 10**6)) < 2100


def test_wide_tables_are_printed_in_parts_and_words_are_wrapped():
    table = _output.Table("Sizes", ["name", "first", "second", "why"], left=["why"])
    table.add("a", "1,234,567", "-0.125", "one two three four five")
    assert _output.plain_table(table, 30).splitlines() == [
        "Sizes",
        "",
        "name      first  second  why",
        "----  ---------  ------  -----",
        "a     1,234,567  -0.125  one",
        "                         two",
        "                         three",
        "                         four",
        "                         five",
    ]
    assert _output.plain_table(table, 22).splitlines() == [
        "Sizes",
        "",
        "name      first",
        "----  ---------",
        "a     1,234,567",
        "",
        "name  second  why",
        "----  ------  --------",
        "a     -0.125  one two",
        "              three",
        "              four",
        "              five",
    ]
