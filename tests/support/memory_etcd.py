"""etcd's key space, leases and history in memory, as a plain object without I/O: the model that tests hold code to.

It refuses what etcd refuses. Where etcd's answer depends on luck, it takes the less convenient one.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from etcd_pd.core.keys import prefix_end
from etcd_pd.core.records import (
    MAX_TXN_OPS,
    Condition,
    Delete,
    Event,
    Header,
    KeyValue,
    LeaseGrant,
    LeaseTimes,
    Listing,
    OnLease,
    Operation,
    Put,
    TxnResult,
)
from etcd_pd.errors import LeaseNotFound, StoreRejected

#: etcd grants no shorter lease with default election settings, and no longer one ever.
MIN_TTL, MAX_TTL = 2, 9_000_000_000


@dataclass
class Lease:
    """A lease, its deadline by the clock, and the keys that end with it."""

    ttl: int
    deadline: float
    keys: set[bytes] = field(default_factory=set)


class MemoryEtcd:
    """One etcd server's content. `clock` gives the time in seconds that leases are measured with."""

    def __init__(self, clock: Callable[[], float] = lambda: 0.0, cluster_id: int = 1) -> None:
        self.cluster_id = cluster_id
        self.revision = 1
        self.compacted = 0
        self.keys: dict[bytes, KeyValue] = {}
        self.history: list[Event] = []
        self._clock = clock
        self._leases: dict[int, Lease] = {}
        self._lease_id = 6_999  # a number, since tests copy this etcd

    @property
    def header(self) -> Header:
        """What every answer carries."""
        return Header(self.cluster_id, self.revision)

    # --- keys

    def txn(self, compares: Sequence[Condition], operations: Sequence[Operation]) -> TxnResult:
        """As etcd's Txn with compares on create_revision and a success branch alone."""
        _check(compares, operations)
        self.expire()
        if not all(self._holds(compare) for compare in compares):
            return TxnResult(False, self.header)
        for operation in operations:
            if isinstance(operation, Put) and operation.lease and operation.lease not in self._leases:
                raise LeaseNotFound("txn")
            if isinstance(operation, Put) and operation.lease is None and operation.key not in self.keys:
                raise StoreRejected("txn", "key not found")
        changes = [op for op in operations if isinstance(op, Put) or op.key in self.keys]
        if changes:
            self.revision += 1
            for operation in changes:
                self._apply(operation)
        return TxnResult(True, self.header)

    def read(self, keys: Sequence[bytes]) -> Listing:
        """Those of the keys that exist."""
        if len(keys) > MAX_TXN_OPS:
            raise StoreRejected("read", "too many operations in txn request")
        self.expire()
        return Listing(self.header, [self.keys[key] for key in keys if key in self.keys])

    def scan(self, prefix: bytes, end: bytes = b"") -> Listing:
        """All keys under a prefix, and before ``end`` where that is given, in order."""
        self.expire()
        return Listing(self.header, [self.keys[key] for key in sorted(self.keys) if _under(prefix, key, end)])

    def events(self, prefix: bytes, start_revision: int, end: bytes = b"") -> list[list[Event]]:
        """What happened under a prefix from a revision on, by revision."""
        first = bisect_left(self.history, start_revision, key=lambda event: event.mod_revision)
        found = [event for event in self.history[first:] if _under(prefix, event.key, end)]
        return [list(group) for _, group in itertools.groupby(found, key=lambda event: event.mod_revision)]

    def compact(self, revision: int | None = None) -> None:
        """Forget history up to and without a revision (default: the present one)."""
        self.compacted = self.revision if revision is None else revision
        self.history = [event for event in self.history if event.mod_revision >= self.compacted]

    # --- leases

    def grant(self, ttl: int) -> LeaseGrant:
        """A new lease."""
        if ttl > MAX_TTL:
            raise StoreRejected("grant", "too large lease TTL")
        self._lease_id += 1
        lease_id, granted = self._lease_id, max(ttl, MIN_TTL)
        self._leases[lease_id] = Lease(granted, self._clock() + granted)
        return LeaseGrant(lease_id, granted)

    def keep_alive(self, lease_id: int) -> int:
        """The lease's TTL, 0 where it is gone."""
        self.expire()
        lease = self._leases.get(lease_id)
        if lease is None:
            return 0
        lease.deadline = self._clock() + lease.ttl
        return lease.ttl

    def lease_times(self, lease_id: int) -> LeaseTimes:
        """What it was granted, and has left."""
        self.expire()
        lease = self._leases.get(lease_id)
        return LeaseTimes(max(int(lease.deadline - self._clock()), 0), lease.ttl) if lease else LeaseTimes(0, 0)

    def revoke(self, lease_id: int) -> None:
        """End a lease with its keys, in one revision."""
        lease = self._leases.pop(lease_id, None)
        if lease is None:
            raise LeaseNotFound("revoke")
        if lease.keys:
            self.revision += 1
            for key in sorted(lease.keys):
                self._delete(key)

    def expire(self) -> None:
        """Revoke what is overdue."""
        for lease_id in [id for id, lease in self._leases.items() if lease.deadline <= self._clock()]:
            self.revoke(lease_id)

    def leases(self) -> list[int]:
        """Leases that exist."""
        self.expire()
        return list(self._leases)

    # --- inside

    def _holds(self, compare: Condition) -> bool:
        if isinstance(compare, OnLease):
            kv = self.keys.get(compare.key)
            return (kv.lease if kv else 0) == compare.lease
        names = [key for key in self.keys if _under(compare.key, key)] if compare.prefix else [compare.key]
        found = [self.keys[name].create_revision for name in names if name in self.keys]
        return all(revision == compare.create_revision for revision in found or [0])

    def _apply(self, operation: Operation) -> None:
        if isinstance(operation, Delete):
            self._delete(operation.key)
            return
        old = self.keys.get(operation.key)
        lease = old.lease if old and operation.lease is None else operation.lease or 0
        if old and old.lease:
            self._leases[old.lease].keys.discard(operation.key)
        if lease:
            self._leases[lease].keys.add(operation.key)
        created = old.create_revision if old else self.revision
        kv = KeyValue(operation.key, operation.value, created, self.revision, lease)
        self.keys[operation.key] = kv
        self.history.append(Event(kv.key, self.revision, kv))

    def _delete(self, key: bytes) -> None:
        kv = self.keys.pop(key, None)
        if kv is None:
            return
        if kv.lease in self._leases:
            self._leases[kv.lease].keys.discard(key)
        self.history.append(Event(key, self.revision, None))


def _check(compares: Sequence[Condition], operations: Sequence[Operation]) -> None:
    if max(len(compares), len(operations)) > MAX_TXN_OPS:
        raise StoreRejected("txn", "too many operations in txn request")
    if not all(item.key for item in (*compares, *operations)):
        raise StoreRejected("txn", "key is not provided")
    puts = [operation.key for operation in operations if isinstance(operation, Put)]
    deletes = {operation.key for operation in operations if isinstance(operation, Delete)}
    if len(set(puts)) != len(puts) or deletes & set(puts):
        raise StoreRejected("txn", "duplicate key given in txn request")


def _under(prefix: bytes, key: bytes, end: bytes = b"") -> bool:
    return prefix <= key < (end or prefix_end(prefix))
