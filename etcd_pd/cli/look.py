"""``etcd-pd status``, ``instances``, ``rooms`` and ``room``: what etcd holds at this moment."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import click

from ..config import AgentSettings, EtcdSettings
from ..core.keys import Keys, prefix_end
from ..errors import ConfigError, StoreRejected, StoreUnavailable
from ..wire.limits import MAX_PARALLEL, MAX_ROOM
from .completion import complete_instance, complete_rank, complete_room
from .from_agent import AgentCell, ask_agent, ask_memory
from .options import settings_options, socket_option
from .printable import printable
from .verdict import WRONG
from .views import ROOM_STATES, Source

if TYPE_CHECKING:
    from ..store.admin import EtcdAdmin


@dataclass(frozen=True)
class CellSettings:
    """Which cell, in which etcd."""

    #: Where no etcd is given, that of the user's own stack is taken.
    seeks_local_cell: ClassVar[bool] = True

    etcd: EtcdSettings = field(default_factory=EtcdSettings)
    root: str = field(default=AgentSettings.root, metadata={"help": "key prefix of the cell"})


@dataclass(frozen=True)
class LookSettings(CellSettings):
    """Where to look, and how to show it."""

    output: str = field(default="table", metadata={"help": "for people, or for programs", "choices": ("table", "json")})


@dataclass(frozen=True)
class NodeSettings(LookSettings):
    """Where to look, and this node's agent."""

    socket_path: str = socket_option()


#: Exit status where the command worked, and what it shows is wrong or stale.
NOT_WELL = 3


@click.command()
@settings_options("settings", NodeSettings)
def status(settings: NodeSettings) -> None:
    """Show etcd and the cell in one screen.

    Members of etcd with leader, version and size, alarms, leases; agents; prefill ranks with their epochs, states and
    rooms in flight; decode instances. Where etcd does not answer, what this node's agent knows. Exit status 3 where
    something is wrong, rather than degraded at most.

    \b
      etcd-pd status --etcd http://127.0.0.1:2379
      etcd-pd status --output json | jq '.etcd.members[] | select(.leader)'
    """
    from .tables import status_tables
    from .views import describe_cell

    memory = ask_memory(settings.socket_path, settings.root)
    found = _show(settings, lambda store: describe_cell(store, settings.etcd, settings.root, memory), status_tables)
    if any(problem["severity"] == WRONG for problem in found["problems"]):
        raise SystemExit(NOT_WELL)


@click.command()
@settings_options("settings", NodeSettings)
@click.option("--instance", default="", shell_complete=complete_instance, help="only this prefill instance's rooms")
@click.option(
    "--rank",
    type=click.IntRange(0, MAX_PARALLEL - 1),
    shell_complete=complete_rank,
    help="only rooms of this data-parallel rank",
)
@click.option("--state", type=click.Choice(ROOM_STATES), help="only rooms in this state")
@click.option(
    "--min-age",
    type=click.FloatRange(0),
    default=0.0,
    metavar="SECONDS",
    help="only rooms whose lease is at least this old; a room is younger by at most a sixteenth of the lease's TTL",
)
def rooms(settings: NodeSettings, instance: str, rank: int | None, state: str | None, min_age: float) -> None:
    """Show the rooms in flight.

    Which rank holds each, under which lease, and how long that lease has left. A room is assigned, failed by its
    prefill engine, lost with its rank, or unreadable.

    \b
      etcd-pd rooms --etcd http://127.0.0.1:2379
      etcd-pd rooms --instance prefill-0 --rank 2
      etcd-pd rooms --min-age 120 --output json | jq '.rooms[] | select(.state == "failed")'
    """
    from .tables import room_table
    from .views import list_rooms

    async def read(store: Source) -> dict[str, Any]:
        found = await list_rooms(store, settings.root, instance)
        found["rooms"] = [
            room
            for room in found["rooms"]
            if (rank is None or room["dp_rank"] == rank)
            and (state is None or room["state"] == state)
            and (not min_age or _age(room) >= min_age)
        ]
        return found

    _show(settings, read, room_table, needs_rooms=True)


def _age(room: dict[str, Any]) -> int:
    age: int | None = room["lease_age_seconds"]
    if age is None:
        raise ConfigError("--min-age", "needs etcd: an agent knows the age of no lease")
    return age


@click.command()
@click.argument("room", type=click.IntRange(0, MAX_ROOM), shell_complete=complete_room)
@settings_options("settings", NodeSettings)
def room(settings: NodeSettings, room: int) -> None:
    """Show the life of one room so far.

    When it was registered and last changed (as revisions of etcd), by which rank in which epoch, under which lease,
    and how long that has left. Exit status 1 where no such key exists: it was released, ended with its lease, or never
    registered.

    \b
      etcd-pd room 4611686018427387904 --etcd http://127.0.0.1:2379
    """
    from .tables import room_life
    from .views import find_room

    found = _show(settings, lambda store: find_room(store, settings.root, room), room_life, needs_rooms=True)
    if not found["lives"]:
        raise SystemExit(1)


@click.command()
@settings_options("settings", NodeSettings)
def instances(settings: NodeSettings) -> None:
    """Show prefill ranks, decode instances and agents.

    \b
      etcd-pd instances --etcd http://127.0.0.1:2379
      etcd-pd instances --output json
    """
    from .tables import instance_tables
    from .views import list_instances

    _show(settings, lambda store: list_instances(store, settings.root), instance_tables)


def _show(
    settings: NodeSettings,
    read: Callable[[Source], Coroutine[Any, Any, dict[str, Any]]],
    render: Callable[[dict[str, Any]], Any],
    *,
    needs_rooms: bool = False,
) -> dict[str, Any]:
    """Read, print, and return what was read; where that is what an agent knows, the command ends here."""
    from ..store.admin import EtcdAdmin

    async def look() -> tuple[dict[str, Any], list[str] | None]:
        async with EtcdAdmin(settings.etcd) as store:
            return await read(store), await _other_cells(store, settings.root)

    try:
        found, others = asyncio.run(look())
    except StoreUnavailable as exc:
        cell = _ask_agent(settings, exc, needs_rooms)
        found = {"stale": cell.as_json(str(exc)), **asyncio.run(read(cell))}
        _print(found, render, settings.output)
        raise SystemExit(NOT_WELL) from exc
    _print(found, render, settings.output)
    if others is not None:
        known = f"; etcd holds the cells {', '.join(others)}" if others else ", and no other cell in this etcd"
        click.echo(f"etcd-pd: nothing is under --root {settings.root}{known}", err=True)
    return found


def _print(found: dict[str, Any], render: Callable[[dict[str, Any]], Any], output: str) -> None:
    from .console import make_console
    from .tables import stale_line

    if output == "json":
        click.echo(json.dumps(found, indent=2))
        return
    console = make_console()
    if "stale" in found:
        console.print(stale_line(found["stale"]))
    console.print(render(found))


def _ask_agent(settings: NodeSettings, error: StoreUnavailable, needs_rooms: bool) -> AgentCell:
    """What this node's agent knows; the error again where there is none, or it does not know what is needed."""
    cell = ask_agent(settings.socket_path, settings.root)
    if cell is None:
        raise error
    if needs_rooms and not cell.follows_rooms:
        who = f"the agent on {printable(settings.socket_path)}"
        why = str(error).removeprefix(f"{error.op}: ")
        text = f"{why}; and {who} has no rooms: it serves prefill engines alone"
        raise StoreUnavailable(error.op, text) from error
    return cell


async def _other_cells(store: EtcdAdmin, root: str) -> list[str] | None:
    """The cells that there are where this one is not; None where it is, or these credentials may not look."""
    prefix = Keys(root).prefix
    if await store.first_key(prefix, prefix_end(prefix)):
        return None
    try:
        return await store.cells()
    except StoreRejected:
        return None
