"""One transaction's worth of rooms, and what comes of it for those who asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..errors import EtcdPDError
from ..wire.values import RoomValue
from .lease import Bucket
from .own_room import OwnRoom, RankRef, State
from .records import Compare, Delete, KeyValue, Operation, Put


class Guard(NamedTuple):
    """Proof that a rank lives.

    Attributes:
        epoch: the rank's.
        compares: what holds only while it lives.
        history: how many histories of etcd ended before the one that this is about: epochs are numbers of one alone.
        is_ready: no process of the rank here is still to be notified that an earlier epoch has ended: it would take a
            room of this one for dead, so none is written before.
    """

    epoch: int
    compares: tuple[Compare, ...]
    history: int = 0
    is_ready: bool = True


class Batch(NamedTuple):
    """Rooms that are written together, and the guards of the ranks that get new ones."""

    rooms: list[OwnRoom]
    guards: dict[RankRef, Guard]
    creates: int

    @property
    def needs_space(self) -> bool:
        """Whether an etcd whose database is full refuses it: deletions alone it would take."""
        return any(own.needs_space for own in self.rooms)

    def places(self) -> list[OwnRoom]:
        """Its rooms as they stand in the queue: one of each lot."""
        return [own for own in self.rooms if own.together[0] is own]

    def compares(self) -> list[Compare]:
        """One compare per room, after the guards."""
        found = [compare for guard in self.guards.values() for compare in guard.compares]
        for own in self.rooms:
            state = own.state
            token = 0 if state is State.CREATING else own.evict_token if state is State.EVICTING else own.token
            found.append(Compare(own.key, token))
        return found

    def operations(self, bucket: Bucket | None) -> list[Operation]:
        """One operation per room; new rooms hang on the bucket."""
        found: list[Operation] = []
        for own in self.rooms:
            if own.state is State.CREATING:
                assert bucket is not None  # the registrar opens one whenever there are creates
                found.append(Put(own.key, own.value(), bucket.lease_id))
            elif own.state is State.FAILING:
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
