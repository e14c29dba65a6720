"""How etcd-pd writes to a person: one console, one kind of table."""

from __future__ import annotations

import sys
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from .printable import printable

#: Width of what is written to a file or a pipe: tables there shall not be cut to a terminal's usual 80 columns.
_WIDTH = 160


def make_console() -> Console:
    """A console on stdout. What it prints is text and never markup: much of it is what others wrote to etcd."""
    width = None if sys.stdout.isatty() else _WIDTH
    return Console(width=width, highlight=False, soft_wrap=False, markup=False, emoji=False)


class PlainTable(Table):
    """A table of text: what others wrote in it can neither colour nor move anything."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        """One row; cells of text are made printable."""
        super().add_row(*(printable(cell) if isinstance(cell, str) else cell for cell in cells), **options)


def plain_table(title: str, *columns: str) -> Table:
    """A table without a frame; columns ending in a colon are numbers, set to the right."""
    table = PlainTable(title=printable(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column.rstrip(":"), justify="right" if column.endswith(":") else "left", overflow="fold")
    return table
