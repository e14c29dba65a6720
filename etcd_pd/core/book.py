"""What to write next: registrations, releases and failures of rooms, folded into flat transactions.

Laws: at most one operation per key among all batches in flight; whoever asked for a room is answered exactly
once; a room is written only under a guard that its rank's epoch lives; an outcome that is unknown is read back.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Sequence

from ..errors import AgentBusy, EtcdPDError, RankLost, RegistrationTimeout, RoomConflict, StoreRejected
from ..wire.values import FAILED, TIMED_OUT, RoomValue
from .batch import (
    Batch,
    Durable,
    EpochIsDead,
    Guard,
    Job,
    Later,
    Lot,
    Outcome,
    OwnRoom,
    RankRef,
    Registered,
    Rejected,
    Said,
)
from .keys import Keys
from .lease import Bucket, BucketPool
from .records import MAX_TXN_OPS, KeyValue, Listing

#: Why a registration is given up that waited, and was never sent.
NOT_IN_TIME = "etcd took no write in time"


class RoomBook:
    """All rooms of the ranks that this agent serves, and the queue of what etcd must be told of them.

    Args:
        keys: the key layout.
        pool: bucket leases; accounted for here, granted and revoked by the caller.
        guard_of: the live guard of a rank, None while it has none.
        max_rooms: most rooms in a batch.
        max_queue: most rooms that may wait for etcd.
        registration_timeout: seconds that a registration may take.
        tombstone_seconds: how long a room is remembered that was released, or failed: as long as its lease may live, or
            a failed room that its rank registers again is taken for the one that still stands.
        release_delay: how long a release may wait for a transaction to ride on, seconds. Nobody waits for it, and a
            transaction of its own costs etcd, and every agent that watches, as much as a registration.
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
    ) -> None:
        self._keys, self._pool, self._guard_of = keys, pool, guard_of
        self._max_rooms = self._limit = max_rooms
        self._max_queue = max_queue
        self._timeout, self._tombstone_seconds = registration_timeout, tombstone_seconds
        self._rooms: dict[tuple[str, int], OwnRoom] = {}
        self._by_rank: defaultdict[RankRef, set[int]] = defaultdict(set)
        self._by_lease: dict[int, list[OwnRoom]] = {}  # also those that are over since
        self._queue: deque[OwnRoom] = deque()
        self._releases: deque[OwnRoom] = deque()
        self._releases_since: float | None = None
        self._release_delay = release_delay
        self._blocked: dict[RankRef, tuple[int, deque[OwnRoom]]] = {}  # with the epoch that turned out dead
        self._tombstones: deque[tuple[float, OwnRoom]] = deque()
        self._followed: dict[OwnRoom, None] = {}  # rooms whose next life was asked for already

    def __len__(self) -> int:
        """How many rooms wait to be written."""
        waiting = len(self._queue) + len(self._releases)
        if not self._blocked:
            return waiting
        return waiting + sum(len(rooms) for _, rooms in self._blocked.values())

    def is_full(self) -> bool:
        """Whether rooms for a whole batch wait to be registered."""
        return len(self._queue) >= self._limit

    def live(self, rank: RankRef) -> int:
        """How many rooms of a rank are registered or being so."""
        return len(self._by_rank.get(rank, ()))

    def hurry(self) -> None:
        """Let no release wait for a transaction to ride on: there will not be many more."""
        self._release_delay = 0.0

    # --- what engines ask for

    def register(self, owner: object, rank: RankRef, room: int, sequence: int, now: float) -> list[Outcome]:
        """A rank took a room. Siblings of the rank that say the same are folded into one write.

        A room that is released or failed, but not gone yet, is registered again once it is.
        """
        own = self._standing(owner, rank, room)
        if own is None:
            if len(self) >= self._max_queue:
                return [Rejected(owner, room, AgentBusy(self._max_queue), sequence)]
            self._queue.append(self._new(rank, room, now, (owner, sequence)))
            return []
        if self._is_ending(own, owner, rank):
            self._do_later(own, Later(Job.CREATE, rank, (owner, sequence), "", now))
            return []
        return self._join(own, owner, rank, sequence)

    def register_again(self, owner: object, rank: RankRef, room: int, sequence: int, now: float) -> list[Outcome]:
        """An engine that may have missed the answer repeats a registration: it is no other life of the room."""
        own = self._rooms.get((rank.instance, room))
        if own is None:
            return self.register(owner, rank, room, sequence, now)
        if (owner, sequence) in own.waiters or any(later.said == (owner, sequence) for later in own.later):
            return []
        return self._join(own, owner, rank, sequence)

    def _join(self, own: OwnRoom, owner: object, rank: RankRef, sequence: int) -> list[Outcome]:
        if own.rank != rank:
            return [Rejected(owner, own.room, _conflict(own), sequence)]
        if owner not in own.owners:
            own.owners += (owner,)
        if own.token:  # also a tombstone's: a late sibling must not bring the room back
            return [Registered(owner, own.room, own.token, own.lease_id, own.epoch, sequence)]
        own.waiters += ((owner, sequence),)
        return []

    def register_lot(self, owner: object, rank: RankRef, rooms: Sequence[tuple[int, int]], now: float) -> list[Outcome]:
        """A rank took rooms that make sense only together. Those that it has already are answered as ever.

        Args:
            rooms: each with the number of what the engine said of it.
        """
        standing = {room: self._standing(owner, rank, room) for room, _ in rooms}
        conflicts = [_conflict(own) for own in standing.values() if own and own.rank != rank]
        refusal: EtcdPDError | None = conflicts[0] if conflicts else None
        if not refusal and len(self) + len(rooms) > self._max_queue:
            refusal = AgentBusy(self._max_queue)
        if refusal:
            return [Rejected(owner, room, refusal, sequence) for room, sequence in rooms]
        lot = Lot([self._new(rank, room, now, (owner, said)) for room, said in rooms if standing[room] is None])
        for own in lot.rooms:
            own.lot = lot
        self._queue.extend(lot.rooms[:1])
        known = [self.register(owner, rank, room, sequence, now) for room, sequence in rooms if standing[room]]
        return [outcome for outcomes in known for outcome in outcomes]

    def _standing(self, owner: object, rank: RankRef, room: int) -> OwnRoom | None:
        """What is known of a room, unless that is past."""
        own = self._rooms.get((rank.instance, room))
        return None if own is None or self._is_past(own, owner, rank) else own

    def _is_past(self, own: OwnRoom, owner: object, rank: RankRef) -> bool:
        """Whether a room is what is left of an earlier use, which a new one (of its rank: by ``owner``) replaces."""
        if own.room in self._by_rank.get(own.rank, ()):
            return False
        if not self._is_alive(own.rank, own.epoch):
            return True  # of an earlier life of its rank
        return own.released and (own.rank != rank or owner in own.owners)

    def _is_ending(self, own: OwnRoom, owner: object, rank: RankRef) -> bool:
        """Whether who registers a room now can only mean its next life."""
        ends = own.reason is not None or Job.DELETE in (own.job, own.follow_up)
        of_dead_epoch = own.token != 0 and not self._is_alive(own.rank, own.epoch)
        return ends and (own.rank != rank or owner in own.owners or of_dead_epoch)

    def _do_later(self, own: OwnRoom, later: Later) -> None:
        own.later += (later,)
        self._followed[own] = None
        self._releases_since = -math.inf  # somebody waits for its release after all
        if own.job is None and not own.released:  # failed, and nothing else takes its key away
            self._ask(own, Job.DELETE)

    def _cancel_later(
        self, which: Callable[[Later], bool], reason: str, outcomes: list[Outcome], room: OwnRoom | None = None
    ) -> None:
        for own in self._followed if room is None else (room,):
            outcomes.extend([_given_up(own, later, reason) for later in own.later if which(later)])
            own.later = tuple(later for later in own.later if not which(later))

    def release(self, owner: object, rank: RankRef, room: int, sequence: int) -> list[Outcome]:
        """The KV cache was handed over: delete the key. Unknown or released rooms are no error."""
        own = self._rooms.get((rank.instance, room))
        if own is None:
            return [Durable(owner, sequence)]
        outcomes: list[Outcome] = []
        if own.later:  # what asked for the room's next life gives that up, too
            self._cancel_later(lambda later: later.said[0] == owner, "it was released before", outcomes, own)
        if own.rank != rank or own.released:
            return [*outcomes, Durable(owner, sequence)]
        self._note_end(own, owner, sequence)
        self._ask(own, Job.DELETE)
        return outcomes

    def fail(self, owner: object, rank: RankRef, room: int, reason: str, sequence: int, now: float) -> list[Outcome]:
        """The room will not come: tell those who wait for it, also where it was never registered."""
        own = self._rooms.get((rank.instance, room))
        if own is None or self._is_past(own, None, rank):  # what was released is over, whoever fails it besides
            if len(self) < self._max_queue:  # else it is not acknowledged, and said again to the next agent
                self._queue.append(self._failed(rank, room, reason, now, (owner, sequence)))
        elif any(later.said[0] == owner for later in own.later):
            self._do_later(own, Later(Job.FAIL, rank, (owner, sequence), reason, now))
        elif own.rank != rank or own.released or (own.reason is not None and own.job is None):
            return [Durable(owner, sequence)]
        else:
            self._note_end(own, owner, sequence)
            self._fail(own, reason)
        return []

    def _note_end(self, own: OwnRoom, owner: object, sequence: int) -> None:
        if owner not in own.owners:
            own.owners += (owner,)  # what it registers from now on is the room's next life
        own.enders += ((owner, sequence),)

    def _fail(self, own: OwnRoom, reason: str) -> None:
        if own.reason is None:
            own.reason = reason
            self._ask(own, Job.FAIL)

    def adopt(self, owner: object, rank: RankRef, epoch: int, room: int, token: int, lease_id: int, now: float) -> None:
        """An engine says after a restart of the agent that the room stands in etcd already."""
        if (rank.instance, room) not in self._rooms:
            key = self._keys.room(rank.instance, room)
            own = OwnRoom(rank, room, key, 0.0, None, epoch, token, lease_id, owners=(owner,))
            self._rooms[rank.instance, room] = own
            self._by_rank[rank].add(room)
            self._by_lease.setdefault(lease_id, []).append(own)
            self._pool.adopted(lease_id, now)

    def rank_ended(self, rank: RankRef, *, gone: bool) -> list[Outcome]:
        """The rank's epoch ended: its written rooms are dead; queued ones wait for its next epoch, or go with it."""
        outcomes: list[Outcome] = []
        if gone:
            self._cancel_later(lambda later: later.rank == rank, "the rank is gone", outcomes)
        for room in list(self._by_rank.get(rank, ())):
            own = self._rooms[rank.instance, room]
            if own.job is not Job.DELETE and (own.token or gone):  # what was released is deleted all the same
                self._reject_one(own, RankLost(room, own.epoch), outcomes)
        if gone:
            self._blocked.pop(rank, None)
            self._queue = deque(own for own in self._queue if own.rank != rank or own.job is Job.DELETE)
        return outcomes

    def _new(self, rank: RankRef, room: int, now: float, said: Said) -> OwnRoom:
        key = self._keys.room(rank.instance, room)
        own = OwnRoom(rank, room, key, now + self._timeout, asked_at=now, waiters=(said,), owners=said[:1])
        self._rooms[rank.instance, room] = own
        self._by_rank[rank].add(room)
        return own

    def _failed(self, rank: RankRef, room: int, reason: str, now: float, said: Said) -> OwnRoom:
        own = self._new(rank, room, now, said)
        own.reason = reason
        own.waiters, own.enders = (), (said,)
        return own

    def _ask(self, own: OwnRoom, job: Job) -> None:
        if own.job is None:
            own.job = job
            self._by_rank[own.rank].add(own.room)  # also where it was over already
            (self._releases if job is Job.DELETE and not own.later else self._queue).append(own)
        elif own.job is not Job.DELETE and own.follow_up is not Job.DELETE:
            own.follow_up = job

    # --- what goes to etcd

    def take(self, now: float) -> Batch | None:
        """The next batch, None where nothing can be written now."""
        self._unblock()
        if self._releases and self._releases_are_due(now):
            self._queue.extend(self._releases)
            self._releases.clear()
        rooms: list[OwnRoom] = []
        guards: dict[RankRef, Guard] = {}
        creates, compares = 0, 0
        while self._queue and len(rooms) < self._limit and compares < MAX_TXN_OPS:
            own = self._queue.popleft()
            if own.job is None:
                continue  # dropped meanwhile
            together = own.together
            if rooms and len(rooms) + len(together) > self._limit:
                self._queue.appendleft(own)
                break
            if own.job is Job.CREATE:
                guard = guards.get(own.rank) or self._guard_of(own.rank)
                if guard is None:
                    self._block(own, 0)
                    continue
                extra = 0 if own.rank in guards else len(guard.compares)
                if compares + extra + len(together) > MAX_TXN_OPS:
                    self._queue.appendleft(own)
                    break
                guards[own.rank] = guard
                for one in together:
                    one.epoch = guard.epoch
                compares += extra
                creates += len(together)
            rooms.extend(together)
            compares += len(together)
        while rooms and self._releases and len(rooms) < self._limit and compares < MAX_TXN_OPS:
            own = self._releases.popleft()
            if own.job is not None:
                rooms.append(own)
                compares += 1
        if not self._releases:
            self._releases_since = None
        return Batch(rooms, guards, creates) if rooms else None

    def _releases_are_due(self, now: float) -> bool:
        if self._releases_since is None:
            self._releases_since = now
        return now - self._releases_since >= self._release_delay

    def _block(self, own: OwnRoom, dead_epoch: int) -> None:
        avoid, rooms = self._blocked.get(own.rank, (0, deque()))
        rooms.append(own)
        self._blocked[own.rank] = (max(avoid, dead_epoch), rooms)

    def _unblock(self) -> None:
        for rank in list(self._blocked):
            guard = self._guard_of(rank)
            avoid, rooms = self._blocked[rank]
            if guard and guard.epoch != avoid:
                del self._blocked[rank]
                self._queue.extendleft(reversed(rooms))

    def requeue(self, batch: Batch) -> None:
        """Nothing of the batch was written, and nothing speaks against it: first in the queue again."""
        self._queue.extendleft(reversed(batch.places()))

    def refused(self, batch: Batch, error: StoreRejected) -> list[Outcome]:
        """etcd refused the batch as a whole: halve it until the culprit stands alone."""
        places = batch.places()
        if len(places) > 1:
            self._limit = max(1, len(batch.rooms) // 2)
            self.requeue(batch)
            return []
        self._limit = self._max_rooms
        return self._reject(places[0].lot.rooms if places[0].lot else places, error)

    def give_up(self, batch: Batch, now: float) -> list[Outcome]:
        """etcd stays unreachable, so nobody knows what became of the batch: answer what is overdue.

        What turns out to be written after all is failed, for decode may have been given it.
        """
        outcomes: list[Outcome] = []
        for own in batch.rooms:
            if own.waiters and own.deadline <= now:
                self._answer_error(own, RegistrationTimeout(own.room, "etcd does not answer"), outcomes)
                self._fail(own, TIMED_OUT)
        return outcomes

    def expire(self, now: float) -> list[Outcome]:
        """Give up registrations whose deadline passed while they waited.

        Tombstones that are old enough, and rooms whose lease has ended, are forgotten.
        """
        outcomes: list[Outcome] = []
        for queue in (self._queue, *(rooms for _, rooms in self._blocked.values())):
            late = [own for own in queue if own.job is Job.CREATE and own.deadline <= now]
            for own in [own for own in late if own.reason is not None]:  # the failure goes on waiting
                self._answer_error(own, RegistrationTimeout(own.room, NOT_IN_TIME), outcomes)
            over = {own for own in late if own.reason is None}
            if not over:
                continue
            kept = [own for own in queue if own not in over]
            queue.clear()
            queue.extend(kept)
            for own in [own for place in late if place in over for own in place.together]:
                self._reject_one(own, RegistrationTimeout(own.room, NOT_IN_TIME), outcomes)
        self._cancel_later(
            lambda later: later.job is Job.CREATE and later.at + self._timeout <= now,
            "its last life has not ended in time",
            outcomes,
        )
        while self._tombstones and self._tombstones[0][0] <= now:
            _, own = self._tombstones.popleft()
            if self._rooms.get((own.rank.instance, own.room)) is own and own.job is None:
                del self._rooms[own.rank.instance, own.room]
        for lease_id in [lease_id for lease_id in self._by_lease if lease_id not in self._pool]:
            for own in self._by_lease.pop(lease_id):
                if own.lease_id == lease_id and own.job is None and not own.released:
                    self._drop(own, outcomes)
        return outcomes

    # --- what etcd answered

    def succeeded(self, batch: Batch, bucket: Bucket | None, revision: int, now: float) -> list[Outcome]:
        """The transaction happened at ``revision``."""
        self._limit = min(self._max_rooms, self._limit * 2)
        outcomes: list[Outcome] = []
        alive = {rank: self._is_alive(rank, guard.epoch) for rank, guard in batch.guards.items()}
        for own in batch.rooms:
            if own.job is Job.CREATE:
                assert bucket is not None
                self._written(own, alive[own.rank], revision, bucket.lease_id, now, outcomes)
            else:
                self._finish(own, now, outcomes)
        return outcomes

    def examined(
        self, batch: Batch, bucket: Bucket | None, listing: Listing, is_dead: EpochIsDead, now: float
    ) -> list[Outcome]:
        """The transaction failed, or nobody knows: decide room by room from what etcd holds."""
        found = {kv.key: kv for kv in listing.kvs}
        broken = {rank for rank, guard in batch.guards.items() if not _holds(guard, found)}
        outcomes: list[Outcome] = []
        again: list[OwnRoom] = []
        for own in batch.rooms:
            if own.job is Job.CREATE and bucket:
                kv = found.get(own.key)
                if not (kv and kv.lease == bucket.lease_id and self._is_mine(own, kv)):
                    self._pool.removed(bucket.lease_id, now)
        for own in batch.places():
            kv = found.get(own.key)
            if own.job is Job.CREATE:
                lot = own.lot  # which it leaves where it is found
                missing = [one for one in own.together if not self._is_mine(one, found.get(one.key))]
                for one in [one for one in own.together if one not in missing]:
                    self._found(one, found[one.key], bucket, now, outcomes)
                if lot:
                    lot.rooms = missing
                if missing and all(one.reason and not one.enders and not one.waiters for one in missing):  # timed out
                    for one in missing:
                        self._drop(one, outcomes)
                elif missing and own.rank in broken:
                    self._block(missing[0], batch.guards[own.rank].epoch)
                elif missing:
                    outcomes.extend(self._contested(missing, found, is_dead, again))
            elif kv is None or kv.create_revision != (own.evict_token if own.job is Job.EVICT else own.token):
                self._finish(own, now, outcomes)
            else:
                again.append(own)
        self._queue.extendleft(reversed(again))
        return outcomes

    def _found(self, own: OwnRoom, kv: KeyValue, bucket: Bucket | None, now: float, outcomes: list[Outcome]) -> None:
        """It was written after all, by this agent or by that of a sibling."""
        if own.reason is not None and b'"failed"' not in kv.value:
            own.follow_up = own.follow_up or Job.FAIL
        if kv.lease != (bucket.lease_id if bucket else 0):
            self._pool.adopted(kv.lease, now)
        self._written(own, self._is_alive(own.rank, own.epoch), kv.create_revision, kv.lease, now, outcomes)

    def _is_alive(self, rank: RankRef, epoch: int) -> bool:
        guard = self._guard_of(rank)
        return guard is not None and guard.epoch == epoch

    def _is_mine(self, own: OwnRoom, kv: KeyValue | None) -> bool:
        value = RoomValue.from_json(kv.value) if kv else None
        return value is not None and value.dp_rank == own.rank.dp_rank and value.epoch == own.epoch

    def _contested(
        self, rooms: list[OwnRoom], found: dict[bytes, KeyValue], is_dead: EpochIsDead, again: list[OwnRoom]
    ) -> list[Outcome]:
        """A room, or what a lot still lacks: it is free, or a dead epoch's, or belongs to somebody."""
        evicted: list[OwnRoom] = []
        for own in [own for own in rooms if own.key in found]:
            kv = found[own.key]
            value = RoomValue.from_json(kv.value)
            over = value is not None and value.state == FAILED  # a failed room is anybody's
            dead = over or (is_dead(own.rank.instance, value, kv) if value else False)
            if dead is None:  # the view has not come that far
                again.append(rooms[0])
                return []
            if not dead:
                holder = f"{own.rank.instance}/{value.dp_rank}@{value.epoch}" if value else f"{own.rank.instance}/?"
                return self._reject(rooms, RoomConflict(own.room, holder))
            own.evict_token = kv.create_revision
            evicted.append(own)
        for own in evicted:
            own.job = Job.EVICT
            if own.lot:
                own.lot.evicting += 1
        again.extend(evicted or rooms[:1])
        return []

    def _written(
        self, own: OwnRoom, alive: bool, token: int, lease_id: int, now: float, outcomes: list[Outcome]
    ) -> None:
        if not alive:
            self._reject_one(own, RankLost(own.room, own.epoch), outcomes)
            return
        own.token, own.lease_id, own.job, own.lot = token, lease_id, None, None
        self._by_lease.setdefault(lease_id, []).append(own)
        for owner, sequence in own.waiters:
            outcomes.append(Registered(owner, own.room, token, lease_id, own.epoch, sequence))
        own.waiters = ()
        if own.reason is not None:
            self._retire(own, now)
        self._follow_up(own, outcomes)

    def _finish(self, own: OwnRoom, now: float, outcomes: list[Outcome]) -> None:
        """A delete, an eviction or a failure is done, or has become pointless."""
        if own.job is Job.EVICT:
            own.job = Job.CREATE
            if own.lot:
                own.lot.evicting -= 1
            if not own.lot or not own.lot.evicting:
                self._queue.appendleft(own.together[0])
            return
        done, own.job = own.job, None
        if done is Job.DELETE:
            self._pool.removed(own.lease_id, now)
            own.released = True
            self._retire(own, now)
            self._settle(own, outcomes)
        else:
            if done is Job.FAIL:
                self._retire(own, now)
            self._follow_up(own, outcomes)

    def _retire(self, own: OwnRoom, now: float) -> None:
        """The room is over for its rank: released, or failed for all who look at its key."""
        self._by_rank[own.rank].discard(own.room)
        self._tombstones.append((now + self._tombstone_seconds, own))

    def _follow_up(self, own: OwnRoom, outcomes: list[Outcome]) -> None:
        if own.follow_up:
            own.job, own.follow_up = own.follow_up, None
            self._by_rank[own.rank].add(own.room)  # it is not over while there is something to write
            self._queue.append(own)
            return
        self._acknowledge(own, outcomes)
        if own.later:
            self._ask(own, Job.DELETE)

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
        for job, rank, (owner, sequence), reason, at in own.later:
            if job is Job.CREATE:
                outcomes.extend(self.register(owner, rank, own.room, sequence, at))
            else:
                outcomes.extend(self.fail(owner, rank, own.room, reason, sequence, at))
        own.later = ()

    def _answer_error(self, own: OwnRoom, error: EtcdPDError, outcomes: list[Outcome]) -> None:
        outcomes.extend([Rejected(owner, own.room, error, sequence) for owner, sequence in own.waiters])
        own.waiters = ()

    def _reject(self, rooms: list[OwnRoom], error: EtcdPDError) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for own in rooms:
            self._reject_one(own, error, outcomes)
        return outcomes

    def _reject_one(self, own: OwnRoom, error: EtcdPDError, outcomes: list[Outcome]) -> None:
        self._answer_error(own, error, outcomes)
        self._drop(own, outcomes)

    def _drop(self, own: OwnRoom, outcomes: list[Outcome]) -> None:
        if self._rooms.get((own.rank.instance, own.room)) is own:
            del self._rooms[own.rank.instance, own.room]
            self._by_rank[own.rank].discard(own.room)
        own.job = own.follow_up = None
        self._settle(own, outcomes)


def _conflict(own: OwnRoom) -> RoomConflict:
    return RoomConflict(own.room, f"{own.rank.instance}/{own.rank.dp_rank}@{own.epoch}")


def _given_up(own: OwnRoom, later: Later, reason: str) -> Outcome:
    owner, sequence = later.said
    if later.job is Job.CREATE:
        return Rejected(owner, own.room, RegistrationTimeout(own.room, reason), sequence)
    return Durable(owner, sequence)


def _holds(guard: Guard, found: dict[bytes, KeyValue]) -> bool:
    return all(
        (found[compare.key].create_revision if compare.key in found else 0) == compare.create_revision
        for compare in guard.compares
    )
