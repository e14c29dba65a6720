"""The cell on this machine as the default of the commands that look into one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from ..errors import ConfigError
from ..reference.local.local_cell import LocalCell, find_local_cell


def fill_in(values: dict[str, Any], given: Callable[[str], bool]) -> LocalCell | None:
    """Put the addresses of the user's own cell where nothing was given; the cell that was found.

    Where an etcd was given, or to a command that asks only an agent its socket, none is looked for.
    """
    if given("etcd" if "etcd" in values else "socket"):
        return None
    try:
        cell = find_local_cell()
    except (OSError, ConfigError) as error:
        click.echo(f"etcd-pd: no local cell is looked for: {error}", err=True)
        return None
    if cell is None or not cell.lives or not cell.etcd:
        return cell
    sockets = tuple(cell.sockets.values())
    takes_all = isinstance(values.get("socket"), tuple)
    socket = sockets if takes_all else next(iter(sockets), None)
    found: dict[str, Any] = {"etcd": cell.etcd, "root": cell.root, "socket": socket}
    values.update({name: value for name, value in found.items() if value and name in values and not given(name)})
    return cell


def announce(cell: LocalCell | None, values: dict[str, Any]) -> None:
    """Say on stderr where a command looks, or what it asks, and why."""
    if cell is None:
        return
    if not cell.lives:
        click.echo(f"etcd-pd: {cell} has ended and left its file behind; looking where the settings say", err=True)
    elif not cell.etcd:
        click.echo(f"etcd-pd: {cell} is still starting; looking where the settings say", err=True)
    else:
        where = f"looking at its etcd, {','.join(cell.etcd)}" if "etcd" in values else f"asking {values['socket']}"
        click.echo(f"etcd-pd: {cell} runs here, so {where}", err=True)
