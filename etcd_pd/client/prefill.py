"""The prefill side of the client: announce a rank, register the rooms that it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .. import errors
from ..errors import (
    AgentBusy,
    ConfigError,
    EtcdPDError,
    InstanceConflict,
    NotAnnounced,
    RankDraining,
    RegistrationTimeout,
)
from ..wire import messages, to_client
from ..wire.limits import MAX_ROOM, check_room, check_text
from ..wire.to_agent import Announce
from ..wire.values import TIMED_OUT, Rank, Topology
from .events import Announced, Drained, PrefillEvent, RankEnded, Refused, Registered, Rejected
from .intents import Held, Intents
from .seen import Seen

if TYPE_CHECKING:
    from .connection import Connection


class Prefill:
    """One rank process of a prefill instance. Made by :class:`~etcd_pd.client.Client`."""

    def __init__(self, connection: Connection, pump: Callable[[], None], limit: int, seen: Seen) -> None:
        self._connection = connection
        self._pump = pump
        self._limit = limit
        self._announcement: Announce | None = None
        self._epoch = 0
        self._draining = False
        self._seen = seen
        self._intents = Intents(self._try_send)
        self._events: list[PrefillEvent] = []

    @property
    def epoch(self) -> int:
        """create_revision of this rank's key, 0 while it is not in etcd."""
        return self._epoch

    def announce(
        self,
        instance: str,
        *,
        rank: Rank,
        topology: Topology,
        launch_id: str,
        addresses: Sequence[str],
        ip: str,
        port: int,
        policy: str = "round_robin",
        fingerprint: str = "",
        extra: Mapping[str, Any] | None = None,
        linger: float = 0.0,
    ) -> None:
        """Make this rank known; the outcome comes as Announced or Refused.

        Args:
            instance: stable id of the instance, such as its pod's name.
            rank: this process's place in the topology.
            topology: the instance's parallel sizes.
            launch_id: the same for all processes and nodes of one start, different for every start.
            addresses: ``host:port`` spellings that requests may carry as bootstrap address.
            ip: address at which this process hands over KV caches.
            port: port of the same.
            policy: the instance's DP dispatch policy.
            fingerprint: what must match between prefill and decode, opaque here.
            extra: what else decode may want to know of the instance: a JSON object of at most 8 KiB.
            linger: seconds that the rank stays in etcd after this connection broke, so that another process that
                announces the same rank, launch, ip and port takes it over as it stands. For those who announce on an
                engine's behalf; an engine's own end must be known at once.

        Raises:
            ConfigError: an argument breaks a rule.
        """
        launch = (launch_id, addresses, ip, port, policy, fingerprint)
        said = Announce(instance, rank, topology, *launch, extra=dict(extra or {}), linger=linger)
        # sent before it is remembered: opening the connection says all that is remembered
        self._connection.send(said.encode())
        self._announcement, self._draining = said, False

    def register(self, room: int) -> None:
        """Say that this rank took a room; the outcome comes as Registered or Rejected. Never blocks.

        Raises:
            ConfigError: not a bootstrap room.
            NotAnnounced: announce() was not called, or was refused.
            RankDraining: drain() was called.
            AgentBusy: too many rooms wait already, or end and are not gone yet; nothing was queued.
        """
        if type(room) is not int or not 0 <= room <= MAX_ROOM:
            check_room(room)
        if self._announcement is None:
            raise NotAnnounced("announce() comes before register()")
        if self._draining:
            raise RankDraining(room, "the rank is draining")
        intents = self._intents
        asked = intents.asked
        if room in asked:
            return
        held = intents.held.get(room)
        if held is not None:
            self._events.append(Registered(room, *held))
            return
        if len(asked) + len(intents.endings) >= self._limit or (intents.unsaid and not intents.say_unsaid()):
            raise AgentBusy(self._limit)
        sequence = intents.sequence = intents.sequence + 1
        self._connection.send(messages.encode_room(messages.REGISTER, room, sequence))
        asked[room] = sequence

    def register_lot(self, rooms: Sequence[int]) -> None:
        """As register(), for rooms that make sense only together, such as a request's n samples.

        They are written in one transaction: Registered comes for each of them, or Rejected for each with the error of
        the one that could not be had. Rooms that this rank has already are answered as register() would.

        Args:
            rooms: at most 120 different rooms.

        Raises:
            ConfigError: not rooms, or too many of them.
            NotAnnounced, RankDraining, AgentBusy: as register(); nothing was queued.
        """
        if not 0 < len(rooms) <= messages.MAX_LOT or len(set(rooms)) != len(rooms):
            raise ConfigError("rooms", f"must be 1 to {messages.MAX_LOT} different rooms, not {len(rooms)}")
        for room in rooms:
            check_room(room)
        if self._announcement is None:
            raise NotAnnounced("announce() comes before register_lot()")
        if self._draining:
            raise RankDraining(rooms[0], "the rank is draining")
        intents = self._intents
        lot = {room: intents.number() for room in rooms if room not in intents.asked and room not in intents.held}
        if len(intents) + len(lot) > self._limit or not intents.say_unsaid():
            raise AgentBusy(self._limit)
        self._events += [Registered(room, *intents.held[room]) for room in rooms if room in intents.held]
        if lot:
            self._connection.send(messages.encode_lot(lot.items()))
            intents.ask_lot(lot)

    def release(self, room: int) -> None:
        """The room's KV cache was handed over: delete its key. A room that is not held is no error."""
        if type(room) is not int or not 0 <= room <= MAX_ROOM:
            check_room(room)
        if self._announcement is not None:
            self._intents.end(room, None, connected=self._connection.connected)

    def fail(self, room: int, reason: str) -> None:
        """Notify those who wait for the room that it will not come, whether it was registered or not.

        A registration that was not answered yet is not answered any more.

        Raises:
            ConfigError: not a room, or the reason is too long.
            NotAnnounced: announce() was not called, or was refused.
        """
        check_room(room)
        check_text("reason", reason)
        if self._announcement is None:
            raise NotAnnounced("announce() comes before fail()")
        self._intents.end(room, reason, connected=self._connection.connected)

    def drain(self) -> None:
        """Take no new rooms on this rank; Drained comes when the rooms that it has have ended.

        Raises:
            NotAnnounced: announce() was not called, or was refused.
        """
        if self._announcement is None:
            raise NotAnnounced("announce() comes before drain()")
        self._draining = True
        self._connection.send(messages.DRAIN)

    def poll(self) -> list[PrefillEvent]:
        """What has happened since the last call. Never blocks.

        Raises:
            AgentUnavailable: the agent speaks another protocol version.
        """
        self._pump()
        if self._intents.unsaid:
            self._intents.say_unsaid()
        events, self._events = self._events, []
        return events

    # --- said again on every new connection

    def hello(self) -> Iterator[bytes]:
        """All that a new agent must know of this rank."""
        if self._announcement is None:
            return
        yield self._announcement.encode()
        yield from self._intents.say_again(to_another=True)
        if self._draining:
            yield messages.DRAIN

    def ask_again(self) -> Iterator[bytes]:
        """Repeat what was not answered; the agent folds repetitions."""
        return self._intents.say_again(to_another=False)

    # --- what the agent says

    def on_announced(self, packet: bytes) -> None:
        """ANNOUNCED."""
        said = to_client.Announced.decode(packet)
        if self._announcement is None:
            return
        self._epoch = said.epoch
        self._seen.revision = max(self._seen.revision, said.epoch)
        self._announcement = replace(self._announcement, **vars(said))
        self._events.append(Announced(self._announcement.instance, said.incarnation, said.epoch))

    def on_history_lost(self) -> None:
        """etcd has another history: a key in it that has this rank's number is not this rank's."""
        if self._announcement is not None:
            self._announcement = replace(self._announcement, key_epoch=0)

    def on_refused(self, packet: bytes) -> None:
        """REFUSED."""
        said = to_client.Refused.decode(packet)
        self._events.append(Refused(InstanceConflict(said.instance, said.holder)))
        self._announcement = None
        self._end_epoch()

    def on_registered(self, packet: bytes) -> None:
        """REGISTERED."""
        answer, held, events = self._intents.answer, self._intents.held, self._events
        newest = self._seen.revision
        for room, token, lease_id, epoch, sequence in messages.decode_registered(packet):
            if answer(room, sequence):
                held[room] = Held(token, lease_id, epoch)
                events.append(Registered(room, token, lease_id, epoch))
                if token > newest:
                    newest = token
        self._seen.revision = newest

    def on_rejected(self, packet: bytes) -> None:
        """REJECTED. A registration that timed out may happen yet, or have happened: the room is failed."""
        said = to_client.Rejected.decode(packet)
        room, error = said.room, _rejection(said)
        if not self._intents.answer(room, said.sequence):
            return
        self._events.append(Rejected(room, error))
        if isinstance(error, RegistrationTimeout):
            self._intents.end(room, TIMED_OUT, connected=self._connection.connected)

    def on_durable(self, packet: bytes) -> None:
        """DURABLE."""
        self._intents.settle(messages.decode_durable(packet))

    def on_rank_ended(self, packet: bytes) -> None:
        """RANK_ENDED."""
        said = to_client.RankEnded.decode(packet)
        self._events.append(RankEnded(said.epoch, said.reason, said.withdrawn))
        if self._announcement is not None:
            self._announcement = replace(self._announcement, epoch=0)
        self._end_epoch()

    def _end_epoch(self) -> None:
        self._epoch = 0
        self._intents.end_epoch()

    def on_drained(self, packet: bytes) -> None:
        """DRAINED."""
        self._events.append(Drained())

    def _try_send(self, packet: bytes) -> bool:
        try:
            return self._connection.send(packet)
        except AgentBusy:
            return False


def _rejection(said: to_client.Rejected) -> EtcdPDError:
    text = said.text.removeprefix(f"room {said.room}: ")  # the error says it itself
    if said.error == "RoomConflict":
        return errors.RoomConflict(said.room if said.owned is None else said.owned, said.holder)
    if said.error == "RankLost":
        return errors.RankLost(said.room, said.epoch)
    if said.error == "AgentBusy":
        return errors.AgentBusy(said.limit)
    kind = {"RegistrationTimeout": errors.RegistrationTimeout, "RankDraining": errors.RankDraining}.get(said.error)
    return (kind or errors.RegistrationError)(said.room, text)
