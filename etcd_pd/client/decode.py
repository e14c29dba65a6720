"""The decode side of the client: want a room, learn its rank, hear of its end."""

from __future__ import annotations

import heapq
import itertools
import select
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ..errors import (
    AgentBusy,
    AgentUnavailable,
    ConfigError,
    InstanceUnknown,
    PrefillLost,
    ResolveError,
    RoomFailed,
    RoomsNotWatched,
    RoomTimeout,
    ViewStale,
)
from ..wire import messages, to_agent, to_client
from ..wire.limits import MAX_PARALLEL, check_int, check_name, check_room, check_seconds
from ..wire.messages import SILENCE_SECONDS
from ..wire.values import Assignment, PrefillInstance
from .events import DecodeEvent, Described, Ended, Resolved
from .seen import Seen

if TYPE_CHECKING:
    from .connection import Connection

#: Shortest and longest wait for a room, seconds: bounds on typing errors.
MIN_TIMEOUT, MAX_TIMEOUT = 0.001, 86_400.0
#: Entries for waits that are done, beyond as many as there are waits, before they are looked for.
SPARE_ENTRIES = 64

Entry = TypeVar("Entry", tuple[float, int], tuple[int, int, int])


class Admission(NamedTuple):
    """What a rank of a decode group may act upon at an agreed revision; equal on all ranks of the group.

    Attributes:
        admitted: assignments visible at the revision, in (revision, room) order.
        failed: waits that ended at or before it, in order of room: ranks may date the same loss differently.
    """

    admitted: list[Assignment]
    failed: list[ResolveError]


class _Want:
    __slots__ = ("assignment", "deadline", "error", "id", "instance", "named_rank", "room")

    def __init__(self, id: int, instance: str, room: int, named_rank: int, deadline: float) -> None:
        self.id = id
        self.instance = instance
        self.room = room
        self.named_rank = named_rank
        self.deadline = deadline
        self.assignment: Assignment | None = None
        self.error: ResolveError | None = None


class Decode:
    """One decode process. Made by :class:`~etcd_pd.client.Client`.

    Attributes:
        heard_at: when the agent said anything last, monotonic seconds.
    """

    def __init__(self, connection: Connection, pump: Callable[[], None], seen: Seen) -> None:
        self._connection = connection
        self._seen = seen
        self._pump = pump
        self._announcement: to_agent.Decoder | None = None
        self._ids = itertools.count(1)
        self._wants: dict[tuple[str, int], _Want] = {}
        self._by_id: dict[int, _Want] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._arrivals: list[tuple[int, int, int]] = []  # revision, room, want id
        self._endings: list[tuple[int, int, int]] = []
        self._instances: dict[str, PrefillInstance] = {}
        self._names: dict[str, str] = {}
        self._numbers: dict[int, str] = {}  # ids of instances, as this agent numbers them
        self._followed: dict[str, None] = {}  # in the order of asking
        self._undone: list[int] = []  # waits that the agent was not told yet to forget
        self._revision = self._floor = 0
        self._last_want = self._answered_want = 0  # numbers of wants: said to this agent, and looked at by it
        self._rounds = itertools.count(1)
        self._round = self._answered_round = 0  # in which all was asked again (0: in none), and which was answered
        self._view = "stale"
        self.heard_at = 0.0
        self._events: list[DecodeEvent] = []

    @property
    def revision(self) -> int:
        """etcd revision up to which everything that concerns this process has arrived; 0 while that is not known.

        It is not known until the agent has looked at every want once, which it does within a round trip on its socket.
        """
        if self._round and self._answered_round != self._round:
            return 0
        return self._revision if self._answered_want >= self._last_want else 0

    @property
    def floor(self) -> int:
        """etcd revision below which this process may date the end of a room too late.

        Its agent listed all keys there, at its start or because changes were lost, and a list does not say when what
        is missing vanished. The group takes the largest of its ranks' and admits nothing below it.
        """
        return self._floor

    @property
    def view(self) -> str:
        """``synced``, ``stale`` (the agent is cut off from etcd, says nothing, or there is none) or ``closed``."""
        return self._view

    def announce(self, instance: str, *, address: str = "") -> None:
        """Make this decode instance visible in etcd. Optional; it changes nothing in what is resolved.

        Raises:
            ConfigError: an argument breaks a rule.
        """
        said = to_agent.Decoder(instance, address)
        self._connection.send(said.encode())
        self._announcement = said

    def want(self, instance: str, room: int, *, timeout: float = 300.0, dp_rank: int | None = None) -> None:
        """Ask for a room; the answer comes through poll() and resolve_nowait(). Wanting it twice is no error.

        Args:
            instance: the prefill instance's id, or the bootstrap ``host:port`` that the request carries.
            room: the bootstrap room.
            timeout: seconds until the wait ends as RoomTimeout.
            dp_rank: the prefill rank where the request itself names it.

        Raises:
            ConfigError: an argument breaks a rule.
            AgentBusy: too many packets wait for the agent already; nothing was queued.
        """
        key = (check_name("instance", instance), check_room(room))
        if key in self._wants:
            return
        check_seconds("timeout", timeout, MIN_TIMEOUT, MAX_TIMEOUT)
        named = -1 if dp_rank is None else check_int("dp_rank", dp_rank, 0, MAX_PARALLEL - 1)
        deadline = time.monotonic() + timeout
        want = _Want(next(self._ids), instance, room, named, deadline)
        self._connection.send(self._want_packet(want, timeout))
        self._wants[key] = self._by_id[want.id] = want
        self._last_want = want.id
        self._remember(self._deadlines, (deadline, want.id))

    def resolve_nowait(self, instance: str, room: int) -> Assignment | None:
        """The room's assignment, None while nobody has registered it. Never blocks.

        Raises:
            RoomFailed, PrefillLost, RoomTimeout, InstanceUnknown, RoomsNotWatched: it will not come; final.
            ViewStale, AgentUnavailable: cannot tell at present; ask again.
            ConfigError: the room was not wanted, or done() was called.
        """
        trouble: AgentUnavailable | None = None
        try:
            self._pump()
        except AgentUnavailable as exc:
            trouble = exc
        now = time.monotonic()
        if now - self.heard_at > SILENCE_SECONDS:
            self._note_silence()
        want = self._wants.get((instance, room))
        if want is None or want.error is not None or (want.assignment is not None and self._view != "synced"):
            return self.peek(instance, room)
        if want.assignment is not None:
            return want.assignment
        if now >= want.deadline:
            self._time_out(want)
            raise RoomTimeout(instance, room)
        if trouble:
            raise trouble
        if not self._connection.connected:
            raise AgentUnavailable("no agent answers; the wait goes on until its deadline")
        if self._view != "synced":
            raise ViewStale(instance, room)
        return None

    def peek(self, instance: str, room: int) -> Assignment | None:
        """What resolve_nowait() returns, without looking at the socket or at the clock.

        Raises:
            RoomFailed, PrefillLost, RoomTimeout, InstanceUnknown, RoomsNotWatched: it will not come; final.
            ConfigError: the room was not wanted, or done() was called.
        """
        want = self._wants.get((instance, room))
        if want is None:
            raise ConfigError("room", f"{room} of {instance} was not wanted")
        if want.error is not None:
            raise want.error.with_traceback(None)
        if want.assignment is None or self._view == "synced":
            return want.assignment
        return want.assignment._replace(stale=True)

    def resolve(self, instance: str, room: int, *, timeout: float = 300.0) -> Assignment:
        """Wait for the room's assignment, wanting it first where need be. Blocks; not for an engine's loop.

        Raises:
            RoomFailed, PrefillLost, RoomTimeout, InstanceUnknown, RoomsNotWatched: it will not come.
            ConfigError: an argument breaks a rule.
        """
        self.want(instance, room, timeout=timeout)
        while True:
            try:
                assignment = self.resolve_nowait(instance, room)
            except (ViewStale, AgentUnavailable):
                assignment = None
            if assignment is not None:
                return assignment
            self._wait(self._wants[instance, room].deadline)

    def admit(self, revision: int, floor: int = 0) -> Admission:
        """What this rank may act upon at a revision that its group agreed on.

        A wait that ended after ``revision`` is admitted all the same and fails in a later call, so that every rank
        of the group does the same in the same step. Timeouts, which every rank's own clock decides, are not in it.

        Args:
            revision: the smallest of the ranks' :attr:`revision`.
            floor: the largest of their :attr:`floor`. Nothing is admitted while ``revision`` is below it: soon, as
                every agent that has listed writes a key of its own afterwards.
        """
        if revision < floor:
            return Admission([], [])
        arrived, ended = self._up_to(self._arrivals, revision), self._up_to(self._endings, revision)
        admitted = [want.assignment for want in arrived if want.assignment and want not in ended]
        failed = [want.error for want in sorted(ended, key=lambda want: (want.room, want.instance)) if want.error]
        return Admission(admitted, failed)

    def _up_to(self, heap: list[tuple[int, int, int]], revision: int) -> list[_Want]:
        found: list[_Want] = []
        while heap and heap[0][0] <= revision:
            want = self._by_id.get(heapq.heappop(heap)[2])
            if want:
                found.append(want)
        return found

    def _remember(self, heap: list[Entry], entry: Entry) -> None:
        heapq.heappush(heap, entry)
        if len(heap) > 2 * len(self._by_id) + SPARE_ENTRIES:  # most are of waits that are done, or nobody calls admit()
            heap[:] = [entry for entry in heap if entry[-1] in self._by_id]
            heapq.heapify(heap)

    def _tell(self, event: Resolved | Ended) -> None:
        self._events.append(event)
        if len(self._events) > 2 * len(self._by_id) + SPARE_ENTRIES:  # nobody calls poll()
            self._events = [event for event in self._events if self._concerns(event)]

    def _concerns(self, event: DecodeEvent) -> bool:
        """Whether an event is about a wait that is not done."""
        if isinstance(event, Resolved):
            return (event.instance, event.assignment.room) in self._wants
        return not isinstance(event, Ended) or (event.error.instance, event.error.room) in self._wants

    def done(self, instance: str, room: int) -> None:
        """Forget a wait: its KV cache was fetched, or its request was aborted. Unknown waits are no error."""
        want = self._wants.pop((instance, room), None)
        if want is not None:
            self._by_id.pop(want.id, None)
            self._say_done(want.id)

    def follow(self, instance: str) -> None:
        """Keep ``instance()`` up to date for an id or address, without waiting for a room of it.

        Each call is answered by one Described, and later changes bring more. The answer comes after those to all
        wants before it.

        Raises:
            ConfigError: not a name.
            AgentBusy: too many packets wait for the agent already.
        """
        check_name("instance", instance)
        self._connection.send(messages.encode_follow(instance))
        self._followed[instance] = None

    def instance(self, instance: str) -> PrefillInstance | None:
        """The prefill instance that an id or address names, once a wait for it was answered, or it is followed."""
        return self._instances.get(self._names.get(instance, instance))

    def poll(self) -> list[DecodeEvent]:
        """What has happened since the last call: each wait's answer, its end, or both. Never blocks.

        Raises:
            AgentUnavailable: the agent speaks another protocol version.
        """
        try:
            self._pump()
        finally:
            now = time.monotonic()
            if now - self.heard_at > SILENCE_SECONDS:
                self._note_silence()
            self._expire(now)
        events, self._events = self._events, []
        return events

    def _expire(self, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            want = self._by_id.get(heapq.heappop(self._deadlines)[1])
            if want and want.assignment is None and want.error is None:
                self._time_out(want)

    # --- said again on every new connection

    def hello(self) -> Iterator[bytes]:
        """All that a new agent must know of this process."""
        self.on_lost()
        if self._announcement is not None:
            yield self._announcement.encode()
        yield from self.ask_again()

    def ask_again(self) -> Iterator[bytes]:
        """Repeat every wait that has not ended; the answer to the ping says that all of them were looked at.

        The ping opens a round: what the agent said before, it said of answers that may not have come.
        """
        self._revision = self._last_want = self._answered_want = self._round = 0
        now = time.monotonic()
        for want in self._wants.values():
            if want.error is None:
                self._last_want = want.id
                yield self._want_packet(want, max(want.deadline - now, 0.001))
        yield from map(messages.encode_follow, self._followed)
        if self._wants:
            self._round = next(self._rounds)
            yield messages.encode_ping(self._round)

    # --- what the agent says

    def on_lost(self) -> None:
        """The agent is gone: what is known stays, marked stale."""
        self._view, self._revision = "stale", 0
        self._numbers.clear()
        self._undone.clear()  # a new agent never knew of them

    def _note_silence(self) -> None:
        """An agent that says nothing at all is stopped, and its view may be old."""
        if self._view == "synced":
            self._view = "stale"

    def on_view(self, packet: bytes) -> None:
        """VIEW."""
        at = messages.decode_view(packet)
        self._revision, view, self._answered_want, self._floor, self._answered_round, cluster_id = at
        self._view = messages.VIEWS[view]
        if cluster_id:
            self._seen.cluster_id = cluster_id
            self._seen.revision = max(self._seen.revision, self._revision)

    def on_resolved(self, packet: bytes) -> None:
        """RESOLVED."""
        self.on_view(packet)
        for id, *answer in messages.decode_resolved(packet):
            want = self._by_id.get(id)
            if want is None or want.error is not None:
                continue
            found = self._assignment(want, *answer)
            if want.assignment is None:  # else a new agent confirms what an earlier one said
                self._remember(self._arrivals, (found.revision, want.room, id))
                self._tell(Resolved(found._replace(stale=self._view != "synced"), want.instance))
                want.assignment = found

    def on_ended(self, packet: bytes) -> None:
        """ENDED."""
        said = to_client.Ended.decode(packet)
        want = self._by_id.get(said.id)
        if want is not None and want.error is None:
            if want.assignment is None and said.arrived:  # it came too late for that: for admit() alone
                want.assignment = self._assignment(want, *said.arrived)
                self._remember(self._arrivals, (want.assignment.revision, want.room, want.id))
            if said.revision:  # else the agent's clock decided, and other ranks' agents have other clocks
                self._remember(self._endings, (said.revision, want.room, want.id))
            self._end(want, _error(want, said))

    def on_instance(self, packet: bytes) -> None:
        """INSTANCE."""
        said = to_client.Instance.decode(packet)
        found = said.instance
        self._numbers[said.number] = said.id
        for name in said.names:
            self._names[name] = said.id
        if found is None:
            self._instances.pop(said.id, None)
        else:
            self._instances[said.id] = found
        self._events += [Described(name, found) for name in said.names if name in self._followed]

    def _assignment(
        self, want: _Want, dp_rank: int, epoch: int, revision: int, lease_id: int, source: int, number: int
    ) -> Assignment:
        instance = self._numbers.get(number, want.instance)
        return Assignment(instance, want.room, dp_rank, epoch, revision, lease_id, messages.source_of(source))

    def _end(self, want: _Want, error: ResolveError) -> None:
        want.error = error
        self._tell(Ended(error))

    def _time_out(self, want: _Want) -> None:
        self._end(want, RoomTimeout(want.instance, want.room))
        self._say_done(want.id)

    def _say_done(self, id: int) -> None:
        """Tell the agent to forget a wait, now or when the queue towards it has room again."""
        self._undone.append(id)
        while self._undone:
            id = self._undone.pop()  # before sending: a connection that turns out to be lost clears the rest
            try:
                self._connection.send(messages.encode_done(id))
            except AgentBusy:
                self._undone.append(id)
                return

    def _want_packet(self, want: _Want, seconds: float) -> bytes:
        known = want.assignment
        if known is None:
            wanted = messages.WantedRoom(want.id, want.room, want.named_rank, seconds, want.instance)
        else:  # by its id, as an address may come to mean another instance
            seen = max(known.epoch, known.revision)
            wanted = messages.WantedRoom(
                want.id, want.room, want.named_rank, seconds, known.instance, known.dp_rank, known.epoch, seen
            )
        return messages.encode_want(wanted)

    def _wait(self, deadline: float) -> None:
        seconds = min(max(deadline - time.monotonic(), 0.0), 0.05)
        poller = select.poll()  # select() itself takes no descriptor above 1023
        descriptor = self._connection.fileno()
        if descriptor >= 0:
            poller.register(descriptor, select.POLLIN)
        poller.poll(seconds * 1000)


def _error(want: _Want, said: to_client.Ended) -> ResolveError:
    if said.error == "RoomFailed":
        return RoomFailed(want.instance, want.room, said.reason)
    if said.error == "PrefillLost":
        return PrefillLost(want.instance, want.room, said.dp_rank, said.epoch)
    if said.error == "RoomsNotWatched":
        return RoomsNotWatched(want.instance, want.room)
    return InstanceUnknown(want.instance, want.room)
