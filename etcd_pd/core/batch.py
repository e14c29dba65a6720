"""One transaction's worth of rooms: what is compared, what is written, and who waits for it."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from ..errors import EtcdPDError
from ..wire.values import FAILED, RoomValue
from .lease import Bucket
from .records import Compare, Delete, KeyValue, Operation, Put


class RankRef(NamedTuple):
    """A DP rank of an instance."""

    instance: str
    dp_rank: int


class Guard(NamedTuple):
    """Proof that a rank lives: its epoch, and the compares that hold only while it does."""

    epoch: int
    compares: tuple[Compare, ...]


class Job(enum.Enum):
    """What is to be done with a room's key."""

    CREATE = "create"
    DELETE = "delete"
    FAIL = "fail"
    EVICT = "evict"  #: delete what a dead epoch left under the key, then create


@lru_cache(maxsize=1024)  # the same for all rooms of a rank's epoch
def _assigned(dp_rank: int, epoch: int) -> bytes:
    return RoomValue(dp_rank, epoch).to_json()


#: Who said something, and the number that it gave it.
Said = tuple[object, int]


class Later(NamedTuple):
    """What was said of a room's next life before its last one has ended.

    Attributes:
        job: CREATE for a registration, FAIL for a failure.
        at: when it was said.
    """

    job: Job
    rank: RankRef
    said: Said
    reason: str
    at: float


@dataclass(eq=False, slots=True)
class OwnRoom:
    """A room that a rank of this agent registered, is registering, or released a while ago.

    Attributes:
        lot: the rooms that it is had together with, None where there are none, and once it is written.
        asked_at: when it was registered or failed here first.
        token: create_revision of its key, 0 before it is written.
        lease_id: the bucket that it hangs on.
        job: what is queued or in flight, None when the key stands as it should.
        follow_up: what was asked for while ``job`` was in flight.
        waiters: who gets the answer to the registration.
        enders: who is to know when it is released, or failed, for good.
        owners: everybody who registered it.
        later: what was said of its next life.
        released: the key is gone; what is left here is a tombstone against late siblings.
    """

    rank: RankRef
    room: int
    key: bytes
    deadline: float
    job: Job | None = Job.CREATE
    epoch: int = 0
    token: int = 0
    lease_id: int = 0
    reason: str | None = None
    follow_up: Job | None = None
    evict_token: int = 0
    released: bool = False
    lot: Lot | None = None
    asked_at: float = 0.0
    waiters: tuple[Said, ...] = ()
    enders: tuple[Said, ...] = ()
    owners: tuple[object, ...] = ()
    later: tuple[Later, ...] = ()

    @property
    def together(self) -> list[OwnRoom]:
        """What its place in the queue stands for."""
        return self.lot.rooms if self.lot and self.job is Job.CREATE else [self]

    def value(self) -> bytes:
        """What its key holds."""
        if self.reason is None:
            return _assigned(self.rank.dp_rank, self.epoch)
        return RoomValue(self.rank.dp_rank, self.epoch, FAILED, self.reason).to_json()


@dataclass(eq=False, slots=True)
class Lot:
    """Rooms that a rank gets in one transaction or not at all. The first stands in the queue for all of them.

    Attributes:
        evicting: how many of them must be freed of a dead epoch's key first.
    """

    rooms: list[OwnRoom]
    evicting: int = 0


class Batch(NamedTuple):
    """One transaction's worth of rooms."""

    rooms: list[OwnRoom]
    guards: dict[RankRef, Guard]
    creates: int

    def places(self) -> list[OwnRoom]:
        """Its rooms as they stand in the queue: one of each lot."""
        return [own for own in self.rooms if own.together[0] is own]

    def compares(self) -> list[Compare]:
        """One compare per room, after the guards."""
        found = [compare for guard in self.guards.values() for compare in guard.compares]
        for own in self.rooms:
            token = 0 if own.job is Job.CREATE else own.evict_token if own.job is Job.EVICT else own.token
            found.append(Compare(own.key, token))
        return found

    def operations(self, bucket: Bucket | None) -> list[Operation]:
        """One operation per room; new rooms hang on the bucket."""
        found: list[Operation] = []
        for own in self.rooms:
            if own.job is Job.CREATE:
                assert bucket is not None  # the registrar opens one whenever there are creates
                found.append(Put(own.key, own.value(), bucket.lease_id))
            elif own.job is Job.FAIL:
                found.append(Put(own.key, own.value(), None))  # whether it lives is for the token to say
            else:
                found.append(Delete(own.key))
        return found

    def keys(self) -> list[bytes]:
        """Everything to read where the transaction failed or its outcome is unknown."""
        return [compare.key for compare in self.compares()]


class Registered(NamedTuple):
    """The room is in etcd and belongs to the rank, under this epoch."""

    owner: object
    room: int
    token: int
    lease_id: int
    epoch: int
    sequence: int


class Rejected(NamedTuple):
    """The room was not registered."""

    owner: object
    room: int
    error: EtcdPDError
    sequence: int


class Durable(NamedTuple):
    """A release or a failure is in etcd, or etcd has no need of it."""

    owner: object
    sequence: int


Outcome = Registered | Rejected | Durable
EpochIsDead = Callable[[str, RoomValue, KeyValue], bool | None]
