"""How etcd-pd writes to a person: one console, one kind of table."""

from __future__ import annotations

import sys

from rich import box
from rich.console import Console
from rich.table import Table

#: Width of what is written to a file or a pipe: tables there shall not be cut to a terminal's usual 80 columns.
_WIDTH = 160


def make_console() -> Console:
    """A console on stdout."""
    return Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False, soft_wrap=False)


def plain_table(title: str, *columns: str) -> Table:
    """A table without a frame; columns ending in a colon are numbers, set to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column.rstrip(":"), justify="right" if column.endswith(":") else "left", overflow="fold")
    return table
