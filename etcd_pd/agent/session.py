"""The agent's session: one short lease, kept alive for as long as the agent runs."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from contextlib import suppress

from ..core.lease import Grant, LeaseState, SessionLease, Wait
from ..errors import LeaseNotFound, StoreError
from ..store.base import Store
from ..store.deadline import within
from ..telemetry.metrics import latencies

log = logging.getLogger(__name__)


class Session:
    """Runs a :class:`~etcd_pd.core.lease.SessionLease` against a store.

    Args:
        store: where the lease lives.
        ttl: seconds asked for.
        on_granted: called with the lease's id whenever there is a new one; what hung on the old one is gone.
    """

    def __init__(self, store: Store, ttl: int, on_granted: Callable[[int], None]) -> None:
        self._store = store
        self._lease = SessionLease(ttl)
        self._on_granted = on_granted
        self._live, self._changed = asyncio.Event(), asyncio.Event()
        self._abandoned = 0
        self._failing = False
        self.losses = 0
        self.renew_seconds = latencies()

    def __repr__(self) -> str:
        return f"<Session {self.state.value} lease={self.lease_id:x} left={self.seconds_left:.1f}s>"

    @property
    def lease_id(self) -> int:
        """The present lease, 0 while there is none."""
        return self._lease.lease_id

    @property
    def state(self) -> LeaseState:
        """Whether the lease may be relied on."""
        return self._lease.state(time.monotonic())

    @property
    def seconds_left(self) -> float:
        """Until the lease may expire if it is not renewed."""
        return max(0.0, self._lease.deadline - time.monotonic())

    @property
    def granted_ttl(self) -> int:
        """Seconds that etcd granted."""
        return self._lease.granted_ttl

    async def lease(self) -> int:
        """Wait until there is a lease, and return its id."""
        await self._live.wait()
        return self._lease.lease_id

    async def run(self) -> None:
        """Grant, keep alive, and grant again when lost, until cancelled."""
        while True:
            action = self._lease.poll(time.monotonic())
            if isinstance(action, Wait):
                await self._wait(action.until - time.monotonic())
                continue
            sent_at, held = time.monotonic(), self.lease_id
            try:
                if isinstance(action, Grant):
                    await self._revoke_abandoned()
                    granted = await self._store.grant(action.ttl)
                    self._granted(granted.lease_id, granted.ttl, sent_at)
                else:
                    ttl = await self._store.keep_alive(action.lease_id)
                    self.renew_seconds.observe(time.monotonic() - sent_at)
                    self._kept(action.lease_id, ttl, sent_at)
            except LeaseNotFound:
                self._kept(held, 0, sent_at)
            except StoreError as exc:
                self._failed(exc)

    def abandon(self) -> None:
        """etcd has another history: end what it has brought back of this session, as a whole, before another begins."""
        if self.lease_id:
            log.warning("session lease abandoned lease=%x: it is of another history", self.lease_id)
            self._abandoned = self.lease_id
        self._lease.lost(time.monotonic())
        self._live.clear()
        self._changed.set()

    async def _revoke_abandoned(self) -> None:
        if self._abandoned:
            await self._store.revoke(self._abandoned)
            self._abandoned = 0

    async def _wait(self, seconds: float) -> None:
        self._changed.clear()
        with suppress(asyncio.TimeoutError):
            await within(self._changed.wait(), max(0.0, seconds))

    async def revoke(self) -> None:
        """End the session at once: everything that hangs on it goes, and what is left of the one before."""
        await self._revoke_abandoned()
        if self._lease.lease_id:
            await self._store.revoke(self._lease.lease_id)

    def _granted(self, lease_id: int, ttl: int, sent_at: float) -> None:
        self._lease.confirmed(lease_id, ttl, sent_at, _jitter())
        self._failing = False
        log.info("session lease granted lease=%x ttl=%d", lease_id, ttl)
        self._live.set()
        self._on_granted(lease_id)

    def _kept(self, lease_id: int, ttl: int, sent_at: float) -> None:
        if lease_id != self.lease_id:
            return  # it was abandoned meanwhile
        was_suspect = self.state is LeaseState.SUSPECT
        self._lease.confirmed(lease_id, ttl, sent_at, _jitter())
        self._failing = False
        if ttl <= 0:
            self._live.clear()
            self.losses += 1
            log.error("session lease lost lease=%x: its ranks are gone and come back with new epochs", lease_id)
        elif was_suspect:
            log.warning("session lease renewed late lease=%x ttl=%d", lease_id, ttl)

    def _failed(self, exc: StoreError) -> None:
        if not self._failing:  # once an outage, not once an attempt
            log.warning("session lease not renewed left=%.1fs: %s", self.seconds_left, exc)
        self._failing = True
        self._lease.failed(time.monotonic(), _jitter())


def _jitter() -> float:
    return random.uniform(0.8, 1.0)
