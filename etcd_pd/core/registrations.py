"""All rooms of the ranks that this agent serves, and how each goes from one state to the next."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable

from ..errors import EtcdPDError, RegistrationTimeout
from .batch import Durable, Outcome, Rejected
from .keys import Keys
from .lease import BucketPool
from .own_room import NEXT, OVER, Later, OwnRoom, RankRef, Said, State
from .write_queue import WriteQueue


class Registrations:
    """The rooms, by number, rank and lease.

    Args:
        keys: the key layout.
        pool: the leases that they hang on.
        queue: where they wait to be written.
        is_alive: whether an epoch of a rank lives.
        timeout: seconds that a registration may take.
        tombstone_seconds: how long a room is remembered that was released, or failed: as long as its lease may live, or
            a failed room that its rank registers again is taken for the one that still stands.
        begin: begins a room's next life.
        place_of: the place in its rank's topology that an owner speaks for.
    """

    def __init__(
        self,
        keys: Keys,
        pool: BucketPool,
        queue: WriteQueue,
        is_alive: Callable[[RankRef, int], bool],
        timeout: float,
        tombstone_seconds: float,
        begin: Callable[[int, Later], list[Outcome]],
        place_of: Callable[[object], object],
    ) -> None:
        self._keys, self._pool, self._queue, self.is_alive, self._begin = keys, pool, queue, is_alive, begin
        self._timeout, self._tombstone_seconds, self._place_of = timeout, tombstone_seconds, place_of
        self._rooms: dict[tuple[str, int], OwnRoom] = {}
        self._by_rank: defaultdict[RankRef, set[int]] = defaultdict(set)  # those that are not over
        self._by_lease: dict[int, list[OwnRoom]] = {}  # also those that are over since
        self._tombstones: deque[tuple[float, OwnRoom]] = deque()
        self._followed: dict[OwnRoom, None] = {}  # rooms of whose next life something was said

    def __len__(self) -> int:
        """How many rooms are remembered."""
        return len(self._rooms)

    # --- finding

    def find(self, instance: str, room: int) -> OwnRoom | None:
        """What is known of a room."""
        return self._rooms.get((instance, room))

    def find_standing(self, rank: RankRef, room: int, said: Said | None) -> OwnRoom | None:
        """What is known of a room, unless that is past."""
        own = self._rooms.get((rank.instance, room))
        return None if own is None or self.is_past(own, rank, said) else own

    def is_past(self, own: OwnRoom, rank: RankRef, said: Said | None) -> bool:
        """Whether a room is what is left of an earlier use, which a new one (of its rank: by ``said``) replaces."""
        if own.state not in OVER:
            return False
        if not self.is_alive(own.rank, own.epoch):
            return True  # of an earlier life of its rank
        return own.state is State.RELEASED and (own.rank != rank or (said is not None and self.is_next(own, said)))

    def is_next(self, own: OwnRoom, said: Said) -> bool:
        """Whether this comes after what its place said of this life of the room, and is no repetition of that."""
        place = self._place_of(said[0])
        return any(self._place_of(last[0]) == place for last in own.spoken) and not self.is_repeated(own, said)

    def is_repeated(self, own: OwnRoom, said: Said) -> bool:
        """Whether the same process said this, or more, of this life of the room or of one before it."""
        owner, number = said
        return any(number <= last and owner == one for one, last in own.spoken)

    def follows(self, own: OwnRoom, owner: object) -> bool:
        """Whether the place that an owner speaks for has said something of the room's next life."""
        return bool(own.later) and self._place_of(owner) in [self._place_of(later.said[0]) for later in own.later]

    def note_said(self, own: OwnRoom, said: Said) -> None:
        """Something is said of this life of the room, and not again."""
        if len(own.spoken) == 1 and own.spoken[0][0] == said[0]:  # almost always
            own.spoken = (said,)
            return
        place = self._place_of(said[0])
        own.spoken = (*(last for last in own.spoken if self._place_of(last[0]) != place), said)

    def of_rank(self, rank: RankRef) -> list[OwnRoom]:
        """The rooms of a rank that are not over."""
        return [self._rooms[rank.instance, room] for room in self._by_rank.get(rank, ())]

    def count(self, rank: RankRef) -> int:
        """How many those are."""
        return len(self._by_rank.get(rank, ()))

    # --- beginning

    def add(self, rank: RankRef, room: int, now: float, said: Said) -> OwnRoom:
        """A room to be registered; it is not queued yet."""
        key = self._keys.room(rank.instance, room)
        return self._enter(OwnRoom(rank, room, key, now + self._timeout, asked_at=now, waiters=(said,), spoken=(said,)))

    def adopt(self, owner: object, rank: RankRef, epoch: int, room: int, token: int, lease_id: int, now: float) -> None:
        """A room that an earlier agent registered."""
        key = self._keys.room(rank.instance, room)
        own = self._enter(OwnRoom(rank, room, key, 0.0, State.HELD, epoch, token, lease_id, spoken=((owner, 0),)))
        self._by_lease.setdefault(lease_id, []).append(own)
        self._pool.adopted(lease_id, now)

    def _enter(self, own: OwnRoom) -> OwnRoom:
        self._rooms[own.rank.instance, own.room] = own
        self._by_rank[own.rank].add(own.room)
        return own

    # --- what is wanted of a room

    def note_end(self, own: OwnRoom, said: Said) -> None:
        """Who ended a room is to know when that is durable; what it registers from now on is the room's next life."""
        self.note_said(own, said)
        own.enders += (said,)

    def release(self, own: OwnRoom) -> None:
        """Its key is to go."""
        own.goes = True
        self._advance(own)

    def fail(self, own: OwnRoom, reason: str) -> None:
        """Its key is to say that it failed, unless it was ended already."""
        if not own.is_ending:
            own.reason = reason
            self._advance(own)

    def postpone(self, own: OwnRoom, later: Later) -> None:
        """Something was said of its next life, which begins when it is gone."""
        own.later += (later,)
        self._followed[own] = None
        self._queue.release_now()
        self.release(own)

    def cancel_later(self, which: Callable[[Later], bool], reason: str, outcomes: list[Outcome]) -> None:
        """Give up next lives."""
        for own in self._followed:
            outcomes.extend([_given_up(own, later, reason) for later in own.later if which(later)])
            own.later = tuple(later for later in own.later if not which(later))

    def _advance(self, own: OwnRoom) -> bool:
        """Begin what is wanted next, if nothing is under way."""
        state = NEXT.get((own.state, own.reason is not None, own.goes))
        if state is None:
            return False
        own.state = state
        self._by_rank[own.rank].add(own.room)  # it is not over while there is something to write
        self._queue.push(own)
        return True

    # --- what became of it

    def hold(self, own: OwnRoom, token: int, lease_id: int, now: float, outcomes: list[Outcome]) -> None:
        """Its key was created."""
        own.token, own.lease_id, own.lot, own.doubtful = token, lease_id, None, False
        self._by_lease.setdefault(lease_id, []).append(own)
        own.state = State.HELD
        if own.born_failed:
            self._retire(own, State.FAILED, now)
        if own.is_ending:
            self._go_on(own, outcomes)

    def finish_failing(self, own: OwnRoom, now: float, outcomes: list[Outcome]) -> None:
        """Its key says that it failed, or is gone."""
        self._retire(own, State.FAILED, now)
        self._go_on(own, outcomes)

    def finish_releasing(self, own: OwnRoom, now: float, outcomes: list[Outcome]) -> None:
        """Its key is gone."""
        if not own.token:  # and nothing was ever known of it here: nothing is to be remembered
            self.drop(own, outcomes)
            return
        self._pool.removed(own.lease_id, now)
        self._retire(own, State.RELEASED, now)
        self._settle(own, outcomes)

    def reject(self, rooms: Iterable[OwnRoom], error: EtcdPDError, outcomes: list[Outcome]) -> None:
        """Nothing comes of these rooms."""
        for own in rooms:
            self.answer_error(own, error, outcomes)
            self.drop(own, outcomes)

    def give_up(
        self,
        place: OwnRoom,
        error_of: Callable[[OwnRoom], EtcdPDError],
        outcomes: list[Outcome],
        *,
        owned: bool = False,
    ) -> None:
        """Nobody gets what a place in the queue stands for.

        A room that was failed meanwhile is written as failed all the same, alone: nobody would say it again.

        Args:
            error_of: what those who asked for a room are answered.
            owned: somebody else has the room that the place is named after.
        """
        for own in list(place.lot.rooms if place.lot else [place]):
            own.lot = None
            if own.reason is None or (owned and own is place):
                self.reject([own], error_of(own), outcomes)
                continue
            self.answer_error(own, error_of(own), outcomes)
            if own is place or own.state is State.CREATING:  # else it stands in the queue already
                self._queue.push(own)

    def answer_error(self, own: OwnRoom, error: EtcdPDError, outcomes: list[Outcome]) -> None:
        """Answer those who wait for its registration."""
        outcomes.extend([Rejected(owner, own.room, error, sequence) for owner, sequence in own.waiters])
        own.waiters = ()

    def drop(self, own: OwnRoom, outcomes: list[Outcome]) -> None:
        """Forget a room."""
        if self._rooms.get((own.rank.instance, own.room)) is own:
            del self._rooms[own.rank.instance, own.room]
            self._by_rank[own.rank].discard(own.room)
        own.state = State.DROPPED
        self._settle(own, outcomes)

    def _go_on(self, own: OwnRoom, outcomes: list[Outcome]) -> None:
        if not self._advance(own):
            self._acknowledge(own, outcomes)

    def _retire(self, own: OwnRoom, state: State, now: float) -> None:
        own.state = state
        self._by_rank[own.rank].discard(own.room)
        self._tombstones.append((now + self._tombstone_seconds, own))

    def _acknowledge(self, own: OwnRoom, outcomes: list[Outcome]) -> None:
        if own.enders:
            outcomes.extend([Durable(*said) for said in own.enders])
            own.enders = ()

    def _settle(self, own: OwnRoom, outcomes: list[Outcome]) -> None:
        """The room is gone: what was said of its next life counts now."""
        self._acknowledge(own, outcomes)
        if not self._followed or own not in self._followed:
            return
        del self._followed[own]
        said, own.later = own.later, ()
        for later in said:
            outcomes.extend(self._begin(own.room, later))

    # --- forgetting

    def expire(self, now: float, outcomes: list[Outcome]) -> None:
        """Forget tombstones that are old enough, rooms whose lease has ended, and next lives that took too long."""
        self.cancel_later(
            lambda later: later.registers and later.at + self._timeout <= now,
            "its last life has not ended in time",
            outcomes,
        )
        while self._tombstones and self._tombstones[0][0] <= now:
            _, own = self._tombstones.popleft()
            if self.find(own.rank.instance, own.room) is own and own.state in OVER:
                del self._rooms[own.rank.instance, own.room]
        for lease_id in [lease_id for lease_id in self._by_lease if lease_id not in self._pool]:
            for own in self._by_lease.pop(lease_id):
                if own.lease_id == lease_id and own.state in (State.HELD, State.FAILED):
                    self.drop(own, outcomes)


def _given_up(own: OwnRoom, later: Later, reason: str) -> Outcome:
    owner, sequence = later.said
    if later.registers:
        return Rejected(owner, own.room, RegistrationTimeout(own.room, reason), sequence)
    return Durable(owner, sequence)
