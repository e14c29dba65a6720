"""The port to etcd: what the agent asks of a store, in etcd's own words.

``store/etcd.py`` is the one real store. tests/ keep an in-memory one, held to the same contract tests.
Every call raises :class:`~etcd_pd.errors.StoreError` or a subclass, never a driver's own error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..core.records import Condition, LeaseGrant, LeaseTimes, Listing, MemberStatus, Operation, TxnResult, WatchResponse
from ..errors import StoreError, StoreRejected


@dataclass
class StoreCounts:
    """What a store counts.

    Attributes:
        errors: calls and streams that failed, by operation and the error's name.
        authentications: tokens asked for.
        connections: connections used.
    """

    errors: Counter[tuple[str, str]] = field(default_factory=Counter)
    authentications: int = 0
    connections: int = 0


class Watch(Protocol):
    """An open watch: iterate it for its responses; it ends with a StoreError, never quietly."""

    def __aiter__(self) -> AsyncIterator[WatchResponse]: ...

    def request_progress(self) -> None:
        """Ask etcd for a sign of life on this stream."""

    @property
    def was_left(self) -> bool:
        """Whether the store uses another connection now: the next watch would run there."""

    def give_up(self, why: str) -> None:
        """It is silent for too long: end it with an error, and use another connection from now on."""

    async def close(self) -> None:
        """End the watch."""


class Store(Protocol):
    """What the agent needs of etcd."""

    @property
    def counts(self) -> StoreCounts:
        """What happened so far."""

    @property
    def endpoint(self) -> str:
        """The endpoint in use, or to be used next."""

    async def txn(self, compares: Sequence[Condition], operations: Sequence[Operation]) -> TxnResult:
        """Do all operations if all compares hold, else nothing. Never repeated: a timeout leaves it unknown."""

    async def read(self, keys: Sequence[bytes]) -> Listing:
        """Those of the keys that exist, at one revision."""

    async def list(self, prefix: bytes, end: bytes = b"") -> Listing:
        """All keys under a prefix, where ``end`` is given only those before it, at one revision.

        In pages large enough that etcd counts the range once.
        """

    async def grant(self, ttl: int) -> LeaseGrant:
        """A new lease of at least ``ttl`` seconds."""

    async def keep_alive(self, lease_id: int) -> int:
        """Renew a lease on the one open stream; its TTL in seconds, 0 where it is gone."""

    async def revoke(self, lease_id: int) -> None:
        """End a lease and delete its keys; one that is gone already is no error."""

    async def lease_times(self, lease_id: int) -> LeaseTimes:
        """What a lease was granted, and what it has left."""

    async def auth_enabled(self) -> bool:
        """Whether users and roles hold. StoreRejected: they do, and these credentials may not ask."""

    async def status(self) -> MemberStatus:
        """What the member at the endpoint in use says of itself; asked once, of no other."""

    async def alarms(self) -> Sequence[tuple[int, str]]:
        """Alarms that are raised, as member id and name: ``NOSPACE``, ``CORRUPT``. It costs an entry in etcd's log."""

    async def settle(self, prefix: bytes, key: bytes) -> None:
        """Go to the member of etcd that is this key's among all keys under the prefix, where it answers."""

    async def watch(self, prefix: bytes, start_revision: int, end: bytes = b"") -> Watch:
        """Open a watch over a prefix, where ``end`` is given only over the keys before it, from a revision on."""

    async def close(self) -> None:
        """Close all channels."""


async def roles_hold(store: Store) -> bool | None:
    """Whether users and roles hold, also for those who may not ask; None where etcd did not answer."""
    try:
        return await store.auth_enabled()
    except StoreRejected:
        return True  # or else nobody would refuse
    except StoreError:
        return None
