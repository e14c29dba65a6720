"""The store port over :class:`~tests.support.memory_etcd.MemoryEtcd`, with faults that a test asks for.

tests/contract holds it to the same cases as real etcd.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import TypeVar

from etcd_pd.core.records import (
    Condition,
    Event,
    Header,
    LeaseGrant,
    LeaseTimes,
    Listing,
    MemberStatus,
    Operation,
    Put,
    TxnResult,
    WatchResponse,
)
from etcd_pd.errors import LeaseNotFound, StoreError, StoreUnavailable
from etcd_pd.store.base import StoreCounts
from tests.support.memory_etcd import MemoryEtcd

T = TypeVar("T")


class MemoryStore:
    """A :class:`~etcd_pd.store.base.Store` in memory.

    Args:
        etcd: the content; two stores may share it.
        fragment: most events in one watch message; 0: any number.

    Attributes:
        calls: every call by name, in order.
        raised: alarms, as member id and name.
        refuse: gives the error for a call of this name, which adds to the database or does not; None: it is taken.
        version, authenticates: etcd's version, and whether users and roles hold.
    """

    def __init__(self, etcd: MemoryEtcd | None = None, fragment: int = 0) -> None:
        self.etcd = etcd or MemoryEtcd()
        self.calls: list[str] = []
        self.counts, self.endpoint = StoreCounts(), "memory"
        self.raised: list[tuple[int, str]] = []
        self.version, self.authenticates = "3.6.16", False
        self._fragment = fragment
        self.refuse: Callable[[str, bool], StoreError | None] | None = None
        self._faults: dict[str, deque[tuple[StoreError, bool]]] = defaultdict(deque)
        self._held: dict[str, asyncio.Event] = {}
        self._watches: list[MemoryWatch] = []

    # --- what a test does to it

    def fail(self, op: str, error: StoreError, *, done: bool = False) -> None:
        """The next call of `op` raises; `done`: it happens all the same."""
        self._faults[op].append((error, done))

    def hold(self, op: str) -> asyncio.Event:
        """Calls of `op` wait for the event to be set, before they happen."""
        return self._held.setdefault(op, asyncio.Event())

    def drop_watches(self) -> None:
        """Every open watch ends, as when its server goes down."""
        for watch in list(self._watches):
            watch.end(StoreUnavailable("watch", "the server went down"))

    def move(self) -> None:
        """Another connection is used from now on: watches that are open run on the one before."""
        for watch in self._watches:
            watch.was_left = True

    def compact(self) -> None:
        """Forget history up to now."""
        self.etcd.compact()

    def publish(self) -> None:
        """Tell watches what was done to `etcd` directly."""
        for watch in list(self._watches):
            watch.publish()

    # --- Store

    async def txn(self, compares: Sequence[Condition], operations: Sequence[Operation]) -> TxnResult:
        puts = any(isinstance(operation, Put) for operation in operations)
        return await self._do("txn", lambda: self.etcd.txn(compares, operations), puts)

    async def read(self, keys: Sequence[bytes]) -> Listing:
        return await self._do("read", lambda: self.etcd.read(keys))

    async def list(self, prefix: bytes, end: bytes = b"") -> Listing:
        return await self._do("list", lambda: self.etcd.scan(prefix, end))

    async def grant(self, ttl: int) -> LeaseGrant:
        return await self._do("grant", lambda: self.etcd.grant(ttl), True)

    async def keep_alive(self, lease_id: int) -> int:
        return await self._do("keep_alive", lambda: self.etcd.keep_alive(lease_id))

    async def revoke(self, lease_id: int) -> None:
        def revoke() -> None:
            try:
                self.etcd.revoke(lease_id)
            except LeaseNotFound:
                pass

        await self._do("revoke", revoke)

    async def lease_times(self, lease_id: int) -> LeaseTimes:
        return await self._do("lease_times", lambda: self.etcd.lease_times(lease_id))

    async def auth_enabled(self) -> bool:
        return await self._do("auth_enabled", lambda: self.authenticates)

    async def status(self) -> MemberStatus:
        return await self._do("status", self._status)

    async def alarms(self) -> Sequence[tuple[int, str]]:
        return await self._do("alarms", lambda: list(self.raised))

    def _status(self) -> MemberStatus:
        used = sum(len(kv.key) + len(kv.value) for kv in self.etcd.keys.values()) + 1
        names = tuple(name for _, name in self.raised)
        return MemberStatus(1, self.version, 1, self.etcd.header.revision, 1, 2 * used, used, False, names)

    async def settle(self, prefix: bytes, key: bytes) -> None:
        pass

    async def watch(self, prefix: bytes, start_revision: int, end: bytes = b"") -> MemoryWatch:
        watch = await self._do("watch", lambda: self._make_watch(prefix, start_revision, end))
        self._watches.append(watch)
        return watch

    def _make_watch(self, prefix: bytes, start_revision: int, end: bytes) -> MemoryWatch:
        return MemoryWatch(self, prefix, start_revision, end, self._fragment)

    async def close(self) -> None:
        for watch in list(self._watches):
            await watch.close()

    def forget(self, watch: MemoryWatch) -> None:
        """A watch has ended."""
        if watch in self._watches:
            self._watches.remove(watch)

    async def _do(self, op: str, act: Callable[[], T], adds: bool = False) -> T:
        self.calls.append(op)
        await asyncio.sleep(0)  # an answer never comes in the same turn of the loop
        if op in self._held:
            await self._held[op].wait()
        if self._faults[op]:
            error, done = self._faults[op].popleft()
            if done:
                act()
                self.publish()
            raise error
        error_now = self.refuse(op, adds) if self.refuse else None
        if error_now:
            raise error_now
        try:
            return act()
        finally:
            self.publish()


class MemoryWatch:
    """An open watch on a :class:`MemoryStore`."""

    def __init__(self, store: MemoryStore, prefix: bytes, start_revision: int, end: bytes, fragment: int) -> None:
        self._store, self._prefix, self._end, self._fragment = store, prefix, end, fragment
        self._start = self._next = start_revision
        self._silent = self._over = self.was_left = False
        self._queue: asyncio.Queue[WatchResponse | StoreError] = asyncio.Queue()
        self._queue.put_nowait(WatchResponse(store.etcd.header, created=True))
        self.publish()

    async def __aiter__(self) -> AsyncIterator[WatchResponse]:
        while True:
            item = await self._queue.get()
            if isinstance(item, StoreError):
                raise item
            yield item

    def request_progress(self) -> None:
        owed = self._start <= self._store.etcd.revision  # no current etcd answers a watch that starts ahead of it
        if owed and not self._over and not self._silent:
            self._queue.put_nowait(WatchResponse(self._store.etcd.header))

    def give_up(self, why: str) -> None:
        self.end(StoreUnavailable("watch", why))

    async def close(self) -> None:
        self.end(StoreUnavailable("watch", "closed"))

    def freeze(self) -> None:
        """Say nothing any more, without an end."""
        self._silent = True

    def end(self, error: StoreError) -> None:
        """The stream breaks."""
        self._over = True
        self._store.forget(self)
        self._queue.put_nowait(error)

    def publish(self) -> None:
        """Queue what has happened since the last time."""
        if self._over or self._silent:
            return
        etcd = self._store.etcd
        if self._next < etcd.compacted:
            # what it was not sent yet is forgotten; as in etcd this header says revision 0, and the stream stays open
            self._over = True
            self._queue.put_nowait(WatchResponse(Header(etcd.cluster_id, 0), compact_revision=etcd.compacted))
            return
        for events in self._messages(self._store.etcd.events(self._prefix, self._next, self._end)):
            step = self._fragment or len(events)
            for start in range(0, len(events), step):
                more = start + step < len(events)
                response = WatchResponse(self._store.etcd.header, events[start : start + step], fragment=more)
                self._queue.put_nowait(response)
        self._next = max(self._next, etcd.revision + 1)

    def _messages(self, revisions: list[list[Event]]) -> Iterable[list[Event]]:
        """What is sent together, whole revisions each, before it is cut into fragments: here, each alone."""
        return revisions
