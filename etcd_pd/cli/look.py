"""``etcd-pd rooms`` and ``etcd-pd instances``: what etcd holds at this moment."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..config import AgentSettings, EtcdSettings
from .options import settings_options

if TYPE_CHECKING:
    from ..store.base import Store

_T = TypeVar("_T")


@dataclass(frozen=True)
class LookSettings:
    """Where to look, and how to show it."""

    etcd: EtcdSettings = field(default_factory=EtcdSettings)
    root: str = field(default=AgentSettings.root, metadata={"help": "key prefix of the cell"})
    output: str = field(default="table", metadata={"help": "for people, or for programs", "choices": ("table", "json")})


@click.command()
@settings_options("settings", LookSettings)
def rooms(settings: LookSettings) -> None:
    """Show the rooms in flight.

    Which rank holds each, under which lease, and how long that lease has left.

    \b
      etcd-pd rooms --etcd http://127.0.0.1:2379
      etcd-pd rooms --output json | jq '.rooms[] | select(.state == "failed")'
    """
    from .tables import room_table
    from .views import list_rooms

    _show(settings, lambda store: list_rooms(store, settings.root), room_table)


@click.command()
@settings_options("settings", LookSettings)
def instances(settings: LookSettings) -> None:
    """Show prefill ranks, decode instances and agents.

    \b
      etcd-pd instances --etcd http://127.0.0.1:2379
      etcd-pd instances --output json
    """
    from .tables import instance_tables
    from .views import list_instances

    _show(settings, lambda store: list_instances(store, settings.root), instance_tables)


def _show(
    settings: LookSettings, read: Callable[[Store], Awaitable[dict[str, Any]]], render: Callable[[dict[str, Any]], Any]
) -> None:
    from ..console import make_console
    from ..store.etcd import EtcdStore

    async def look() -> dict[str, Any]:
        async with EtcdStore(settings.etcd) as store:
            return await read(store)

    found = asyncio.run(look())
    if settings.output == "json":
        click.echo(json.dumps(found, indent=2))
    else:
        make_console().print(render(found))
