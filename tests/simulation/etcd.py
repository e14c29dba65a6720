"""etcd's model, as asynchronous as the real one: answers take time or get lost, watches run behind or ahead of them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from etcd_pd.core.keys import Keys, RankKey, RoomKey
from etcd_pd.core.records import Condition, Event as Change, KeyValue, LeaseGrant, Operation, Put, TxnResult
from etcd_pd.errors import StoreBusy, StoreTimeout, StoreUnavailable
from etcd_pd.wire.values import RoomValue
from tests.chaos.epochs import Epochs
from tests.chaos.history import Event
from tests.support.memory_etcd import Lease, MemoryEtcd
from tests.support.memory_store import MemoryStore, MemoryWatch

from .loop import AWAKE, VirtualLoop

T = TypeVar("T")

#: How long half of a call takes, and how long after a write a watch is sent it, seconds.
CALL, WATCH = (2e-4, 3e-3), (1e-4, 3e-3)
#: How much later than its TTL a lease ends, seconds: until then writes under it are acknowledged. And how long a
#: keepalive of such a lease waits to be notified. Both as measured on etcd 3.5.1 and 3.7.3.
ZOMBIE, LATE_KEEPALIVE = (0.15, 0.3), 0.5
#: The agent's own request timeout: what a frozen etcd costs a caller, seconds.
REQUEST_SECONDS = 1.5


class Etcd(MemoryEtcd):
    """The content. It records what happens to ranks and rooms, as the chaos suite's witness does.

    Args:
        loop: the clock.
        draw: where delays come from.
        record: takes the history's events.
        keys: the cell's layout.
        processes: of each DP rank, which lives while all of them do.

    Attributes:
        frozen_until, held_until, unknown_until: no answers; no watch messages; answers get lost; until then.
        full_until: nothing is written any more that needs space, until then.
        busy_until: nothing is written any more, until then: its log is too far ahead of what it has applied.
        calls: so far.
        begun_at: the revision that the present history began with: 0, or what a backup brought back.
    """

    def __init__(
        self, loop: VirtualLoop, draw: random.Random, record: Callable[[Event], None], keys: Keys, processes: int
    ) -> None:
        super().__init__(loop.time)
        self._processes, self._epochs = processes, Epochs(processes)
        self.loop, self.draw, self._record, self._layout = loop, draw, record, keys
        self.frozen_until = self.held_until = self.unknown_until = 0.0
        self.full_until = self.busy_until = 0.0
        self.calls = self.begun_at = 0
        self.back_up()
        self._ends: dict[int, float] = {}  # when overdue leases end
        self.stores: list[Store] = []

    def txn(self, compares: Sequence[Condition], operations: Sequence[Operation]) -> TxnResult:
        """As etcd, whose database may be full: deletions alone are taken then."""
        if operations:
            self._need_time("txn")
        if any(isinstance(operation, Put) for operation in operations):
            self._need_space("txn")
        return super().txn(compares, operations)

    def grant(self, ttl: int) -> LeaseGrant:
        """As etcd: a lease needs space, too."""
        self._need_time("grant")
        self._need_space("grant")
        return super().grant(ttl)

    def _need_time(self, op: str) -> None:
        if self.loop.time() < self.busy_until:
            raise StoreBusy(op, "too many requests")

    def _need_space(self, op: str) -> None:
        if self.loop.time() < self.full_until:
            raise StoreBusy(op, "mvcc: database space exceeded")

    def expire(self) -> None:
        """Revoke what is overdue, some time after its TTL."""
        now = self.loop.time()
        for lease_id, lease in list(self._leases.items()):
            if lease.deadline <= now and lease_id not in self._ends:
                self._ends[lease_id] = lease.deadline + self.draw.uniform(*ZOMBIE)
        for lease_id in [id for id, end in self._ends.items() if end <= now]:
            del self._ends[lease_id]
            if lease_id in self._leases:
                self.revoke(lease_id)

    def is_zombie(self, lease_id: int) -> bool:
        """Whether a lease's TTL is over, and it stands all the same."""
        return lease_id in self._leases and self._leases[lease_id].deadline <= self.loop.time()

    async def run(self) -> None:
        """End leases in time, for ever."""
        while True:
            await asyncio.sleep(0.05)
            before = self.revision
            self.expire()
            if self.revision != before:
                self.publish()

    def end_lease(self, lease_id: int) -> None:
        """Revoke a lease by hand."""
        if lease_id in self._leases:
            self.revoke(lease_id)
            self.publish()

    def change_leader(self) -> None:
        """Another leader begins every lease's TTL anew."""
        for lease_id, lease in self._leases.items():
            if lease_id not in self._ends:
                lease.deadline = self.loop.time() + lease.ttl

    def forget_history(self) -> None:
        """Compact all, and end every watch: whoever has not heard of something by now never will."""
        self.compact()
        for store in self.stores:
            store.drop_watches()

    def back_up(self) -> None:
        """Keep what is there: the revision, the keys, and the TTLs of leases."""
        ttls = {lease_id: lease.ttl for lease_id, lease in self._leases.items()}
        self._backup = self.revision, dict(self.keys), ttls

    def restore(self) -> None:
        """Begin another history, of another cluster id, with the last backup."""
        now = self.loop.time()
        for (instance, dp_rank), epoch in self._epochs.live().items():
            data = {"instance": instance, "dp_rank": dp_rank, "epoch": epoch, "revision": self.revision, "alive": False}
            self._record(Event(now, "etcd", "rank", data))
        self._record(Event(now, "etcd", "void", {}))
        self._epochs = Epochs(self._processes)
        self.revision, self.keys, ttls = self._backup[0], dict(self._backup[1]), self._backup[2]
        self.begun_at, self.cluster_id = self.revision, self.cluster_id + 1
        self.compacted = min(self.compacted, self.revision)
        self.history = [event for event in self.history if event.mod_revision <= self.revision]
        self._ends.clear()
        self._leases = {lease_id: Lease(ttl, now + ttl) for lease_id, ttl in ttls.items()}
        for kv in self.keys.values():
            if kv.lease:
                self._leases[kv.lease].keys.add(kv.key)
            self._say(kv, kv.mod_revision, alive=True)
        for store in self.stores:
            store.drop_watches()

    def publish(self) -> None:
        """Let every store's watches have what happened, each some time later."""
        for store in self.stores:
            self.loop.call_later(self.draw.uniform(*WATCH), store.publish, context=AWAKE)

    def _apply(self, operation: Operation) -> None:
        before = self.keys.get(operation.key)
        super()._apply(operation)
        after = self.keys.get(operation.key)
        if after is not None and (before is None or before.value != after.value):
            self._say(after, after.mod_revision, alive=True)

    def _delete(self, key: bytes) -> None:
        before = self.keys.get(key)
        super()._delete(key)
        if before is not None:
            self._say(before, self.revision, alive=False)

    def _say(self, kv: KeyValue, revision: int, *, alive: bool) -> None:
        key = self._layout.parse(kv.key)
        data: dict[str, object] = {"revision": revision, "alive": alive}
        if isinstance(key, RoomKey):
            value = RoomValue.from_json(kv.value)
            data |= {"instance": key.instance, "room": key.room, "token": kv.create_revision}
            data |= {"epoch": value.epoch, "state": value.state, "dp_rank": value.dp_rank} if value else {}
            self._record(Event(self.loop.time(), "etcd", "room", data))
        elif isinstance(key, RankKey):
            data |= {"instance": key.instance, "dp_rank": key.rank.dp}
            created = kv.create_revision if alive else 0
            for epoch, lives in self._epochs.change(key.instance, key.rank.dp, kv.key, created):
                self._record(Event(self.loop.time(), "etcd", "rank", {**data, "epoch": epoch, "alive": lives}))


class Store(MemoryStore):
    """One agent's connection to it."""

    def __init__(self, etcd: Etcd) -> None:
        super().__init__(etcd)
        self._sim = etcd
        self._dead = False
        etcd.stores.append(self)

    def die(self) -> None:
        """Its agent's process is gone: nothing that it asked for is answered."""
        self._dead = True
        self._sim.stores.remove(self)
        self.drop_watches()

    def leave(self) -> None:
        """Its agent has ended."""
        self._sim.stores.remove(self)

    def publish(self) -> None:
        """Send watches what happened since the last time, unless etcd is frozen or its watches are held up."""
        wait = max(self._sim.frozen_until, self._sim.held_until) - self._sim.loop.time()
        if wait > 0:
            self._sim.loop.call_later(wait, self.publish, context=AWAKE)
        else:
            super().publish()

    async def keep_alive(self, lease_id: int) -> int:
        """As etcd: one whose TTL is over is not renewed, and that takes a while to be said."""
        if self._sim.is_zombie(lease_id):
            await asyncio.sleep(LATE_KEEPALIVE)
            return 0
        return await super().keep_alive(lease_id)

    def _make_watch(self, prefix: bytes, start_revision: int, end: bytes) -> MemoryWatch:
        return Watch(self, prefix, start_revision, end, 1 + self._sim.draw.randrange(5))

    async def _do(self, op: str, act: Callable[[], T], adds: bool = False) -> T:
        """etcd does its part also while the agent that asked sleeps."""
        self._sim.calls += 1
        return await self._sim.loop.create_task(self._serve(op, act), context=AWAKE.copy())

    async def _serve(self, op: str, act: Callable[[], T]) -> T:
        etcd = self._sim
        await asyncio.sleep(etcd.draw.uniform(*CALL))
        frozen = etcd.frozen_until - etcd.loop.time()
        if frozen > REQUEST_SECONDS:
            await asyncio.sleep(REQUEST_SECONDS)
            raise StoreTimeout(op, "frozen")
        if frozen > 0:
            await asyncio.sleep(frozen)
        luck = etcd.draw.random() if etcd.loop.time() < etcd.unknown_until else 1.0
        if self._dead or luck < 0.15:
            raise StoreUnavailable(op, "lost on its way")
        try:
            result = act()
        finally:
            etcd.publish()
        if luck < 0.3:
            raise StoreUnavailable(op, "done, and its answer lost")
        await asyncio.sleep(etcd.draw.uniform(*CALL))
        if self._dead:
            raise StoreUnavailable(op, "dead")
        return result


class Watch(MemoryWatch):
    """Sends several revisions in one message, which is cut into fragments anywhere; says nothing while etcd is away."""

    def request_progress(self) -> None:
        """Answered later, as everything is."""
        etcd: Any = self._store.etcd
        now = etcd.loop.time()
        at = max(etcd.frozen_until, now) + etcd.draw.uniform(*WATCH)
        etcd.loop.call_at(at, super().request_progress, context=AWAKE)

    def _messages(self, revisions: list[list[Change]]) -> Iterable[list[Change]]:
        together = [event for revision in revisions for event in revision]
        return [together] if together else []
