"""How commands answer: a table for people, JSON for programs.

On a terminal, tables use rich if it is installed. It is an extra, and files and pipes are better
served without its frames, so there is a plain form as well.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import sys
from collections.abc import Sequence
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
        self.rows.append(cells)

    def is_left(self, index: int) -> bool:
        """Whether the cells of column `index` are aligned left."""
        return index == 0 or self.columns[index] in self.left


def print_table(table: Table) -> None:
    """Prints a table to standard output."""
    if sys.stdout.isatty() and importlib.util.find_spec("rich"):
        _print_rich(table)
    else:
        print(plain_table(table))


def print_json(data: Any) -> None:
    """Prints `data` as JSON, and nothing else, to standard output."""
    print(to_json(data))


def to_json(data: Any) -> str:
    """Indented JSON. Numbers that JSON lacks (NaN and infinities) become null."""
    return json.dumps(_finite(data), indent=2, allow_nan=False)


def plain_table(table: Table) -> str:
    """A table as lines of aligned text."""
    lines = [list(table.columns), *map(list, table.rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]
    lines.insert(1, ["-" * width for width in widths])

    def aligned(line):
        cells = (
            cell.ljust(width) if table.is_left(i) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    return "\n".join([table.title, "", *map(aligned, lines), ""])


def _print_rich(table: Table) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    view = RichTable(box=box.SIMPLE_HEAD)
    for i, name in enumerate(table.columns):
        view.add_column(name, justify="left" if table.is_left(i) else "right", no_wrap=i == 0)
    for i, row in enumerate(table.rows):
        view.add_row(*map(Text, row), style="dim" if i in table.dimmed else None)
    console = Console(highlight=False)
    # Not the table's own title, which rich would wrap to the width of the columns.
    console.print(table.title, style="bold", markup=False)
    console.print(view)


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data
