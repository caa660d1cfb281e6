import json
import re

import pytest

from optax_lamblion.cli import _output


@pytest.fixture
def table():
    table = _output.Table("Sizes [of] things", ["name", "bytes", "why"], left=["why"])
    table.add("a", "10", "small")
    table.add("longer", "1,000", "[b]big[/b]", dimmed=True)
    return table


def test_tables_are_aligned(table):
    assert _output.as_text(table).splitlines() == [
        "Sizes [of] things",
        "",
        "name    bytes  why",
        "------- ------ ----------",
        "a          10  small",
        "longer  1,000  [b]big[/b]",
    ]


def test_pipes_get_plain_text(table, capsys):
    _output.print_table(table)
    assert capsys.readouterr().out == _output.as_text(table) + "\n"


def test_terminals_get_styled_text_with_the_same_words(table, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    _output.print_table(table)
    out = capsys.readouterr().out
    assert "\x1b[" in out
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
    assert _output.as_text(table, 36).splitlines() == [
        "Sizes",
        "",
        "name      first  second  why",
        "----- ---------- ------- -----------",
        "a     1,234,567  -0.125  one two",
        "                         three four",
        "                         five",
    ]
    assert _output.as_text(table, 22).splitlines() == [
        "Sizes",
        "",
        "name      first",
        "----- ---------",
        "a     1,234,567",
        "",
        "name  second  why",
        "----- ------- --------",
        "a     -0.125  one two",
        "              three",
        "              four",
        "              five",
    ]


@pytest.mark.parametrize("styled", [False, True])
@pytest.mark.parametrize("width", [60, 80, 100])
def test_every_digit_is_there_at_any_width(width, styled):
    names = [f"column {i}" for i in range(12)]
    table = _output.Table("Numbers", ["name", *names, "why"], left=["why"])
    cells = [f"{10**i:,}" for i in range(12)]
    table.add("paged_adamw32bit", *cells, "some words of " + "why " * 30)
    text = re.sub(r"\x1b\[[0-9;]*m", "", _output.as_text(table, width, styled=styled))
    assert max(map(len, text.splitlines())) <= width
    shown = [x for line in text.splitlines() if "paged" in line for x in line.split()[1:]]
    assert shown[: len(cells)] == cells
