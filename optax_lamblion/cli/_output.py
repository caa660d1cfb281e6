"""How commands answer: a table for people, JSON for programs.

On a terminal, tables use rich if it is installed. It is an extra, and files and pipes are better
served without its frames, so there is a plain form as well. A table that is too wide for a terminal
is printed in parts, each with the first column, so that no digit is cut off.

What a file holds is printed through `printable`: a name in it may be a command to the terminal.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import math
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any


@dataclasses.dataclass
class Table:
    """Rows of text under a title. The first column is aligned left, the others right.

    `left` names further columns that hold words, not numbers. `dimmed` are the indices of rows
    that are there for reference.
    """

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = dataclasses.field(default_factory=list)
    left: Sequence[str] = ()
    dimmed: set[int] = dataclasses.field(default_factory=set)

    def add(self, *cells: str, dimmed: bool = False) -> None:
        """Appends a row."""
        if dimmed:
            self.dimmed.add(len(self.rows))
        self.rows.append([printable(cell) for cell in cells])

    def is_left(self, index: int) -> bool:
        """Whether the cells of column `index` are aligned left."""
        return index == 0 or self.columns[index] in self.left


def columns() -> int:
    """How wide text may be: 100 characters, or what a terminal has."""
    return shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else 100


def printable(text: str) -> str:
    """A text in one line that no terminal takes for a command, and that has an end."""
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]} ... ({len(text) - _LONGEST:,} characters more)"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


_LONGEST = 2000


def print_table(table: Table) -> None:
    """Prints a table to standard output."""
    if not sys.stdout.isatty():
        print(plain_table(table))
    elif importlib.util.find_spec("rich"):
        _print_rich(table, columns())
    else:
        print(plain_table(table, columns()))


def print_json(data: Any) -> None:
    """Prints `data` as JSON, and nothing else, to standard output."""
    print(to_json(data))


def to_json(data: Any) -> str:
    """Indented JSON. Numbers that JSON lacks (NaN and infinities) become null."""
    return json.dumps(_finite(data), indent=2, allow_nan=False)


def plain_table(table: Table, width: int | None = None) -> str:
    """A table as lines of aligned text, in parts where there is not so much width."""
    lines = [table.title, ""]
    for part in _parts(table, width, gap=2, edges=0):
        widths = [_natural_width(table, i) for i in part]
        words = [k for k, i in enumerate(part) if _is_words(table, i)]
        excess = 0 if width is None else sum(widths) + 2 * (len(part) - 1) - width
        if words and excess > 0:
            widths[words[-1]] -= excess
        rules = dict(zip(part, ["-" * n for n in widths], strict=True))
        for row in [table.columns, rules, *table.rows]:
            lines += _aligned(table, part, [row[i] for i in part], widths)
        lines.append("")
    return "\n".join(lines)


def _aligned(table: Table, part: Sequence[int], row: Sequence[str], widths: Sequence[int]):
    """The lines of a row, of which words may need several."""
    cells = [
        textwrap.wrap(cell, n) if _is_words(table, i) else [cell]
        for i, cell, n in zip(part, row, widths, strict=True)
    ]
    for line in itertools.zip_longest(*cells, fillvalue=""):
        aligned = (
            cell.ljust(n) if table.is_left(i) else cell.rjust(n)
            for i, cell, n in zip(part, line, widths, strict=True)
        )
        yield "  ".join(aligned).rstrip()


def _parts(table: Table, width: int | None, gap: int, edges: int) -> Iterator[list[int]]:
    """The columns of each part of a table that is to be no wider than that.

    Args:
      table: The table.
      width: Of the terminal.
      gap: What is between two columns.
      edges: What is before the first and after the last.
    """
    part, used = [0], edges + _natural_width(table, 0)
    for i in range(1, len(table.columns)):
        needs = gap + _least_width(table, i)
        if width is not None and used + needs > width and len(part) > 1:
            yield part
            part, used = [0], edges + _natural_width(table, 0)
        part.append(i)
        used += needs
    yield part


def _natural_width(table: Table, i: int) -> int:
    return max(len(row[i]) for row in [table.columns, *table.rows])


def _least_width(table: Table, i: int) -> int:
    """How wide a column has to be: whole numbers, or words."""
    if not _is_words(table, i):
        return _natural_width(table, i)
    return max(len(word) for row in [table.columns, *table.rows] for word in [*row[i].split(), ""])


def _is_words(table: Table, i: int) -> bool:
    """Whether a column may be wrapped."""
    return i > 0 and table.is_left(i)


def _print_rich(table: Table, width: int) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(highlight=False, width=width)
    # Not the table's own title, which rich would wrap to the width of the columns.
    console.print(table.title, style="bold", markup=False)
    for part in _parts(table, width, gap=3, edges=4):
        view = RichTable(box=box.SIMPLE_HEAD)
        for i in part:
            justify = "left" if table.is_left(i) else "right"
            view.add_column(table.columns[i], justify=justify, no_wrap=not _is_words(table, i))
        for k, row in enumerate(table.rows):
            style = "dim" if k in table.dimmed else None
            view.add_row(*(Text(row[i]) for i in part), style=style)
        console.print(view)


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data
