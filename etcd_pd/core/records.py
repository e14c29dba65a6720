"""etcd's records, requests and answers as plain values: what the pure core and the store port speak in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

#: etcd's default --max-txn-ops: most compares, and most operations, in one transaction.
MAX_TXN_OPS = 128


class KeyValue(NamedTuple):
    """One key as etcd keeps it; ``lease`` is 0 where it hangs on none."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int


class Event(NamedTuple):
    """One change: ``kv`` is None for a deletion."""

    key: bytes
    mod_revision: int
    kv: KeyValue | None


class Header(NamedTuple):
    """Who answered, and at which revision of the store."""

    cluster_id: int
    revision: int

    def continues(self, seen: Header) -> bool:
        """Whether a read that had this answer is of the history in which that one was seen before."""
        # reads are linearizable, so no healthy cluster answers one from behind what was seen
        return self.cluster_id == seen.cluster_id and self.revision >= seen.revision


class Compare(NamedTuple):
    """True while the key's create_revision is this one; 0 means that the key does not exist.

    With ``prefix`` it is asked of every key that begins so; with 0, that there is none.
    """

    key: bytes
    create_revision: int
    prefix: bool = False


class OnLease(NamedTuple):
    """True while the key hangs on this lease."""

    key: bytes
    lease: int


class Put(NamedTuple):
    """Write a key under a lease (0: none; None: the one that it hangs on already, for a key that exists)."""

    key: bytes
    value: bytes
    lease: int | None


class Delete(NamedTuple):
    """Remove a key."""

    key: bytes


class TxnResult(NamedTuple):
    """Whether the compares held (and the operations happened)."""

    succeeded: bool
    header: Header


class Listing(NamedTuple):
    """Keys in order, all at one revision."""

    header: Header
    kvs: list[KeyValue]


class WatchResponse(NamedTuple):
    """One message of a watch.

    Attributes:
        header: who answered; its revision may be ahead of the events.
        events: changes in revision order; empty for progress and control messages.
        created: the watch stands from here on.
        fragment: more of the same revision follow in the next message.
        compact_revision: where not 0, the start revision was compacted and the watch is over.
    """

    header: Header
    events: Sequence[Event] = ()
    created: bool = False
    fragment: bool = False
    compact_revision: int = 0


class LeaseGrant(NamedTuple):
    """A lease as granted: the TTL in seconds may be longer than asked."""

    lease_id: int
    ttl: int


class LeaseTimes(NamedTuple):
    """A lease's whole seconds: left (0 in the last one), and granted; granted is 0 where the lease is gone."""

    left: int
    granted: int


Condition = Compare | OnLease
Operation = Put | Delete


#: First release of each minor version whose roles hold. Before, a user who may read one key could watch all after it
#: (GHSA-xg4h-6gfc-h4m8), and before 3.5.30 and 3.6.11 write any by a nested transaction (GHSA-rfx7-8w68-q57q).
ROLES_HOLD = {(3, 5): 33, (3, 6): 14, (3, 7): 1}
UPGRADE = "upgrade etcd to 3.5.33, 3.6.14, 3.7.1 or newer"
#: First release of each minor version that is accepted at all; the chart's validate.yaml says the same.
ACCEPTED = {(3, 5): 30, (3, 6): 11, (3, 7): 1}


def is_outdated(version: str) -> bool:
    """Whether users can pass by the roles of this release of etcd; False for a version that cannot be read."""
    return _is_before(version, ROLES_HOLD)


def is_refused(version: str) -> bool:
    """Whether this release of etcd is too old for anything but trying; False for a version that cannot be read."""
    return _is_before(version, ACCEPTED)


def _is_before(version: str, first: dict[tuple[int, int], int]) -> bool:
    try:
        major, minor, patch = (int(part) for part in version.partition("-")[0].split("."))
    except ValueError:
        return False
    return patch < first.get((major, minor), 0) or (major, minor) < min(first)


class MemberStatus(NamedTuple):
    """What one member says of itself; sizes in bytes.

    Attributes:
        leader: id of the member that it takes for the leader, 0 where it sees none.
        db_size: size of its database's file; what etcd holds against its quota.
        db_size_in_use: what of that holds data; the rest is free until a defragmentation.
        alarms: names of the alarms that are raised, each as often as members raised it: ``NOSPACE``, ``CORRUPT``.
    """

    id: int
    version: str
    leader: int
    revision: int
    raft_term: int
    db_size: int
    db_size_in_use: int
    is_learner: bool
    alarms: tuple[str, ...] = ()
