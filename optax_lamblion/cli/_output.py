"""How commands answer: a table for people, JSON for programs.

Rich draws the tables: with colours on a terminal, as plain text in a file or a pipe. A table that
is too wide is printed in parts, each with the first column, so that no digit is cut off.

What a file holds is printed through `printable`: a name in it may be a command to the terminal.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any

_LONGEST = 2000
_GAP = 2


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

    def is_words(self, i: int) -> bool:
        """Whether column `i` may be wrapped."""
        return i > 0 and self.columns[i] in self.left

    def width(self, i: int) -> int:
        """Characters that column `i` needs: whole numbers, or the longest of its words."""
        cells = [row[i] for row in [self.columns, *self.rows]]
        return max(len(x) for cell in cells for x in (cell.split() if self.is_words(i) else [cell]))


def columns() -> int:
    """How wide text may be: what a terminal has, or 100 characters elsewhere."""
    return shutil.get_terminal_size((100, 24)).columns if _has_width() else 100


def printable(text: str) -> str:
    """A text in one line that no terminal takes for a command, and that has an end."""
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]} ... ({len(text) - _LONGEST:,} characters more)"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_table(table: Table) -> None:
    """Prints a table to standard output."""
    # Not by rich's own console: it would exit by itself if nobody reads.
    print(as_text(table, columns() if _has_width() else None, styled=sys.stdout.isatty()))


def print_json(data: Any) -> None:
    """Prints `data` as JSON, and nothing else, to standard output."""
    print(to_json(data))


def to_json(data: Any) -> str:
    """Indented JSON. Numbers that JSON lacks (NaN and infinities) become null."""
    return json.dumps(_finite(data), indent=2, allow_nan=False)


def as_text(table: Table, width: int | None = None, *, styled: bool = False) -> str:
    """A table as lines of aligned text, no wider than `width` if numbers and words permit it."""
    from rich import box
    from rich import table as tables
    from rich.console import Console
    from rich.text import Text

    least = [table.width(i) for i in range(len(table.columns))]
    file = io.StringIO()
    console = Console(
        file=file,
        force_terminal=styled,
        width=width or 10**5,
        highlight=False,
        legacy_windows=False,
    )
    # Rich would wrap the title to the width of the columns if it were the table's own.
    console.print(Text(table.title, style="bold"), overflow="ignore", no_wrap=True, crop=False)
    rule = "─" if styled else "-"
    for part in _parts(least, width):
        view = tables.Table(
            # Nothing but a rule below the header.
            box=box.Box(f"    \n    \n {rule}  \n" + 5 * "    \n"),
            show_edge=False,
            pad_edge=False,
            padding=(0, _GAP - 1, 0, 0),
        )
        for i in part:
            view.add_column(
                table.columns[i],
                justify="left" if i == 0 or table.is_words(i) else "right",
                no_wrap=not table.is_words(i),
                min_width=least[i],
            )
        for k, row in enumerate(table.rows):
            view.add_row(*(Text(row[i]) for i in part), style="dim" if k in table.dimmed else None)
        console.print()
        console.print(view, crop=False)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _parts(least: Sequence[int], width: int | None) -> Iterator[list[int]]:
    """The columns of each part of a table whose columns need that many characters."""
    part, used = [0], least[0]
    for i, needs in enumerate(least[1:], 1):
        if width is not None and used + _GAP + needs > width and len(part) > 1:
            yield part
            part, used = [0], least[0]
        part.append(i)
        used += _GAP + needs
    yield part


def _has_width() -> bool:
    """Whether lines have an end: on a terminal, or where COLUMNS says so."""
    return sys.stdout.isatty() or "COLUMNS" in os.environ


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data
