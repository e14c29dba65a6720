"""``etcd-pd watch`` and ``etcd-pd top``: what happens in a cell while one looks."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from ..store.deadline import within
from ..wire.limits import MAX_ROOM
from .board import Board
from .changes import Change, follow
from .completion import complete_member, complete_room
from .look import LookSettings
from .options import settings_options
from .printable import printable
from .stopping import run_until_stopped

if TYPE_CHECKING:
    from rich.console import RenderableType

KINDS = ("room", "rank", "prefill", "decode", "agent", "watch")


@click.command()
@settings_options("settings", LookSettings)
@click.option("--instance", shell_complete=complete_member, help="only what concerns this instance or agent")
@click.option(
    "--room", type=click.IntRange(0, MAX_ROOM), shell_complete=complete_room, help="only what concerns this room"
)
@click.option("--kind", type=click.Choice(KINDS), multiple=True, help="only changes of this kind; may be repeated")
@click.option("--all", "everything", is_flag=True, help="begin with what is there already")
@click.option("--count", type=click.IntRange(0), default=0, help="end after so many lines; 0: at Ctrl-C")
def watch(
    settings: LookSettings,
    instance: str | None,
    room: int | None,
    kind: tuple[str, ...],
    everything: bool,
    count: int,
) -> None:
    """Show what happens, as it happens.

    A line for each room that is registered, failed or gone (released, or ended with its lease), and each rank, instance
    and agent that comes or goes. It goes on over etcd's failures, and says when it could not see. With
    --output json each line is an object.

    \b
      etcd-pd watch --etcd http://127.0.0.1:2379
      etcd-pd watch --kind rank --kind prefill
      etcd-pd watch --room 4611686018427387904
    """

    def wanted(change: Change) -> bool:
        return (
            (not kind or change.kind in kind)
            and (instance is None or change.name == instance)
            and (room is None or change.room == room)
        )

    run_until_stopped(_watch(settings, wanted, everything, count))


async def _watch(settings: LookSettings, wanted: Callable[[Change], bool], everything: bool, count: int) -> None:
    shown = 0
    async with follow(settings.etcd, settings.root) as queue:
        first = await queue.get()
        click.echo(f"watching {settings.root}: {len(first)} keys so far", err=True)
        changes = first if everything else []
        while True:
            for change in filter(wanted, changes):
                click.echo(_as_json(change) if settings.output == "json" else _as_line(change))
                shown += 1
                if shown == count:
                    return
            changes = await queue.get()


def _as_json(change: Change) -> str:
    return json.dumps(change.as_json())


def _as_line(change: Change) -> str:
    # wall time is for the reader alone: nothing is decided by it
    words = [f"{datetime.now():%H:%M:%S}", f"{change.revision:>8}", f"{change.what:<10}", f"{change.kind:<7}"]
    words.append(change.name if change.room is None else f"{change.name} {change.room}")
    if change.dp_rank is not None:
        words.append(f"dp_rank={change.dp_rank} epoch={change.epoch}")
    return printable(" ".join([*words, change.text]).rstrip())


@click.command()
@settings_options("settings", LookSettings)
@click.option("--interval", type=click.FloatRange(0.1), default=1.0, show_default=True, help="seconds between looks")
@click.option("--count", type=click.IntRange(0), default=0, help="end after so many looks; 0: at Ctrl-C")
def top(settings: LookSettings, interval: float, count: int) -> None:
    """Show how busy each prefill rank is.

    Rooms in flight, rooms registered a second, how long rooms are held from registration to release (median and 99th
    percentile of each rank's last rooms), and load relative to the busiest rank. All of it is what etcd shows; time
    is this command's own. With --output json each look is one line.

    \b
      etcd-pd top --etcd http://127.0.0.1:2379
      etcd-pd top --count 1 --interval 10 --output json
    """
    run_until_stopped(_top(settings, interval, count))


async def _top(settings: LookSettings, interval: float, count: int) -> None:
    from rich.live import Live

    from .console import make_console

    console = make_console()
    board, looks = Board(), 0
    live = Live(console=console, auto_refresh=False) if settings.output == "table" and console.is_terminal else None
    async with follow(settings.etcd, settings.root) as queue:
        board.apply(await queue.get(), time.monotonic(), counts=False)
        board.rows(time.monotonic())  # rates count from here
        with live or nullcontext():
            while not count or looks < count:
                await _listen(board, queue, interval)
                looks += 1
                rows = board.rows(time.monotonic())
                if settings.output == "json":
                    click.echo(json.dumps({"root": settings.root, "watch": board.watch, "ranks": rows}))
                elif live:
                    live.update(_table(settings.root, board.watch, rows), refresh=True)
                else:
                    console.print(_table(settings.root, board.watch, rows))


async def _listen(board: Board, queue: asyncio.Queue[list[Change]], seconds: float) -> None:
    """Give the board what happens for so long."""
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0:
        with suppress(asyncio.TimeoutError):
            board.apply(await within(queue.get(), left), time.monotonic())


def _table(root: str, watch: str, rows: list[dict[str, Any]]) -> RenderableType:
    from .console import plain_table

    columns = ["instance", "dp_rank:", "state", "rooms:", "load", "rooms/s:", "held p50:", "held p99:", "failed:"]
    table = plain_table(f"{root}: {sum(row['rooms'] for row in rows)} rooms in flight, watch {watch}", *columns)
    for row in rows:
        bar = "\u2588" * round(10 * row["load"])
        held = (_seconds(row["held_seconds_p50"]), _seconds(row["held_seconds_p99"]))
        numbers = (str(row["rooms"]), bar, f"{row['rooms_per_second']:.1f}", *held, str(row["failed"]))
        table.add_row(row["instance"], str(row["dp_rank"]), row["state"], *numbers)
    return table


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value * 1000:.1f} ms" if value < 1 else f"{value:.1f} s"
