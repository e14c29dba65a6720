"""A room that a rank of this agent has, is getting, or had: where it stands, and what more is wanted of it.

                     ┌──────────► FAILED ──┐
    CREATING ─► HELD ┴► FAILING ──┘        ├─► RELEASING ─► RELEASED
       ▲  │       └────────────────────────┘
       │  ▼
    EVICTING                       and from anywhere: DROPPED

A room that is created after it was failed is created as failed. What an engine wants next is remembered, and begun when
what is under way is done: there is one write at a time for each key.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from ..wire.values import FAILED, RoomValue


class RankRef(NamedTuple):
    """A DP rank of an instance."""

    instance: str
    dp_rank: int


class State(enum.IntEnum):
    """Where a room stands. In the first four it is queued or in flight."""

    CREATING = 1
    EVICTING = 2  #: what a dead epoch left under its key is deleted, then it is created
    FAILING = 3
    RELEASING = 4
    HELD = 5  #: its key stands
    FAILED = 6  #: its key says that it failed
    RELEASED = 7  #: its key is gone
    DROPPED = 8  #: it is nobody's any more, and answers about it mean nothing


#: Those of a room that is over for its rank; what is left of it guards against late siblings.
OVER = (State.FAILED, State.RELEASED)
#: What is begun next, by state, whether it was failed, and whether it is to go. A failure is written first.
NEXT = {
    (State.HELD, True, False): State.FAILING,
    (State.HELD, True, True): State.FAILING,
    (State.HELD, False, True): State.RELEASING,
    (State.FAILED, True, True): State.RELEASING,
}

#: Who said something, and the number that it gave it.
Said = tuple[object, int]


class Later(NamedTuple):
    """What was said of a room's next life before its last one has ended.

    Attributes:
        reason: of a failure; None: it is a registration, or a release.
        at: when it was said.
        goes: it is a release.
    """

    rank: RankRef
    said: Said
    reason: str | None
    at: float
    goes: bool = False

    @property
    def registers(self) -> bool:
        """Whether it is a registration."""
        return self.reason is None and not self.goes


@lru_cache(maxsize=1024)  # the same for all rooms of a rank's epoch
def _assigned(dp_rank: int, epoch: int) -> bytes:
    return RoomValue(dp_rank, epoch).to_json()


@dataclass(eq=False, slots=True)
class OwnRoom:
    """One life of a room.

    Attributes:
        deadline: until when its registration may wait.
        epoch: of its rank, when it was taken to be written.
        token: create_revision of its key, 0 before it is written.
        lease_id: the bucket that it hangs on.
        reason: why it was failed, None where it was not.
        goes: its key is to be deleted.
        born_failed: it is created as failed.
        evict_token: create_revision of what is deleted first.
        lot: the rooms that it is had together with, None where there are none, and once it is written.
        asked_at: when it was registered or failed here first.
        waiters: who gets the answer to the registration.
        enders: who is to know when it is released, or failed, for good.
        spoken: the last that each place of its rank said of it: who spoke for the place then, and the number.
        later: what was said of its next life.
        doubtful: the view has not come as far as who holds its key: only such are tried with it, others do not wait.
    """

    rank: RankRef
    room: int
    key: bytes
    deadline: float
    state: State = State.CREATING
    epoch: int = 0
    token: int = 0
    lease_id: int = 0
    reason: str | None = None
    goes: bool = False
    born_failed: bool = False
    evict_token: int = 0
    lot: Lot | None = None
    asked_at: float = 0.0
    waiters: tuple[Said, ...] = ()
    enders: tuple[Said, ...] = ()
    spoken: tuple[Said, ...] = ()
    later: tuple[Later, ...] = ()
    doubtful: bool = False

    @property
    def together(self) -> list[OwnRoom]:
        """What its place in the queue stands for."""
        return self.lot.rooms if self.lot and self.state is State.CREATING else [self]

    @property
    def needs_space(self) -> bool:
        """Whether what is written next of it adds to etcd's database."""
        return self.state in (State.CREATING, State.FAILING)

    @property
    def is_ending(self) -> bool:
        """Whether it was failed or released, though etcd may not have that yet."""
        return self.goes or self.reason is not None

    def awaits(self, said: Said) -> bool:
        """Whether who said this gets an answer yet, so that a repetition of it is none of its own."""
        asked = said in self.waiters or said in self.enders
        return asked or (bool(self.later) and any(later.said == said for later in self.later))

    def prepare(self, epoch: int) -> None:
        """It is about to be created under an epoch of its rank: decide what its key will hold."""
        self.epoch, self.born_failed = epoch, self.reason is not None

    def value(self) -> bytes:
        """What its key is to hold."""
        if self.state is State.CREATING and not self.born_failed:
            return _assigned(self.rank.dp_rank, self.epoch)
        return RoomValue(self.rank.dp_rank, self.epoch, FAILED, self.reason or "").to_json()


@dataclass(eq=False, slots=True)
class Lot:
    """Rooms that a rank gets in one transaction or not at all. The first stands in the queue for all of them.

    Attributes:
        evicting: how many of them must be freed of a dead epoch's key first.
    """

    rooms: list[OwnRoom]
    evicting: int = 0
