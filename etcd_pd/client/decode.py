"""The decode side of the client: want a room, learn its rank, and its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ..errors import AgentBusy, AgentUnavailable, ResolveError, RoomTimeout, ViewStale
from ..wire import messages, to_agent, to_client
from ..wire.limits import MAX_PARALLEL, check_int, check_name, check_room, check_seconds
from ..wire.values import Assignment, PrefillInstance
from .agent_view import AgentView
from .events import DecodeEvent, Ended, Resolved
from .known_instances import KnownInstances
from .seen import Seen
from .wanted import SPARE_ENTRIES, Admission, Want, Wanted

if TYPE_CHECKING:
    from .connection import Connection

#: Shortest and longest wait for a room, seconds: bounds on typing errors.
MIN_TIMEOUT, MAX_TIMEOUT = 0.001, 86_400.0
#: How often resolve() looks at its deadline and for a lost agent while nothing arrives.
LOOK_SECONDS = 0.05


class Decode:
    """One decode process. Made by :class:`~etcd_pd.client.Client`."""

    def __init__(self, connection: Connection, pump: Callable[[], None], seen: Seen) -> None:
        self._connection = connection
        self._pump = pump
        self._announcement: to_agent.Decoder | None = None
        self._wanted = Wanted()
        self._known = KnownInstances()
        self._undone: list[int] = []  # waits that the agent is still to forget
        self._view = AgentView(seen)
        self._events: list[DecodeEvent] = []

    @property
    def revision(self) -> int:
        """etcd revision up to which everything that concerns this process has arrived; 0 while that is not known.

        It is not known until the agent has looked at every want once, which it does within a round trip on its socket.
        """
        return 0 if self._wanted.has_unsaid else self._view.revision

    @property
    def floor(self) -> int:
        """etcd revision below which this process may date the end of a room too late.

        Its agent listed all keys there, at its start or because changes were lost, and a list does not say when what
        is missing vanished. The group takes the largest of its ranks' and admits nothing below it.
        """
        return self._view.floor

    @property
    def view(self) -> str:
        """``synced``, ``stale`` (the agent is cut off from etcd, says nothing, or there is none) or ``closed``."""
        return self._view.state

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
        if key in self._wanted.by_key:
            return
        check_seconds("timeout", timeout, MIN_TIMEOUT, MAX_TIMEOUT)
        named = -1 if dp_rank is None else check_int("dp_rank", dp_rank, 0, MAX_PARALLEL - 1)
        deadline = time.monotonic() + timeout
        want = self._wanted.draw(instance, room, named, deadline)
        self._connection.send(want.packet(timeout))
        self._wanted.add(want)
        self._view.ask(want.id)

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
        view = self._view
        if now > view.silent_at:
            view.note_silence()
        want = self._wanted.by_key.get((instance, room))
        if want is None or want.error is not None or (want.assignment is not None and view.state != "synced"):
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
        if view.state != "synced":
            raise ViewStale(instance, room)
        return None

    def peek(self, instance: str, room: int) -> Assignment | None:
        """What resolve_nowait() returns, without looking at the socket or at the clock.

        Raises:
            RoomFailed, PrefillLost, RoomTimeout, InstanceUnknown, RoomsNotWatched: it will not come; final.
            ConfigError: the room was not wanted, or done() was called.
        """
        want = self._wanted.find(instance, room)
        if want.error is not None:
            raise want.error.with_traceback(None)
        if want.assignment is None or self._view.state == "synced":
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
            left = self._wanted.by_key[instance, room].deadline - time.monotonic()
            self._connection.wait(min(max(left, 0.0), LOOK_SECONDS))

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
        return self._wanted.admit(revision)

    def _notify(self, event: Resolved | Ended) -> None:
        self._events.append(event)
        if len(self._events) > 2 * len(self._wanted.by_id) + SPARE_ENTRIES:  # nobody calls poll()
            self._events = [event for event in self._events if self._concerns(event)]

    def _concerns(self, event: DecodeEvent) -> bool:
        """Whether an event is about a wait that is not done."""
        if isinstance(event, Resolved):
            return (event.instance, event.assignment.room) in self._wanted.by_key
        return not isinstance(event, Ended) or (event.error.instance, event.error.room) in self._wanted.by_key

    def done(self, instance: str, room: int) -> None:
        """Forget a wait: its KV cache was fetched, or its request was aborted. Unknown waits are no error.

        Who wants the room again wants its next life: not the registration, or the end, that answered this wait.
        """
        want = self._wanted.remove(instance, room)
        if want is not None:
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
        self._known.follow(instance)

    def instance(self, instance: str) -> PrefillInstance | None:
        """The prefill instance that an id or address names, once a wait for it was answered, or it is followed."""
        return self._known.find(instance)

    def poll(self) -> list[DecodeEvent]:
        """What has happened since the last call: each wait's answer, its end, or both. Never blocks.

        Raises:
            AgentUnavailable: the agent speaks another protocol version.
        """
        try:
            self._pump()
        finally:
            now = time.monotonic()
            if now > self._view.silent_at:
                self._view.note_silence()
            for want in self._wanted.take_overdue(now):
                self._time_out(want)
        events, self._events = self._events, []
        return events

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
        self._view.forget_round()
        yield from self._wanted.ask_again(self._view, time.monotonic())
        yield from self._known.ask_again()
        if self._wanted.by_key:
            yield self._view.open_round()

    # --- what the agent says

    def on_lost(self) -> None:
        """The agent is gone: what is known stays, marked stale."""
        self._view.lose()
        self._known.forget_numbers()
        self._undone.clear()  # a new agent never knew of them

    def on_history_lost(self) -> list[bytes]:
        """etcd has another history: what that has answered already is to be said."""
        return self._wanted.forget_history(self._view, time.monotonic())

    def note_sign(self, now: float) -> None:
        """The agent has said anything at all."""
        self._view.note_sign(now)

    def on_view(self, packet: bytes) -> None:
        """VIEW."""
        self._view.read(packet)

    def on_resolved(self, packet: bytes) -> None:
        """RESOLVED."""
        self._view.read(packet)
        for id, *answer in messages.decode_resolved(packet):
            want = self._wanted.by_id.get(id)
            if want is None or want.error is not None:
                continue
            found = self._assignment(want, *answer)
            if want.assignment is None:  # else a new agent confirms what an earlier one said
                self._wanted.resolve(want, found, self._view.cluster_id)
                self._notify(Resolved(found._replace(stale=self._view.state != "synced"), want.instance))

    def on_ended(self, packet: bytes) -> None:
        """ENDED."""
        said = to_client.Ended.decode(packet)
        want = self._wanted.by_id.get(said.id)
        if want is not None and want.error is None:
            if want.assignment is None and said.arrived:  # it came too late for that: for admit() alone
                self._wanted.resolve(want, self._assignment(want, *said.arrived), self._view.cluster_id)
            self._end(want, want.error_in(said), said.revision)

    def on_instance(self, packet: bytes) -> None:
        """INSTANCE."""
        self._events += self._known.read(packet)

    def _assignment(
        self, want: Want, dp_rank: int, epoch: int, revision: int, lease_id: int, source: int, number: int
    ) -> Assignment:
        instance = self._known.id_of(number, want.instance)
        return Assignment(instance, want.room, dp_rank, epoch, revision, lease_id, messages.source_of(source))

    def _end(self, want: Want, error: ResolveError, revision: int = 0) -> None:
        self._wanted.end(want, error, revision)
        self._notify(Ended(error))

    def _time_out(self, want: Want) -> None:
        self._end(want, RoomTimeout(want.instance, want.room))
        self._say_done(want.id)

    def _say_done(self, id: int) -> None:
        """Ask the agent to forget a wait, now or when the queue towards it has room again."""
        self._undone.append(id)
        while self._undone:
            id = self._undone.pop()  # before sending: a connection that turns out to be lost clears the rest
            try:
                self._connection.send(messages.encode_done(id))
            except AgentBusy:
                self._undone.append(id)
                return
