"""When to grant, keep alive and give up a lease: the session's one, and the buckets that rooms hang on.

Laws: a deadline counts from when a request was *sent*, since the server's clock restarted no earlier; only the
server's word (TTL 0, not found) makes a lease LOST; what is merely unconfirmed is SUSPECT.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

#: A failed keepalive or grant is repeated after this many seconds, times the caller's jitter.
RETRY_SECONDS = 0.25


class LeaseState(enum.Enum):
    """What the holder may claim."""

    LIVE = "live"  #: confirmed, and its deadline has not passed
    SUSPECT = "suspect"  #: the deadline passed without word from etcd; it may live on or be gone
    LOST = "lost"  #: etcd said that it is gone, or there never was one


class Grant(NamedTuple):
    """Ask for a new lease."""

    ttl: int


class KeepAlive(NamedTuple):
    """Renew this one."""

    lease_id: int


class Wait(NamedTuple):
    """Nothing to do before this moment."""

    until: float


class SessionLease:
    """The short lease under an agent's instances and ranks.

    Args:
        ttl: seconds asked of etcd; what it grants counts.
        renewals: keepalives per granted TTL.
    """

    def __init__(self, ttl: int, renewals: int = 3) -> None:
        self._ttl = ttl
        self._renewals = renewals
        self.lease_id = 0
        self.deadline = 0.0
        self.granted_ttl = ttl
        self._next = 0.0

    def state(self, now: float) -> LeaseState:
        """What the holder may claim at ``now``."""
        if not self.lease_id:
            return LeaseState.LOST
        return LeaseState.LIVE if now < self.deadline else LeaseState.SUSPECT

    def poll(self, now: float) -> Grant | KeepAlive | Wait:
        """What to do at ``now``."""
        if now < self._next:
            return Wait(self._next)
        return KeepAlive(self.lease_id) if self.lease_id else Grant(self._ttl)

    def confirmed(self, lease_id: int, ttl: int, sent_at: float, jitter: float = 1.0) -> None:
        """etcd granted or renewed the lease, asked for at ``sent_at``; a TTL of 0 means that it is gone."""
        if ttl <= 0:
            self.lost(sent_at)
            return
        self.lease_id, self.granted_ttl = lease_id, ttl
        self.deadline = sent_at + ttl
        self._next = sent_at + ttl / self._renewals * jitter

    def failed(self, now: float, jitter: float = 1.0) -> None:
        """No answer: ask again soon, whatever became of the request."""
        self._next = now + RETRY_SECONDS * jitter

    def lost(self, now: float) -> None:
        """etcd says that the lease is gone: ask for a new one at once."""
        self.lease_id = 0
        self.deadline = self._next = now


@dataclass
class Bucket:
    """A lease that rooms hang on; ``opened_at`` is when its grant was sent.

    Attributes:
        written: rooms ever put under it.
        live: rooms under it that were not released yet.
        closed: takes no more rooms.
        emptied_at: since when no room hangs on it.
        revocable: whether all its rooms are known here, so that it may be revoked when they are gone.
    """

    lease_id: int
    ttl: int
    opened_at: float
    written: int = 0
    live: int = 0
    closed: bool = False
    emptied_at: float = 0.0
    revocable: bool = True

    @property
    def deadline(self) -> float:
        """The earliest moment at which etcd may expire it."""
        return self.opened_at + self.ttl


class BucketPool:
    """Pooled leases for rooms: few leases, none with many keys, none kept alive, none left behind.

    Args:
        ttl: seconds asked for each.
        max_age: how long rooms are added to one, seconds.
        max_rooms: most rooms ever put under one.
        min_left: a bucket with less time left than this takes no room.
        linger: how long an empty one is kept for the next room, seconds (so that a trickle of rooms does not grant
            and revoke a lease for each).
    """

    def __init__(self, ttl: int, max_age: float, max_rooms: int, min_left: float, linger: float = 1.0) -> None:
        self.ttl = ttl
        self._min_left = min_left
        self._max_age, self._max_rooms, self._linger = max_age, max_rooms, linger
        self._buckets: dict[int, Bucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def __contains__(self, lease_id: int) -> bool:
        return lease_id in self._buckets

    def pick(self, now: float, rooms: int) -> Bucket | None:
        """A bucket that takes this many more rooms; None: open one first."""
        for bucket in reversed(self._buckets.values()):
            if bucket.closed:
                continue
            young = now - bucket.opened_at < self._max_age and bucket.deadline - now >= self._min_left
            if young and bucket.written + rooms <= self._max_rooms:
                return bucket
            bucket.closed = True
        return None

    def opened(self, lease_id: int, ttl: int, sent_at: float) -> Bucket:
        """A grant asked for at ``sent_at`` was answered."""
        bucket = Bucket(lease_id, ttl, sent_at, emptied_at=sent_at)
        self._buckets[lease_id] = bucket
        return bucket

    def adopted(self, lease_id: int, now: float) -> None:
        """A room turned out to hang on a lease of an earlier agent, which may bear others that nobody named yet."""
        bucket = self._buckets.get(lease_id)
        if bucket is None:
            bucket = self._buckets[lease_id] = Bucket(lease_id, self.ttl, now, closed=True, revocable=False)
        bucket.live += 1

    def written(self, bucket: Bucket, rooms: int) -> None:
        """That many rooms are (or may be) under the bucket now."""
        bucket.written += rooms
        bucket.live += rooms

    def removed(self, lease_id: int, now: float) -> None:
        """One room of the bucket is gone."""
        bucket = self._buckets.get(lease_id)
        if bucket and bucket.live > 0:
            bucket.live -= 1
            if not bucket.live:
                bucket.emptied_at = now

    def gone(self, lease_id: int) -> None:
        """etcd says that the lease does not exist."""
        bucket = self._buckets.pop(lease_id, None)
        if bucket:
            bucket.closed = True

    def sweep(self, now: float) -> list[int]:
        """Leases to revoke now, as they are empty; they are forgotten here. Expired ones are forgotten too."""
        ended = []
        for lease_id, bucket in list(self._buckets.items()):
            bucket.closed = bucket.closed or now - bucket.opened_at >= self._max_age
            if now >= bucket.deadline:
                del self._buckets[lease_id]
            elif bucket.revocable and not bucket.live and (bucket.closed or now - bucket.emptied_at >= self._linger):
                bucket.closed = True
                del self._buckets[lease_id]
                ended.append(lease_id)
        return ended

    def drain(self) -> list[int]:
        """All leases of this agent, to be revoked because the agent ends for good; they are forgotten here."""
        ended = [lease_id for lease_id, bucket in self._buckets.items() if bucket.revocable]
        self._buckets.clear()
        return ended
