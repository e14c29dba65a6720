"""What etcd answered a batch, and what that means for each room in it."""

from __future__ import annotations

from ..errors import RankLost, RegistrationTimeout, RoomConflict, StoreRejected
from ..wire.values import FAILED, TIMED_OUT, RoomValue
from .batch import Batch, EpochIsDead, Guard, Outcome, Registered
from .lease import Bucket, BucketPool
from .own_room import OwnRoom, State
from .records import KeyValue, Listing
from .registrations import Registrations
from .write_queue import WriteQueue


class Results:
    """Takes the answers.

    Args:
        rooms: which rooms there are.
        queue: where they go that are to be written again.
        pool: accounts for the rooms of each lease.
    """

    def __init__(self, rooms: Registrations, queue: WriteQueue, pool: BucketPool) -> None:
        self._rooms, self._queue, self._pool = rooms, queue, pool

    def confirm(self, batch: Batch, bucket: Bucket | None, revision: int, now: float) -> list[Outcome]:
        """The transaction happened at ``revision``."""
        self._queue.grow()
        outcomes: list[Outcome] = []
        alive = {rank: self._rooms.is_alive(rank, guard.epoch) for rank, guard in batch.guards.items()}
        for own in batch.rooms:
            if own.state is State.CREATING:
                assert bucket is not None
                self._note_created(own, alive[own.rank], revision, bucket.lease_id, now, outcomes)
            else:
                self._finish(own, now, outcomes)
        return outcomes

    def refuse(self, batch: Batch, error: StoreRejected) -> list[Outcome]:
        """etcd refused the batch as a whole: halve it until the culprit stands alone.

        A registration is rejected then. A release or a failure is not given up: nobody would say it again.
        """
        places = batch.places()
        if len(places) > 1:
            self._queue.shrink(batch)
            self._queue.requeue(batch)
            return []
        self._queue.restore()
        outcomes: list[Outcome] = []
        if places[0].state in (State.CREATING, State.EVICTING):
            self._rooms.give_up(places[0], lambda _: error, outcomes)
        else:
            self._queue.push(places[0])
        return outcomes

    def requeue(self, batch: Batch) -> None:
        """The batch was not sent."""
        self._queue.requeue(batch)

    def put_off(self, batch: Batch, until: float) -> None:
        """etcd did nothing of it: it is overloaded or full. What needs space is not tried again before ``until``."""
        self._queue.requeue(batch)
        self._queue.hold(until)

    def give_up(self, batch: Batch, now: float) -> list[Outcome]:
        """etcd stays unreachable, so nobody knows what became of the batch: answer what is overdue.

        What turns out to be written after all is failed, for decode may have been given it.
        """
        outcomes: list[Outcome] = []
        for own in batch.rooms:
            if own.waiters and own.deadline <= now:
                self._rooms.answer_error(own, RegistrationTimeout(own.room, "etcd does not answer"), outcomes)
                self._rooms.fail(own, TIMED_OUT)
        return outcomes

    def read_back(
        self, batch: Batch, bucket: Bucket | None, listing: Listing, is_dead: EpochIsDead, now: float
    ) -> list[Outcome]:
        """The transaction failed, or nobody knows: decide room by room from what etcd holds."""
        found = {kv.key: kv for kv in listing.kvs}
        broken = {rank for rank, guard in batch.guards.items() if not _holds(guard, found)}
        outcomes: list[Outcome] = []
        again: list[OwnRoom] = []
        self._uncount(batch, bucket, found, now)
        for own in batch.places():
            kv = found.get(own.key)
            if own.state is State.CREATING:
                missing = self._take_created(own, bucket, found, now, outcomes)
                if missing and all(one.reason and not one.enders and not one.waiters for one in missing):  # timed out
                    for one in missing:
                        self._rooms.drop(one, outcomes)
                elif missing and own.rank in broken:
                    self._queue.block(missing[0], batch.guards[own.rank])
                elif missing:
                    self._contest(missing, found, is_dead, again, outcomes)
            elif kv is not None and self._recognise(own, kv, now):
                again.append(own)
            elif kv is None or kv.create_revision != (own.evict_token if own.state is State.EVICTING else own.token):
                self._finish(own, now, outcomes)
            else:
                again.append(own)
        self._queue.push_first(again)
        return outcomes

    # --- parts

    def _recognise(self, own: OwnRoom, kv: KeyValue, now: float) -> bool:
        """Whether a room that is released, and was never registered here, is its rank's all the same."""
        value = RoomValue.from_json(kv.value)
        if own.state is not State.RELEASING or own.token or not value or value.dp_rank != own.rank.dp_rank:
            return False
        if not self._rooms.is_alive(own.rank, value.epoch):
            return False
        own.epoch, own.token, own.lease_id = value.epoch, kv.create_revision, kv.lease
        self._pool.adopted(kv.lease, now)
        return True

    def _uncount(self, batch: Batch, bucket: Bucket | None, found: dict[bytes, KeyValue], now: float) -> None:
        """New rooms that do not hang on the bucket after all."""
        if bucket is None:
            return
        for own in [own for own in batch.rooms if own.state is State.CREATING]:
            kv = found.get(own.key)
            if not (kv and kv.lease == bucket.lease_id and _is_mine(own, kv)):
                self._pool.removed(bucket.lease_id, now)

    def _take_created(
        self, place: OwnRoom, bucket: Bucket | None, found: dict[bytes, KeyValue], now: float, outcomes: list[Outcome]
    ) -> list[OwnRoom]:
        """Of what a place in the queue stands for, note what is there, and return what is not."""
        lot, together = place.lot, list(place.together)
        missing = [one for one in together if not _is_mine(one, found.get(one.key))]
        for one in together:
            if one not in missing:
                self._note_found(one, found[one.key], bucket, now, outcomes)
        if lot:
            lot.rooms = missing
        return missing

    def _note_found(
        self, own: OwnRoom, kv: KeyValue, bucket: Bucket | None, now: float, outcomes: list[Outcome]
    ) -> None:
        """It was written after all, by this agent or by that of a sibling."""
        own.born_failed = own.reason is not None and b'"failed"' in kv.value
        if kv.lease != (bucket.lease_id if bucket else 0):
            self._pool.adopted(kv.lease, now)
        alive = self._rooms.is_alive(own.rank, own.epoch)
        self._note_created(own, alive, kv.create_revision, kv.lease, now, outcomes)

    def _note_created(
        self, own: OwnRoom, alive: bool, token: int, lease_id: int, now: float, outcomes: list[Outcome]
    ) -> None:
        if not alive:
            self._rooms.reject([own], RankLost(own.room, own.epoch), outcomes)
            return
        for owner, sequence in own.waiters:
            outcomes.append(Registered(owner, own.room, token, lease_id, own.epoch, sequence))
        own.waiters = ()
        self._rooms.hold(own, token, lease_id, now, outcomes)

    def _finish(self, own: OwnRoom, now: float, outcomes: list[Outcome]) -> None:
        """A deletion, an eviction or a failure is done, or has become pointless."""
        if own.state is State.RELEASING:
            self._rooms.finish_releasing(own, now, outcomes)
        elif own.state is State.FAILING:
            self._rooms.finish_failing(own, now, outcomes)
        elif own.state is State.EVICTING:
            own.state = State.CREATING
            if own.lot:
                own.lot.evicting -= 1
            if not own.lot or not own.lot.evicting:
                self._queue.push_first(own.together[:1])

    def _contest(
        self,
        rooms: list[OwnRoom],
        found: dict[bytes, KeyValue],
        is_dead: EpochIsDead,
        again: list[OwnRoom],
        outcomes: list[Outcome],
    ) -> None:
        """A room, or what a lot still lacks: it is free, or a dead epoch's, or belongs to somebody."""
        evicted: list[OwnRoom] = []
        rooms[0].doubtful = False
        for own in [own for own in rooms if own.key in found]:
            kv = found[own.key]
            value = RoomValue.from_json(kv.value)
            over = value is not None and value.state == FAILED  # a failed room is anybody's
            dead = over or (is_dead(own.rank.instance, value, kv) if value else False)
            if dead is None:
                rooms[0].doubtful = True
                self._queue.push(rooms[0])
                return
            if not dead:
                holder = f"{own.rank.instance}/{value.dp_rank}@{value.epoch}" if value else f"{own.rank.instance}/?"
                self._give_up_taken(own, RoomConflict(own.room, holder), outcomes)
                return
            own.evict_token = kv.create_revision
            evicted.append(own)
        for own in evicted:
            own.state = State.EVICTING
            if own.lot:
                own.lot.evicting += 1
        again.extend(evicted or rooms[:1])

    def _give_up_taken(self, own: OwnRoom, conflict: RoomConflict, outcomes: list[Outcome]) -> None:
        self._rooms.give_up(own, lambda _: conflict, outcomes, owned=True)


def _is_mine(own: OwnRoom, kv: KeyValue | None) -> bool:
    value = RoomValue.from_json(kv.value) if kv else None
    return value is not None and value.dp_rank == own.rank.dp_rank and value.epoch == own.epoch


def _holds(guard: Guard, found: dict[bytes, KeyValue]) -> bool:
    return all(
        (found[compare.key].create_revision if compare.key in found else 0) == compare.create_revision
        for compare in guard.compares
    )
