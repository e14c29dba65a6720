"""How etcd-pd writes to a person: one console, one kind of table."""

from __future__ import annotations

import sys
from typing import Any

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from .printable import printable

#: Width of what is written to a file or a pipe: tables there shall not be cut to a terminal's usual 80 columns.
_WIDTH = 160
#: Columns whose cells lose their middle where there is no room: the ends of names tell them apart.
_SHORTENED = ("instance", "id", "member", "address", "lease:", "session lease:")
#: Columns that are narrowed last: what stands in them is copied, and neither a port, a room nor a heading must break.
_WHOLE = ("address", "room:", "policy", "revision:", "resolved:", "TTFT:", "tokens:")
#: Below this width columns stand closer together.
_NARROW = 100


def make_console() -> Console:
    """A console on stdout. What it prints is text and never markup: much of it is what others wrote to etcd."""
    width = None if sys.stdout.isatty() else _WIDTH
    return Console(width=width, highlight=False, soft_wrap=False, markup=False, emoji=False)


class Name:
    """A text that keeps its start and its end, however little room there is."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, max(1, cell_len(self._text)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(shorten(self._text, options.max_width), no_wrap=True)


def shorten(text: str, width: int) -> str:
    """The text in at most so many columns: where it is longer, an ellipsis stands for its middle."""
    if cell_len(text) <= width:
        return text
    tail = width // 2
    end = set_cell_size(text[::-1], tail)[::-1]
    return f"{set_cell_size(text, width - tail - 1)}…{end}"


class PlainTable(Table):
    """A table of text: what others wrote in it can neither colour nor move anything."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if options.max_width < _NARROW:
            self.padding = (0, 1, 0, 0)
        yield from super().__rich_console__(console, options)

    def add_row(self, *cells: Any, **options: Any) -> None:
        """One row; cells of text are made printable."""
        headings = [*self._headings, *[""] * len(cells)]
        super().add_row(*(_cell(*pair) for pair in zip(headings, cells, strict=False)), **options)

    def use_columns(self, *headings: str) -> None:
        """The columns; those ending in a colon are numbers, set to the right."""
        self._headings = headings
        for heading in headings:
            justify: Any = "right" if heading.endswith(":") else "left"
            self.add_column(heading.rstrip(":"), justify=justify, overflow="fold", no_wrap=heading in _WHOLE)


def _cell(heading: str, cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    return Name(printable(cell)) if heading in _SHORTENED else printable(cell)


def plain_table(title: str, *columns: str) -> Table:
    """A table without a frame; columns ending in a colon are numbers, set to the right."""
    heading = printable(title)
    table = PlainTable(title=heading, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.min_width = len(heading)  # else a title is folded at the width of its columns
    table.use_columns(*columns)
    return table
