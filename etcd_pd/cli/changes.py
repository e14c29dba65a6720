"""What a change in etcd means, in words: for those who watch a cell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from ..config import bracketed
from ..core.keys import AgentKey, DecodeKey, Keys, PrefillKey, RankKey, RoomKey
from ..core.records import Event, KeyValue
from ..wire.values import DRAINING, ENDED, FAILED, InstanceInfo, RankEndpoint, RoomValue

if TYPE_CHECKING:
    from ..config import EtcdSettings
    from ..core.watch import Changes, Snapshot, WatchState


class Change(NamedTuple):
    """One thing that happened to a cell.

    Attributes:
        revision: etcd's revision of it.
        what: ``registered``, ``failed`` or ``gone`` of a room; ``up``, ``draining``, ``changed`` or ``gone`` of what
            else has a key; ``synced`` or ``stale`` of the watch itself.
        kind: ``room``, ``rank``, ``prefill``, ``decode``, ``agent`` or ``watch``.
        name: the instance or the agent.
        room: the room's number, None of anything else.
        dp_rank: its rank, or the rank that it is; None where there is none.
        epoch: the rank's epoch, 0 where there is none.
        text: what else there is to say.
    """

    revision: int
    what: str
    kind: str
    name: str
    room: int | None = None
    dp_rank: int | None = None
    epoch: int = 0
    text: str = ""

    def as_json(self) -> dict[str, Any]:
        """As an object; the room is text, as its 64 bits are more than the numbers of jq and JavaScript hold."""
        return {**self._asdict(), "room": None if self.room is None else str(self.room)}


class Chronicle:
    """Says what etcd's events mean. It remembers what stood under each key, since a deletion does not say."""

    def __init__(self, root: str) -> None:
        self._keys = Keys(root)
        self._known: dict[bytes, KeyValue] = {}

    def snapshot(self, revision: int, kvs: Sequence[KeyValue]) -> list[Change]:
        """The whole content: what differs from what was known happened meanwhile."""
        listed = {kv.key for kv in kvs}
        events = [Event(key, revision, None) for key in self._known if key not in listed]
        events += [Event(kv.key, kv.mod_revision, kv) for kv in kvs if self._known.get(kv.key) != kv]
        return self.describe(events)

    def describe(self, events: Sequence[Event]) -> list[Change]:
        """The changes that events mean, in the order of their revisions."""
        return [change for event in events for change in self._apply(event)]

    def _apply(self, event: Event) -> Iterator[Change]:
        before = self._known.get(event.key)
        if event.kv:
            self._known[event.key] = event.kv
        else:
            self._known.pop(event.key, None)
        if before and event.kv and before.create_revision != event.kv.create_revision:
            yield from self._tell(event.mod_revision, before, None)  # it went and came again while nobody looked
            before = None
        yield from self._tell(event.mod_revision, before, event.kv)

    def _tell(self, revision: int, before: KeyValue | None, now: KeyValue | None) -> Iterator[Change]:
        kv = now or before
        if kv is None:
            return
        what = "gone" if now is None else "changed" if before else "up"
        match self._keys.parse(kv.key):
            case RoomKey(instance, room):
                yield _room(revision, instance, room, kv, what)
            case RankKey(instance, rank):
                endpoint = RankEndpoint.from_json(rank, kv.value, kv.create_revision)
                if what != "gone" and endpoint and endpoint.state == DRAINING:
                    what = DRAINING
                text = f"{bracketed(endpoint.ip)}:{endpoint.port}" if endpoint else ""
                yield Change(revision, what, "rank", instance, None, rank.dp, kv.create_revision, text)
            case PrefillKey(instance):
                info = InstanceInfo.from_json(kv.value)
                if what == "changed" and info and info.state == ENDED:
                    what = ENDED
                yield Change(revision, what, "prefill", instance)
            case DecodeKey(instance):
                yield Change(revision, what, "decode", instance)
            case AgentKey(agent):
                yield Change(revision, what, "agent", agent)


def _room(revision: int, instance: str, room: int, kv: KeyValue, what: str) -> Change:
    value = RoomValue.from_json(kv.value)
    if value is None:
        return Change(revision, what, "room", instance, room, text="unreadable")
    failed = value.state == FAILED
    if what != "gone":
        what = FAILED if failed else "registered" if what == "up" else what
    text = value.reason if failed else f"lease {kv.lease:x}"
    return Change(revision, what, "room", instance, room, value.dp_rank, value.epoch, text)


@asynccontextmanager
async def follow(settings: EtcdSettings, root: str) -> AsyncIterator[asyncio.Queue[list[Change]]]:
    """Follow a cell over etcd's failures: first what is there, then what happens, with the watch's own states."""
    from ..agent.watcher import Watcher
    from ..config import AgentSettings
    from ..store.etcd import EtcdStore

    chronicle, changes_queue = Chronicle(root), asyncio.Queue[list[Change]]()

    def on_snapshot(snapshot: Snapshot) -> None:
        changes_queue.put_nowait(chronicle.snapshot(snapshot.revision, snapshot.kvs))

    def on_changes(changes: Changes) -> None:
        changes_queue.put_nowait(chronicle.describe(changes.events))

    def on_state(state: WatchState) -> None:
        changes_queue.put_nowait([Change(0, state.value, "watch", ",".join(settings.endpoints))])

    async with EtcdStore(settings) as store:
        silence = AgentSettings.watch_silence_seconds
        prefix = Keys(root).prefix
        watcher = Watcher(store, prefix, silence, on_snapshot=on_snapshot, on_changes=on_changes, on_state=on_state)
        await store.list(prefix)  # an etcd that is not there is said at once; later it is waited for
        running = asyncio.create_task(watcher.run())
        try:
            yield changes_queue
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
