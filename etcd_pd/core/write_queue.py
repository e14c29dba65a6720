"""In which order rooms go to etcd, and how many in one transaction."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable

from .batch import Batch, Guard
from .own_room import OwnRoom, RankRef, State
from .records import MAX_TXN_OPS


class WriteQueue:
    """Rooms that wait to be written.

    Args:
        guard_of: the live guard of a rank, None while it has none.
        max_rooms: most rooms in a batch.
        release_delay: how long a release may wait for a transaction to ride on, seconds. Nobody waits for it, and a
            transaction of its own costs etcd, and every agent that watches, as much as a registration.
    """

    def __init__(self, guard_of: Callable[[RankRef], Guard | None], *, max_rooms: int, release_delay: float) -> None:
        self._guard_of = guard_of
        self._max_rooms = self._limit = max_rooms
        self._release_delay = release_delay
        self._queue: deque[OwnRoom] = deque()
        self._releases: deque[OwnRoom] = deque()
        self._releases_since: float | None = None
        self._blocked: dict[RankRef, tuple[Guard | None, deque[OwnRoom]]] = {}  # with the guard that turned out broken
        self._held: deque[OwnRoom] = deque()
        self._held_until = -math.inf

    def __len__(self) -> int:
        """How many rooms wait."""
        waiting = len(self._queue) + len(self._releases) + len(self._held)
        if not self._blocked:
            return waiting
        return waiting + sum(len(rooms) for _, rooms in self._blocked.values())

    def is_full(self) -> bool:
        """Whether rooms for a whole batch wait to be registered."""
        return len(self._queue) >= self._limit

    # --- in

    def push(self, own: OwnRoom) -> None:
        """Queue a room; a release that nobody waits for rides with others."""
        (self._releases if own.state is State.RELEASING and not own.later else self._queue).append(own)

    def push_first(self, rooms: Iterable[OwnRoom]) -> None:
        """Queue rooms before all others, in their order."""
        self._queue.extendleft(reversed(list(rooms)))

    def requeue(self, batch: Batch) -> None:
        """Nothing of the batch was written, and nothing speaks against it: first in the queue again."""
        self.push_first(batch.places())

    def block(self, own: OwnRoom, broken: Guard | None) -> None:
        """Its rank has no epoch, or one that turned out to be over: it waits for another."""
        avoid, rooms = self._blocked.get(own.rank, (None, deque()))
        rooms.append(own)
        self._blocked[own.rank] = (broken or avoid, rooms)

    def hold(self, until: float) -> None:
        """etcd has no space: whatever needs some waits until then, deletions go on."""
        self._held_until = until

    def release_now(self) -> None:
        """Somebody waits for a release."""
        self._releases_since = -math.inf

    def hurry(self) -> None:
        """Let no release wait for a transaction to ride on: there will not be many more."""
        self._release_delay = 0.0

    # --- out

    def take(self, now: float) -> Batch | None:
        """The next batch, None where nothing can be written now."""
        self._unblock()
        self._sort_held(now)
        if self._releases and self._releases_are_due(now):
            self._queue.extend(self._releases)
            self._releases.clear()
        rooms: list[OwnRoom] = []
        guards: dict[RankRef, Guard] = {}
        creates, compares, doubtful = 0, 0, False
        while self._queue and len(rooms) < self._limit and compares < MAX_TXN_OPS:
            own = self._queue.popleft()
            if own.state is State.DROPPED:
                continue
            together = own.together
            if rooms and (own.doubtful != doubtful or len(rooms) + len(together) > self._limit):
                self._queue.appendleft(own)
                break
            if self._waits_for_epoch(own):
                self.block(own, None)
                continue
            if own.state is State.CREATING:
                guard = guards.get(own.rank) or self._guard_of(own.rank)
                if guard is None:
                    self.block(own, None)
                    continue
                extra = 0 if own.rank in guards else len(guard.compares)
                if compares + extra + len(together) > MAX_TXN_OPS:
                    self._queue.appendleft(own)
                    break
                guards[own.rank] = guard
                for one in together:
                    one.prepare(guard.epoch)
                compares += extra
                creates += len(together)
            rooms.extend(together)
            doubtful = own.doubtful
            compares += len(together)
        if not doubtful:
            self._add_releases(rooms, compares)
        return Batch(rooms, guards, creates) if rooms else None

    def _sort_held(self, now: float) -> None:
        if now < self._held_until:
            self._held.extend(own for own in self._queue if own.needs_space)
            self._queue = deque(own for own in self._queue if not own.needs_space)
        elif self._held:
            self._queue.extendleft(reversed(self._held))
            self._held.clear()

    def _add_releases(self, rooms: list[OwnRoom], compares: int) -> None:
        """Fill a transaction up with what may ride on it."""
        while rooms and self._releases and len(rooms) < self._limit and compares < MAX_TXN_OPS:
            own = self._releases.popleft()
            if self._waits_for_epoch(own):
                self.block(own, None)
            elif own.state is not State.DROPPED:
                rooms.append(own)
                compares += 1
        if not self._releases:
            self._releases_since = None

    def _waits_for_epoch(self, own: OwnRoom) -> bool:
        """Whether it is for its rank's epoch to say whether a room that is released is its own."""
        return own.state is State.RELEASING and not own.token and self._guard_of(own.rank) is None

    def _releases_are_due(self, now: float) -> bool:
        if self._releases_since is None:
            self._releases_since = now
        return now - self._releases_since >= self._release_delay

    def _unblock(self) -> None:
        for rank in list(self._blocked):
            guard = self._guard_of(rank)
            avoid, rooms = self._blocked[rank]
            if guard and guard != avoid:
                del self._blocked[rank]
                self.push_first(rooms)

    def take_late(self, now: float) -> list[OwnRoom]:
        """Take the registrations out whose deadline has passed, but for failures that nobody is answered by."""
        late: list[OwnRoom] = []
        for queue in (self._queue, self._held, *(rooms for _, rooms in self._blocked.values())):
            over = {own: None for own in queue if own.state is State.CREATING and own.deadline <= now and own.waiters}
            if over:
                kept = [own for own in queue if own not in over]
                queue.clear()
                queue.extend(kept)
            late += over
        return late

    def forget(self, rank: RankRef) -> list[OwnRoom]:
        """A rank is gone: only what it had and released is still to be written. Releases that this makes pointless."""
        _, blocked = self._blocked.pop(rank, (None, deque[OwnRoom]()))
        waiting = [*blocked, *self._queue, *self._releases]

        def is_kept(own: OwnRoom) -> bool:
            return own.rank != rank or (own.state is State.RELEASING and own.token != 0)

        self._queue, self._releases, self._held = (
            deque(filter(is_kept, rooms)) for rooms in (self._queue, self._releases, self._held)
        )
        return [own for own in waiting if own.state is State.RELEASING and not is_kept(own)]

    # --- how much at once

    def shrink(self, batch: Batch) -> None:
        """etcd refused a batch as a whole: try halves, until the culprit stands alone."""
        self._limit = max(1, len(batch.rooms) // 2)

    def grow(self) -> None:
        """etcd took a batch."""
        self._limit = min(self._max_rooms, self._limit * 2)

    def restore(self) -> None:
        """The culprit was found."""
        self._limit = self._max_rooms
