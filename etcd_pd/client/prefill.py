"""The prefill side of the client: announce a rank, register the rooms that it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import errors, protocol
from ..errors import AgentBusy, ConfigError, EtcdPDError, InstanceConflict, NotAnnounced, RankDraining
from ..model import (
    MAX_ROOM,
    InstanceInfo,
    Rank,
    RankEndpoint,
    Topology,
    check_linger,
    check_name,
    check_rank,
    check_room,
    check_text,
)
from .events import Announced, Drained, PrefillEvent, RankEnded, Refused, Registered, Rejected

if TYPE_CHECKING:
    from .connection import Connection


class _Held(NamedTuple):
    """A room that etcd has."""

    token: int
    lease_id: int
    epoch: int


class Prefill:
    """One rank process of a prefill instance. Made by :class:`~etcd_pd.client.Client`."""

    def __init__(self, connection: Connection, pump: Callable[[], None], limit: int) -> None:
        self._connection = connection
        self._pump = pump
        self._limit = limit
        self._announcement: dict[str, Any] | None = None
        self._epoch = 0
        self._draining = False
        self._asked: dict[int, str | None] = {}  # not answered yet; the reason where it is to fail
        self._lots: dict[int, tuple[int, ...]] = {}  # the lot that a room was asked for with
        self._held: dict[int, _Held] = {}
        self._releasing: dict[int, _Held] = {}  # released while no agent was there
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
                engine's behalf; an engine's own end must be news at once.

        Raises:
            ConfigError: an argument breaks a rule.
        """
        check_name("instance", instance)
        if not isinstance(topology, Topology):
            raise ConfigError("topology", f"must be a Topology, not {topology!r:.80}")
        if isinstance(addresses, str):
            raise ConfigError("addresses", "must be a sequence of host:port strings, not a string")
        extra = dict(extra or {})
        info = InstanceInfo("-", launch_id, tuple(addresses), topology, policy, fingerprint, extra=extra)
        check_linger(linger)
        rank = check_rank(rank, topology)
        RankEndpoint(rank, ip, port)
        announcement = {
            "instance": instance,
            "rank": list(rank),
            "topology": vars(topology),
            "launch_id": info.launch_id,
            "addresses": list(info.addresses),
            "ip": ip,
            "port": port,
            "policy": policy,
            "fingerprint": fingerprint,
            "extra": extra,
            "linger": linger,
        }
        # sent before it is remembered: opening the connection says all that is remembered
        self._connection.send(protocol.encode_json(protocol.ANNOUNCE, announcement))
        self._announcement, self._draining = announcement, False

    def register(self, room: int) -> None:
        """Say that this rank took a room; the outcome comes as Registered or Rejected. Never blocks.

        Raises:
            ConfigError: not a bootstrap room.
            NotAnnounced: announce() was not called, or was refused.
            RankDraining: drain() was called.
            AgentBusy: too many rooms wait already; nothing was queued.
        """
        if type(room) is not int or not 0 <= room <= MAX_ROOM:
            check_room(room)
        if self._announcement is None:
            raise NotAnnounced("announce() comes before register()")
        if self._draining:
            raise RankDraining(room, "the rank is draining")
        asked = self._asked
        if room in asked:
            return
        held = self._held.get(room)
        if held is not None:
            self._events.append(Registered(room, held.token, held.lease_id))
            return
        if len(asked) >= self._limit:
            raise AgentBusy(self._limit)
        self._connection.send(protocol.encode_room(protocol.REGISTER, room))
        asked[room] = None

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
        if not 0 < len(rooms) <= protocol.MAX_LOT or len(set(rooms)) != len(rooms):
            raise ConfigError("rooms", f"must be 1 to {protocol.MAX_LOT} different rooms, not {len(rooms)}")
        for room in rooms:
            check_room(room)
        if self._announcement is None:
            raise NotAnnounced("announce() comes before register_lot()")
        if self._draining:
            raise RankDraining(rooms[0], "the rank is draining")
        lot = tuple(room for room in rooms if room not in self._asked and room not in self._held)
        if len(self._asked) + len(lot) > self._limit:
            raise AgentBusy(self._limit)
        held = [(room, self._held[room]) for room in rooms if room in self._held]
        self._events += [Registered(room, found.token, found.lease_id) for room, found in held]
        if lot:
            self._connection.send(protocol.encode_lot(lot))
            self._asked.update(dict.fromkeys(lot))
            self._lots.update(dict.fromkeys(lot, lot))

    def release(self, room: int) -> None:
        """The room's KV cache was handed over: delete its key. A room that is not held is no error."""
        check_room(room)
        held = self._held.pop(room, None)
        self._asked.pop(room, None)
        self._lots.pop(room, None)
        # a new agent must be told of the room before it can release it: hello() does both
        connected = self._connection.connected
        if not (connected and self._try_send(protocol.encode_room(protocol.RELEASE, room))) and held:
            self._releasing[room] = held

    def fail(self, room: int, reason: str) -> None:
        """Tell those who wait for the room that it will not come, whether it was registered or not.

        Raises:
            ConfigError: not a room, or the reason is too long.
            NotAnnounced: announce() was not called, or was refused.
        """
        check_room(room)
        check_text("reason", reason)
        if self._announcement is None:
            raise NotAnnounced("announce() comes before fail()")
        self._held.pop(room, None)
        self._lots.pop(room, None)
        if not self._try_send(protocol.encode_json(protocol.FAIL, {"room": room, "reason": reason})):
            self._asked[room] = reason

    def drain(self) -> None:
        """Take no new rooms on this rank; Drained comes when the rooms that it has have ended.

        Raises:
            NotAnnounced: announce() was not called, or was refused.
        """
        if self._announcement is None:
            raise NotAnnounced("announce() comes before drain()")
        self._draining = True
        self._connection.send(protocol.encode_json(protocol.DRAIN, {}))

    def poll(self) -> list[PrefillEvent]:
        """What has happened since the last call. Never blocks.

        Raises:
            AgentUnavailable: the agent speaks another protocol version.
        """
        self._pump()
        events, self._events = self._events, []
        return events

    # --- said again on every new connection

    def hello(self) -> Iterator[bytes]:
        """All that a new agent must know of this rank."""
        if self._announcement is None:
            return
        yield protocol.encode_json(protocol.ANNOUNCE, self._announcement)
        rooms: Iterable[tuple[int, _Held]] = [*self._held.items(), *self._releasing.items()]
        yield from protocol.encode_adopted(
            protocol.AdoptedRoom(room, held.epoch, held.token, held.lease_id) for room, held in rooms
        )
        yield from self.ask_again()
        for room in self._releasing:
            yield protocol.encode_room(protocol.RELEASE, room)
        self._releasing.clear()
        if self._draining:
            yield protocol.encode_json(protocol.DRAIN, {})

    def ask_again(self) -> Iterator[bytes]:
        """Repeat what was not answered; the agent folds repetitions."""
        for lot in dict.fromkeys(self._lots.values()):
            yield protocol.encode_lot(room for room in lot if room in self._lots)
        for room, reason in list(self._asked.items()):
            if reason is None:
                if room not in self._lots:
                    yield protocol.encode_room(protocol.REGISTER, room)
            else:
                del self._asked[room]
                yield protocol.encode_json(protocol.FAIL, {"room": room, "reason": reason})

    # --- what the agent says

    def on_announced(self, packet: bytes) -> None:
        """ANNOUNCED."""
        message = protocol.decode_json(packet)
        if self._announcement is None:
            return
        self._epoch = message["epoch"]
        self._announcement |= {name: message[name] for name in ("epoch", "key_epoch", "incarnation")}
        self._events.append(Announced(self._announcement["instance"], message["incarnation"], self._epoch))

    def on_refused(self, packet: bytes) -> None:
        """REFUSED."""
        message = protocol.decode_json(packet)
        if message["error"] == "InstanceConflict":
            self._events.append(Refused(InstanceConflict(message["instance"], message["holder"])))
        else:
            self._events.append(Refused(ConfigError(message["field"], message["rule"])))
        self._announcement = None
        self._end_epoch()

    def on_registered(self, packet: bytes) -> None:
        """REGISTERED."""
        for room, token, lease_id in protocol.decode_registered(packet):
            if room in self._asked:
                del self._asked[room]
                if self._lots:
                    self._lots.pop(room, None)
                self._held[room] = _Held(token, lease_id, self._epoch)
                self._events.append(Registered(room, token, lease_id))

    def on_rejected(self, packet: bytes) -> None:
        """REJECTED."""
        message = protocol.decode_json(packet)
        self._asked.pop(message["room"], None)
        self._lots.pop(message["room"], None)
        self._events.append(Rejected(message["room"], _rejection(message)))

    def on_rank_ended(self, packet: bytes) -> None:
        """RANK_ENDED."""
        message = protocol.decode_json(packet)
        self._events.append(RankEnded(message["epoch"], message["reason"]))
        if self._announcement is not None:
            self._announcement["epoch"] = 0
        self._end_epoch()

    def _end_epoch(self) -> None:
        self._epoch = 0
        self._held.clear()
        self._releasing.clear()

    def on_drained(self, packet: bytes) -> None:
        """DRAINED."""
        self._events.append(Drained())

    def _try_send(self, packet: bytes) -> bool:
        try:
            return self._connection.send(packet)
        except AgentBusy:
            return False


def _rejection(message: dict[str, Any]) -> EtcdPDError:
    room, kind = message["room"], message["error"]
    text = message.get("text", "").removeprefix(f"room {room}: ")  # the error says it itself
    if kind == "RoomConflict":
        return errors.RoomConflict(message.get("owned", room), message["holder"])
    if kind == "RankLost":
        return errors.RankLost(room, message["epoch"])
    if kind == "AgentBusy":
        return errors.AgentBusy(message["limit"])
    if kind == "RegistrationTimeout":
        return errors.RegistrationTimeout(room, text)
    if kind == "RankDraining":
        return errors.RankDraining(room, text)
    return errors.RegistrationError(room, text)
