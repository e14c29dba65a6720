"""The rooms that a decode process waits for: which, until when, and what came of them. No socket and no clock."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

from ..errors import ConfigError, InstanceUnknown, PrefillLost, ResolveError, RoomFailed, RoomsNotWatched
from ..wire import messages, to_client
from ..wire.values import Assignment
from .agent_view import AgentView

#: Entries for waits that are done, beyond as many as there are waits, before they are looked for.
SPARE_ENTRIES = 64
#: Rooms that are remembered when they are done with. A release is in etcd within half a second.
DONE_ROOMS = 4096

Entry = TypeVar("Entry", tuple[float, int], tuple[int, int, int])


class Admission(NamedTuple):
    """What a rank of a decode group may act upon at an agreed revision; equal on all ranks of the group.

    Attributes:
        admitted: assignments visible at the revision, in (revision, room) order.
        failed: waits that ended at or before it, in order of room: ranks may date the same loss differently.
    """

    admitted: list[Assignment]
    failed: list[ResolveError]


class Want:
    """One wait; ``named_rank`` is -1 where the request names none, ``cluster_id`` is of the etcd that answered it."""

    __slots__ = (
        *("assignment", "beyond", "cluster_id", "deadline", "ended_at", "error", "id", "instance", "is_void"),
        *("named_rank", "room"),
    )

    def __init__(self, id: int, instance: str, room: int, named_rank: int, deadline: float, beyond: int) -> None:
        self.id = id
        self.instance = instance
        self.room = room
        self.named_rank = named_rank
        self.deadline = deadline
        self.beyond = beyond
        self.ended_at = self.cluster_id = 0
        self.is_void = False  # an etcd before has answered it, and the agent has yet to end it
        self.assignment: Assignment | None = None
        self.error: ResolveError | None = None

    def packet(self, seconds: float) -> bytes:
        """What is said of it: also what an earlier agent answered, by the id, as an address may change its meaning."""
        known = self.assignment
        if known is None:
            earlier = (-1, 0, self.beyond)
            wanted = messages.WantedRoom(self.id, self.room, self.named_rank, seconds, self.instance, *earlier)
        else:
            seen = 0 if self.is_void else max(known.epoch, known.revision)
            wanted = messages.WantedRoom(
                self.id, self.room, self.named_rank, seconds, known.instance, known.dp_rank, known.epoch, seen
            )
        return messages.encode_want(wanted)

    def error_in(self, said: to_client.Ended) -> ResolveError:
        """What an ENDED packet says of it."""
        if said.error == "RoomFailed":
            return RoomFailed(self.instance, self.room, said.reason)
        if said.error == "PrefillLost":
            return PrefillLost(self.instance, self.room, said.dp_rank, said.epoch, said.withdrawn)
        if said.error == "RoomsNotWatched":
            return RoomsNotWatched(self.instance, self.room)
        return InstanceUnknown(self.instance, self.room)


class Wanted:
    """All waits.

    Attributes:
        by_key: by instance as it was named, and room.
        by_id: by their number on the wire.
    """

    def __init__(self) -> None:
        self.by_key: dict[tuple[str, int], Want] = {}
        self.by_id: dict[int, Want] = {}
        self._ids = itertools.count(1)
        self._done: dict[tuple[str, int], int] = {}  # at which revision rooms were, or ended, that are done with
        self._deadlines: list[tuple[float, int]] = []
        self._unsaid: list[Want] = []  # answered by an etcd of which the agent has yet to say that it is another
        self._arrivals: list[tuple[int, int, int]] = []  # revision, room, want id
        self._endings: list[tuple[int, int, int]] = []

    @property
    def has_unsaid(self) -> bool:
        """Whether there are waits of which the agent does not know, so that their ends are missing."""
        return any(want.id in self.by_id for want in self._unsaid)

    def draw(self, instance: str, room: int, named_rank: int, deadline: float) -> Want:
        """A wait that does not count before it is added."""
        return Want(next(self._ids), instance, room, named_rank, deadline, self._done.get((instance, room), 0))

    def add(self, want: Want) -> None:
        """Begin a wait."""
        self.by_key[want.instance, want.room] = self.by_id[want.id] = want
        self._remember(self._deadlines, (want.deadline, want.id))

    def remove(self, instance: str, room: int) -> Want | None:
        """Forget a wait; None where there is none."""
        want = self.by_key.pop((instance, room), None)
        if want is not None:
            self.by_id.pop(want.id, None)
            self._remember_done(want)
        return want

    def ask_again(self, view: AgentView, now: float) -> Iterator[bytes]:
        """What is said of every wait that goes on, to a new agent, say.

        As long as that has not said that etcd is another one than before, it takes for void what it hears to be known:
        what the new one has answered is not said until then.
        """
        self._unsaid = []
        for want in self.by_key.values():
            if want.assignment and view.is_of_another(want.cluster_id):
                self._unsaid.append(want)
            else:
                yield from self._ask(want, view, now)

    def forget_history(self, view: AgentView, now: float) -> list[bytes]:
        """Revisions of the history before say nothing; what is said of the waits that the present one has answered."""
        self._done.clear()
        for want in self.by_id.values():
            want.beyond = want.ended_at = 0
            if not view.is_of_another(want.cluster_id):
                want.cluster_id, want.is_void = 0, want.assignment is not None
        unsaid, self._unsaid = self._unsaid, []
        said = [packet for want in unsaid if want.id in self.by_id for packet in self._ask(want, view, now)]
        return [*said, view.open_round()] if said else []

    def _ask(self, want: Want, view: AgentView, now: float) -> Iterator[bytes]:
        if want.error is None:
            view.ask(want.id)
            yield want.packet(max(want.deadline - now, 0.001))

    def find(self, instance: str, room: int) -> Want:
        """A wait.

        Raises:
            ConfigError: there is none.
        """
        want = self.by_key.get((instance, room))
        if want is None:
            raise ConfigError("room", f"{room} of {instance} was not wanted")
        return want

    def resolve(self, want: Want, found: Assignment, cluster_id: int) -> None:
        """Its rank is known."""
        want.assignment, want.cluster_id = found, cluster_id
        self._remember(self._arrivals, (found.revision, want.room, want.id))

    def end(self, want: Want, error: ResolveError, revision: int = 0) -> None:
        """It has failed, at a revision; 0 where a clock decided, of which other ranks have others."""
        want.error, want.ended_at = error, revision
        if revision:
            self._remember(self._endings, (revision, want.room, want.id))

    def take_overdue(self, now: float) -> Iterator[Want]:
        """The waits whose deadline has passed without an answer, once each."""
        while self._deadlines and self._deadlines[0][0] <= now:
            want = self.by_id.get(heapq.heappop(self._deadlines)[1])
            if want and want.assignment is None and want.error is None:
                yield want

    def admit(self, revision: int) -> Admission:
        """What has arrived, and what has ended, up to a revision, once each."""
        arrived, ended = self._up_to(self._arrivals, revision), self._up_to(self._endings, revision)
        admitted = [want.assignment for want in arrived if want.assignment and want not in ended]
        failed = [want.error for want in sorted(ended, key=lambda want: (want.room, want.instance)) if want.error]
        return Admission(admitted, failed)

    def _remember_done(self, want: Want) -> None:
        """Its key may stand for a moment yet: whoever wants the room again wants its next life."""
        found = want.assignment
        revision = max(want.ended_at, found.revision if found and found.source == "registry" else 0, want.beyond)
        if revision:
            self._done.pop((want.instance, want.room), None)
            self._done[want.instance, want.room] = revision
            if len(self._done) > DONE_ROOMS:
                del self._done[next(iter(self._done))]

    def _up_to(self, heap: list[tuple[int, int, int]], revision: int) -> list[Want]:
        found: list[Want] = []
        while heap and heap[0][0] <= revision:
            want = self.by_id.get(heapq.heappop(heap)[2])
            if want:
                found.append(want)
        return found

    def _remember(self, heap: list[Entry], entry: Entry) -> None:
        heapq.heappush(heap, entry)
        if len(heap) > 2 * len(self.by_id) + SPARE_ENTRIES:  # most are of waits that are done, or nobody calls admit()
            heap[:] = [entry for entry in heap if entry[-1] in self.by_id]
            heapq.heapify(heap)
