"""What engines say of their rooms: registrations, lots, releases and failures, folded into writes.

Laws: at most one operation per key among all batches in flight; whoever asked for a room is answered exactly
once; a room is written only under a guard that its rank's epoch lives; an outcome that is unknown is read back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..errors import AgentBusy, EtcdPDError, RankLost, RegistrationTimeout, RoomConflict
from ..wire.values import TIMED_OUT
from .batch import Batch, Durable, Guard, Outcome, Registered, Rejected
from .keys import Keys
from .lease import BucketPool
from .own_room import Later, Lot, OwnRoom, RankRef, Said, State
from .registrations import Registrations
from .results import Results
from .write_queue import WriteQueue

#: Why a registration is given up that waited, and was never sent.
NOT_IN_TIME = "etcd took no write in time"


class RoomBook:
    """All rooms of the ranks that this agent serves, and the queue of what is to be written of them.

    Args:
        keys: the key layout.
        pool: bucket leases; accounted for here, granted and revoked by the caller.
        guard_of: the live guard of a rank, None while it has none.
        max_rooms: most rooms in a batch.
        max_queue: how many rooms may wait for etcd before registrations are refused. Releases and failures never are:
            nobody could say them again, and each was noted already.
        registration_timeout: seconds that a registration may take.
        tombstone_seconds: how long a room that is over is remembered, see :class:`Registrations`.
        release_delay: how long a release may wait for others, see :class:`WriteQueue`.
        place_of: the place in its rank's topology that an owner speaks for: its successor's is the same, a sibling's
            is not. What an owner says, it numbers; a number that it said before is a repetition.

    Attributes:
        results: takes what etcd answered.
    """

    def __init__(
        self,
        keys: Keys,
        pool: BucketPool,
        guard_of: Callable[[RankRef], Guard | None],
        *,
        max_rooms: int,
        max_queue: int,
        registration_timeout: float,
        tombstone_seconds: float,
        release_delay: float = 0.0,
        place_of: Callable[[object], object] = lambda owner: owner,
    ) -> None:
        def is_alive(rank: RankRef, epoch: int) -> bool:
            guard = guard_of(rank)
            return guard is not None and guard.epoch == epoch

        def ready_guard_of(rank: RankRef) -> Guard | None:
            guard = guard_of(rank)
            return guard if guard and guard.is_ready else None

        self._max_queue = max_queue
        self._queue = WriteQueue(ready_guard_of, max_rooms=max_rooms, release_delay=release_delay)
        limits = (registration_timeout, tombstone_seconds)
        self._rooms = Registrations(keys, pool, self._queue, is_alive, *limits, self._begin, place_of)
        self.results = Results(self._rooms, self._queue, pool)

    def __len__(self) -> int:
        """How many rooms wait to be written."""
        return len(self._queue)

    def is_full(self) -> bool:
        """Whether rooms for a whole batch wait to be registered."""
        return self._queue.is_full()

    def count(self, rank: RankRef) -> int:
        """How many rooms of a rank are registered or being so."""
        return self._rooms.count(rank)

    def count_ending(self, rank: RankRef) -> int:
        """How many of them were failed or released, which etcd may not have yet."""
        return sum(own.is_ending for own in self._rooms.of_rank(rank))

    def hurry(self) -> None:
        """Let no release wait for a transaction to ride on: there will not be many more."""
        self._queue.hurry()

    def take(self, now: float) -> Batch | None:
        """The next batch, None where nothing can be written now."""
        return self._queue.take(now)

    # --- registrations

    def register(self, owner: object, rank: RankRef, room: int, sequence: int, now: float) -> list[Outcome]:
        """A rank took a room. Siblings of the rank that say the same are folded into one write.

        A room that is released or failed, but not gone yet, is registered again once it is.
        """
        said = (owner, sequence)
        own = self._rooms.find_standing(rank, room, said)
        if own is None:
            if len(self._queue) >= self._max_queue:
                return [Rejected(owner, room, AgentBusy(self._max_queue), sequence)]
            self._queue.push(self._rooms.add(rank, room, now, said))
            return []
        if own.awaits(said) or any(later.said[0] == owner and later.said[1] > sequence for later in own.later):
            return []  # in the second case it has said since how that ends, and awaits no answer
        if self._means_next_life(own, rank, said):
            self._rooms.postpone(own, Later(rank, said, None, now))
            return []
        return self._join(own, rank, said)

    def knows(self, owner: object, rank: RankRef, room: int, sequence: int) -> bool:
        """Whether this was said before of a room that is remembered, so that it is answered as it was or will be."""
        own, said = self._rooms.find(rank.instance, room), (owner, sequence)
        return own is not None and (own.awaits(said) or self._rooms.is_repeated(own, said))

    def _means_next_life(self, own: OwnRoom, rank: RankRef, said: Said) -> bool:
        """Whether who registers a room now can only mean its next life."""
        if not own.is_ending or self._rooms.is_repeated(own, said):
            return False
        of_dead_epoch = own.token != 0 and not self._rooms.is_alive(own.rank, own.epoch)
        never_here = own.state is State.RELEASING and not own.token
        return own.rank != rank or of_dead_epoch or never_here or self._rooms.is_next(own, said)

    def _join(self, own: OwnRoom, rank: RankRef, said: Said) -> list[Outcome]:
        owner, sequence = said
        if own.rank != rank:
            return [Rejected(owner, own.room, _conflict(own), sequence)]
        if own.state is State.RELEASING and not own.token:  # it said that before its own release, and awaits no answer
            return []
        if not self._rooms.is_repeated(own, said):
            self._rooms.note_said(own, said)
        if own.reason == TIMED_OUT:  # it is failed for that: so it is for who was not notified
            return [Rejected(owner, own.room, RegistrationTimeout(own.room, NOT_IN_TIME), sequence)]
        if own.token and own.is_ending and not self._rooms.is_alive(own.rank, own.epoch):
            return [Rejected(owner, own.room, RankLost(own.room, own.epoch), sequence)]
        if own.token:  # also a tombstone's: a late sibling must not bring the room back
            return [Registered(owner, own.room, own.token, own.lease_id, own.epoch, sequence)]
        own.waiters += (said,)
        return []

    def register_lot(self, owner: object, rank: RankRef, rooms: Sequence[tuple[int, int]], now: float) -> list[Outcome]:
        """A rank took rooms that make sense only together. Those that it has already are answered as ever.

        Args:
            rooms: each with the number of what the engine said of it.
        """
        standing = {room: self._rooms.find_standing(rank, room, (owner, said)) for room, said in rooms}
        rooms = [(room, said) for room, said in rooms if not (own := standing[room]) or not own.awaits((owner, said))]
        new = [(room, said) for room, said in rooms if not standing[room]]
        conflicts = [_conflict(own) for own in standing.values() if own and own.rank != rank]
        refusal: EtcdPDError | None = conflicts[0] if conflicts else None
        if not refusal and new and len(self._queue) + len(new) > self._max_queue:
            refusal = AgentBusy(self._max_queue)
        if refusal:
            return [Rejected(owner, room, refusal, sequence) for room, sequence in rooms]
        lot = Lot([self._rooms.add(rank, room, now, (owner, said)) for room, said in new])
        for own in lot.rooms:
            own.lot = lot
        for first in lot.rooms[:1]:
            self._queue.push(first)
        known = [self.register(owner, rank, room, sequence, now) for room, sequence in rooms if standing[room]]
        return [outcome for outcomes in known for outcome in outcomes]

    def adopt(self, owner: object, rank: RankRef, epoch: int, room: int, token: int, lease_id: int, now: float) -> None:
        """An engine says after a restart of the agent that the room stands in etcd already."""
        if self._rooms.find(rank.instance, room) is None:
            self._rooms.adopt(owner, rank, epoch, room, token, lease_id, now)

    # --- ends

    def release(self, owner: object, rank: RankRef, room: int, sequence: int) -> list[Outcome]:
        """The KV cache was handed over: delete the key. Unknown or released rooms are no error."""
        own, said = self._rooms.find(rank.instance, room), (owner, sequence)
        if own is None:
            self._release_unknown(rank, room, said)
            return []
        if own.awaits(said):
            return []
        if self._rooms.is_repeated(own, said):  # and etcd has it, or it ended an earlier life
            return [Durable(owner, sequence)]
        if self._rooms.follows(own, owner):
            self._rooms.postpone(own, Later(rank, said, None, 0.0, goes=True))
            return []
        if own.rank != rank or own.state is State.RELEASED:
            return [Durable(owner, sequence)]
        self._rooms.note_end(own, said)
        self._rooms.release(own)
        return []

    def _release_unknown(self, rank: RankRef, room: int, said: Said) -> None:
        """A predecessor of the engine may have registered it, at an agent before this one: etcd knows."""
        own = self._rooms.add(rank, room, 0.0, said)
        own.state, own.goes, own.waiters, own.enders = State.RELEASING, True, (), (said,)
        self._queue.push(own)

    def fail(self, owner: object, rank: RankRef, room: int, reason: str, sequence: int, now: float) -> list[Outcome]:
        """The room will not come: say so to those who wait for it, also where it was never registered."""
        said = (owner, sequence)
        own = self._rooms.find_standing(rank, room, None)  # what was released is over, whoever fails it besides
        if own is None:
            own = self._rooms.add(rank, room, now, said)
            own.reason, own.waiters, own.enders = reason, (), (said,)
            self._queue.push(own)
        elif own.awaits(said):
            return []
        elif self._rooms.is_repeated(own, said):
            return [Durable(owner, sequence)]
        elif self._rooms.follows(own, owner):
            self._rooms.postpone(own, Later(rank, said, reason, now))
        elif own.rank != rank or own.state in (State.RELEASED, State.FAILED):
            return [Durable(owner, sequence)]
        else:
            self._rooms.note_end(own, said)
            self._rooms.fail(own, reason)
        return []

    def end_rank(self, rank: RankRef, *, gone: bool, living: int = 0) -> list[Outcome]:
        """The rank's epoch ended: its written rooms are dead; queued ones wait for its next epoch, or go with it.

        Args:
            living: the epoch that it has now, whose rooms stay; 0 for none.
        """
        outcomes: list[Outcome] = []
        if gone:
            self._rooms.cancel_later(lambda later: later.rank == rank, "the rank is gone", outcomes)
        for own in self._rooms.of_rank(rank):
            if own.state is State.RELEASING:
                continue  # what was released is deleted all the same
            if gone or (own.token and own.epoch != living):
                self._rooms.reject([own], RankLost(own.room, own.epoch), outcomes)
        if gone:
            for own in self._queue.forget(rank):
                self._rooms.drop(own, outcomes)
        return outcomes

    def expire(self, now: float) -> list[Outcome]:
        """Give up registrations whose deadline passed while they waited, and forget what is over for long enough."""
        outcomes: list[Outcome] = []
        for place in self._queue.take_late(now):
            self._rooms.give_up(place, lambda own: RegistrationTimeout(own.room, NOT_IN_TIME), outcomes)
        self._rooms.expire(now, outcomes)
        return outcomes

    def _begin(self, room: int, later: Later) -> list[Outcome]:
        """A room's next life."""
        owner, sequence = later.said
        if later.goes:
            return self.release(owner, later.rank, room, sequence)
        if later.reason is None:
            return self.register(owner, later.rank, room, sequence, later.at)
        return self.fail(owner, later.rank, room, later.reason, sequence, later.at)


def _conflict(own: OwnRoom) -> RoomConflict:
    return RoomConflict(own.room, f"{own.rank.instance}/{own.rank.dp_rank}@{own.epoch}")
