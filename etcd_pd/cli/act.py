"""``etcd-pd drain`` and ``etcd-pd fail``: what one does to a running cell."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import click

from ..client.drain import drain as drain_node
from ..core.keys import Keys, RankKey, RoomKey
from ..core.records import Compare, Delete, KeyValue, Put
from ..errors import ConfigError, StoreRejected
from ..wire.limits import MAX_PARALLEL, MAX_ROOM, check_seconds, check_text
from ..wire.values import FAILED, RoomValue
from .completion import complete_instance, complete_rank, complete_room
from .look import LookSettings
from .options import settings_options, socket_option

if TYPE_CHECKING:
    from ..store.admin import EtcdAdmin


@dataclass(frozen=True)
class DrainSettings:
    """Which node to drain, and how long that may take."""

    #: Where no socket is given, that of the prefill instance in the user's own stack is taken.
    seeks_local_cell: ClassVar[bool] = True

    socket_path: str = socket_option("the socket of the node's agent")
    drain_timeout_seconds: float = field(default=60.0, metadata={"help": "how long rooms may take to end"})

    def __post_init__(self) -> None:
        check_seconds("drain_timeout_seconds", self.drain_timeout_seconds, 0.1, 86400)


@click.command()
@settings_options("settings", DrainSettings)
def drain(settings: DrainSettings) -> None:
    """Take a node out of service.

    Its agent lets no new room in and shows its ranks as draining; the command ends when the last room has. Exit status
    1 where that does not happen in time. It cannot be taken back: restart the engines.

    \b
      etcd-pd drain --socket /run/etcd-pd/agent.sock
      etcd-pd drain                                     the prefill instance of the stack that runs here
      etcd-pd drain --drain-timeout-seconds 300 && systemctl stop my-engine
    """
    seconds = drain_node(settings.socket_path, settings.drain_timeout_seconds)
    click.echo(f"drained in {seconds:.1f} s")


@click.group()
def fail() -> None:
    """Fail a room or a rank by hand, for those who wait for it in vain.

    \b
      etcd-pd fail room 4611686018427387904 --reason "operator: its engine hangs"
      etcd-pd fail rank prefill-0 2
    """


@fail.command("room")
@click.argument("room", type=click.IntRange(0, MAX_ROOM), shell_complete=complete_room)
@settings_options("settings", LookSettings)
@click.option(
    "--instance",
    shell_complete=complete_instance,
    help="the prefill instance, where several hold a room of this number",
)
@click.option("--reason", default="failed by an operator", show_default=True, help="why, for decode")
def fail_room(settings: LookSettings, room: int, instance: str | None, reason: str) -> None:
    """Fail one room.

    Decode's wait for it ends with RoomFailed. It stays failed until its engine releases it or its lease ends. Needs
    credentials that may write rooms.

    \b
      etcd-pd fail room 4611686018427387904 --reason "operator: its engine hangs"
    """
    check_text("reason", reason)

    async def act(store: EtcdAdmin) -> Done:
        keys = Keys(settings.root)
        listing = await store.list(keys.rooms(instance or ""))
        found = [kv for kv in listing.kvs if isinstance(key := keys.parse(kv.key), RoomKey) and key.room == room]
        if not found:
            raise ConfigError("room", f"{room} has no key in {settings.root}; etcd-pd rooms lists those that have")
        if len(found) > 1:
            names = ", ".join(key.instance for kv in found if isinstance(key := keys.parse(kv.key), RoomKey))
            raise ConfigError("--instance", f"must say which: {names} all hold room {room}")
        return await _fail_room(store, found[0], reason)

    _do(settings, act)


async def _fail_room(store: EtcdAdmin, kv: KeyValue, reason: str) -> Done:
    value = RoomValue.from_json(kv.value)
    if value is None:
        raise ConfigError("room", "has a key that is not of this version")
    if value.state == FAILED:
        return Done(f"failed already: {value.reason}", kv.mod_revision, value.dp_rank, value.epoch)
    failed = RoomValue(value.dp_rank, value.epoch, FAILED, reason).to_json()
    # under its token, and on its own lease: what is somebody else's by now stays as it is
    done = await store.txn([Compare(kv.key, kv.create_revision)], [Put(kv.key, failed, None)])
    if not done.succeeded:
        raise StoreRejected("fail", "the room has ended meanwhile")
    revision = done.header.revision
    text = f"failed at revision {revision}; it was dp_rank {value.dp_rank}'s, in epoch {value.epoch}"
    return Done(text, revision, value.dp_rank, value.epoch)


@fail.command("rank")
@click.argument("instance", shell_complete=complete_instance)
@click.argument("dp_rank", type=click.IntRange(0, MAX_PARALLEL - 1), shell_complete=complete_rank)
@settings_options("settings", LookSettings)
@click.option("--yes", is_flag=True, help="do not ask")
def fail_rank(settings: LookSettings, instance: str, dp_rank: int, yes: bool) -> None:
    """End the epoch of one data-parallel rank.

    All its rooms are lost at once: whoever waits for them gets PrefillLost, and nothing that an old process of the
    rank does can bring them back. An engine that is alive after all comes back by itself, with a new epoch. Needs
    credentials that may write the instance.

    \b
      etcd-pd fail rank prefill-0 2
    """

    async def act(store: EtcdAdmin) -> Done:
        keys = Keys(settings.root)
        listing = await store.list(keys.prefill(instance) + b"/")
        ranks = [kv for kv in listing.kvs if isinstance(key := keys.parse(kv.key), RankKey) and key.rank.dp == dp_rank]
        if not ranks:
            raise ConfigError("rank", f"{instance} has no rank {dp_rank}; etcd-pd instances lists those that live")
        values = [RoomValue.from_json(kv.value) for kv in (await store.list(keys.rooms(instance))).kvs]
        lost = sum(value is not None and value.dp_rank == dp_rank for value in values)
        if not yes:
            question = f"{lost} rooms of dp_rank {dp_rank} of {instance} will be lost. Go on?"
            click.confirm(question, abort=True, err=True)
        compares = [Compare(kv.key, kv.create_revision) for kv in ranks]
        done = await store.txn(compares, [Delete(kv.key) for kv in ranks])
        if not done.succeeded:
            raise StoreRejected("fail", "the rank has changed meanwhile; look again")
        epoch = max(kv.create_revision for kv in ranks)
        revision = done.header.revision
        return Done(f"epoch {epoch} ended at revision {revision}, with {lost} rooms", revision, dp_rank, epoch)

    _do(settings, act)


class Done(NamedTuple):
    """What was done: in words, at which revision of etcd, and to which rank in which of its epochs."""

    text: str
    revision: int
    dp_rank: int
    epoch: int


def _do(settings: LookSettings, act: Callable[[EtcdAdmin], Awaitable[Done]]) -> None:
    """Do it, and say so."""
    from ..store.admin import EtcdAdmin

    async def run() -> Done:
        async with EtcdAdmin(settings.etcd) as store:
            return await act(store)

    done = asyncio.run(run())
    click.echo(json.dumps(done._asdict()) if settings.output == "json" else done.text)
