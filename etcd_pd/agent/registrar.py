"""The agent's one writer of rooms: a transaction holds whatever queued during the last one; two where that is more."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable

from ..core.batch import Batch, EpochIsDead, Outcome
from ..core.book import RoomBook
from ..core.lease import Bucket, BucketPool
from ..core.records import KeyValue
from ..core.view import View
from ..errors import LeaseNotFound, StoreBusy, StoreError, StoreRejected, StoreUnavailable
from ..store.base import Store
from ..wire.values import RoomValue
from .stats import Stats

log = logging.getLogger(__name__)

#: How often deadlines, tombstones and empty leases are looked at, seconds.
SWEEP_SECONDS = 0.25
#: Pause before etcd is asked again after it did not answer, seconds; drawn at random below it.
RETRY_PAUSE = 0.25
#: How often the same refusal of etcd is logged, seconds.
REFUSAL_LOG_SECONDS = 10.0
#: Leases revoked at the same time: each costs etcd a deletion of all that hangs on it.
REVOKES_AT_ONCE = 16
#: Pause before a room is looked at again whose holder the view does not know yet, seconds.
VIEW_PAUSE = 0.02


class Registrar:
    """Writes what the :class:`~etcd_pd.core.book.RoomBook` holds.

    Args:
        store: where to.
        book: what to write.
        pool: the leases that rooms hang on.
        view: what etcd is known to hold.
        is_dead: whether the view shows that a room's epoch has ended; None while it cannot say.
        deliver: takes the outcomes to those who asked.
        note_revision: called with the revision of each write.
        stats: what is counted, a transaction at a time.
    """

    def __init__(
        self,
        store: Store,
        book: RoomBook,
        pool: BucketPool,
        view: View,
        is_dead: EpochIsDead,
        deliver: Callable[[list[Outcome]], None],
        note_revision: Callable[[int], None],
        stats: Stats,
    ) -> None:
        self._store, self._book, self._pool, self._view = store, book, pool, view
        self._is_dead, self._deliver = is_dead, deliver
        self._note_revision, self._stats = note_revision, stats
        self._work, self._overflow = asyncio.Event(), asyncio.Event()
        self._refusal, self._log_again_at = "", 0.0

    def kick(self) -> None:
        """There is something to write, or a rank has come alive."""
        self._work.set()

    async def run(self) -> None:
        """Write until cancelled."""
        parts = (self._write_all(), self._write_beside(), self._expire(), self._revoke_empty())
        tasks = [asyncio.create_task(part) for part in parts]
        try:
            await asyncio.gather(*tasks)  # a bug in any is seen
        finally:
            for task in tasks:
                task.cancel()

    async def _write_all(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while (batch := self._book.take(time.monotonic())) is not None:
                if self._book.is_full():
                    self._overflow.set()
                await self._write(batch)

    async def _write_beside(self) -> None:
        """While etcd writes one transaction, make and send the next, where that is full as well.

        So at lower rates rooms still gather behind the one in flight.
        """
        while True:
            await self._overflow.wait()
            self._overflow.clear()
            while self._book.is_full() and (batch := self._book.take(time.monotonic())) is not None:
                await self._write(batch)

    async def close(self) -> None:
        """Revoke every lease that rooms hang on: the agent ends for good.

        Raises:
            StoreError: some are left to expire.
        """
        failed = await self._revoke(self._pool.drain())
        if failed:
            raise failed

    async def _write(self, batch: Batch) -> None:
        bucket: Bucket | None = None
        try:
            if batch.creates:
                bucket = await self._bucket(batch.creates)
        except StoreBusy as exc:
            await self._put_off(batch, exc)
            return
        except StoreError as exc:
            log.debug("no lease for %d rooms: %s", batch.creates, exc)
            self._book.results.requeue(batch)
            await self._pause()
            return
        sent_at = time.monotonic()
        try:
            result = await self._store.txn(batch.compares(), batch.operations(bucket))
        except LeaseNotFound:
            self._lease_gone(batch, bucket)
        except StoreBusy as exc:
            self._unused(batch, bucket)
            await self._put_off(batch, exc)
        except StoreRejected as exc:
            self._note_refusal(len(batch.rooms), str(exc))
            self._unused(batch, bucket)
            self._deliver(self._book.results.refuse(batch, exc))
            if len(batch.rooms) == 1:  # it may be tried again
                await self._pause()
        except StoreUnavailable as exc:
            log.debug("outcome of %d operations unknown: %s", len(batch.rooms), exc)
            await self._read_back(batch, bucket)
        else:
            if result.succeeded:
                now = time.monotonic()
                self._note_revision(result.header.revision)
                self._stats.wrote(batch, sent_at, now)
                self._deliver(self._book.results.confirm(batch, bucket, result.header.revision, now))
            else:
                await self._read_back(batch, bucket)

    async def _put_off(self, batch: Batch, why: StoreBusy) -> None:
        """etcd did nothing of it: say it again later, and meanwhile whatever a full etcd takes."""
        self._note_refusal(len(batch.rooms), str(why))
        pause = random.uniform(RETRY_PAUSE / 2, RETRY_PAUSE)
        self._book.results.put_off(batch, time.monotonic() + pause)
        if batch.needs_space:
            asyncio.get_running_loop().call_later(pause, self._work.set)
        else:
            await asyncio.sleep(pause)
        self._work.set()

    async def _bucket(self, rooms: int) -> Bucket:
        now = time.monotonic()
        bucket = self._pool.pick(now, rooms)
        if bucket is None:
            granted = await self._store.grant(self._pool.ttl)
            bucket = self._pool.opened(granted.lease_id, granted.ttl, now)
            log.debug("bucket lease granted lease=%x ttl=%d", granted.lease_id, granted.ttl)
        self._pool.written(bucket, rooms)
        return bucket

    async def _read_back(self, batch: Batch, bucket: Bucket | None) -> None:
        """Read the batch's keys back, for as long as it takes, and decide room by room."""
        while True:
            known = self._view.revision
            try:
                listing = await self._store.read(list(dict.fromkeys(batch.keys())))
                break
            except StoreError as exc:
                log.debug("cannot read %d rooms back: %s", len(batch.rooms), exc)
                self._deliver(self._book.results.give_up(batch, time.monotonic()))
                await self._pause()
        view_is_behind = False

        def is_dead(instance: str, value: RoomValue, kv: KeyValue) -> bool | None:
            nonlocal view_is_behind
            # an etcd that answers from behind what is known is a restored one, which the view does not know yet
            verdict = self._is_dead(instance, value, kv) if listing.header.revision >= known else None
            view_is_behind = view_is_behind or verdict is None
            return verdict

        self._deliver(self._book.results.read_back(batch, bucket, listing, is_dead, time.monotonic()))
        if view_is_behind:  # it will take the watch at least that long; asking etcd again at once would not help
            await asyncio.sleep(VIEW_PAUSE)

    def _note_refusal(self, operations: int, why: str) -> None:
        """Log it when the reason is another, and now and then: one refusal comes with many, batch by batch."""
        now = time.monotonic()
        if why != self._refusal or now >= self._log_again_at:
            self._refusal, self._log_again_at = why, now + REFUSAL_LOG_SECONDS
            log.warning("etcd refused %d operations: %s", operations, why)

    def _lease_gone(self, batch: Batch, bucket: Bucket | None) -> None:
        log.warning("bucket lease gone lease=%x", bucket.lease_id if bucket else 0)
        if bucket:
            self._pool.gone(bucket.lease_id)
        self._book.results.requeue(batch)

    def _unused(self, batch: Batch, bucket: Bucket | None) -> None:
        if bucket:
            for _ in range(batch.creates):
                self._pool.removed(bucket.lease_id, time.monotonic())

    async def _pause(self) -> None:
        await asyncio.sleep(random.uniform(RETRY_PAUSE / 2, RETRY_PAUSE))
        self._work.set()

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self._deliver(self._book.expire(time.monotonic()))
            if len(self._book):
                self._work.set()

    async def _revoke_empty(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            await self._revoke(self._pool.sweep(time.monotonic()))

    async def _revoke(self, leases: list[int]) -> StoreError | None:
        """End leases, some at once; why the last of those that failed did. They expire by themselves."""
        limit = asyncio.Semaphore(REVOKES_AT_ONCE)

        async def revoke(lease_id: int) -> StoreError | None:
            async with limit:
                try:
                    await self._store.revoke(lease_id)
                except StoreError as exc:
                    log.debug("lease=%x not revoked, it expires by itself: %s", lease_id, exc)
                    return exc
            return None

        failed = [error for error in await asyncio.gather(*map(revoke, leases)) if error]
        return failed[-1] if failed else None
