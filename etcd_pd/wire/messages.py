"""Messages between client and agent: one packet each, on a Unix SOCK_SEQPACKET socket, at most 64 KiB.

The first byte is the kind. What is said for every room is packed binary records, many to a packet, and stands here; the
rest is JSON, in :mod:`.to_agent` and :mod:`.to_client`. Anything malformed raises ProtocolError.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from ..errors import ProtocolError

#: Both sides name it in their first message; a difference ends the connection with a clear error.
VERSION = 3
#: Longest packet. A socket's send buffer must take it whole.
MAX_PACKET = 65_536
#: How often the agent says VIEW to everybody, and after how long a silence it is not relied on any more, seconds.
SIGN_SECONDS, SILENCE_SECONDS = 0.5, 2.0

# client -> agent
HELLO, ANNOUNCE, DECODER = b"H", b"A", b"E"
REGISTER, RELEASE, ADOPT, FAIL, DRAIN = b"R", b"L", b"O", b"F", b"N"
WANT, DONE, FOLLOW, PING, BYE = b"W", b"X", b"K", b"P", b"B"
DRAIN_NODE, LEAVE_NODE, REGISTER_LOT, LOOK, LOOK_ON = b"D", b"Y", b"G", b"V", b"C"
# agent -> client
WELCOME, ANNOUNCED, REFUSED, RANK_ENDED, DRAINED = b"h", b"a", b"u", b"e", b"n"
REGISTERED, REJECTED, INSTANCE, RESOLVED, ENDED, VIEW, LOST_PUSHES = b"r", b"j", b"i", b"s", b"x", b"v", b"l"
DURABLE, HISTORY_LOST, LOOKED, KEYS = b"d", b"o", b"w", b"k"

#: Kinds that are a list of records: two packets of one kind say the same as one that holds the records of both.
LISTS = (REGISTER, RELEASE, DONE)

_SAID = struct.Struct("<QQ")
_ID = struct.Struct("<Q")
_ADOPTED = struct.Struct("<Qqqq")
_WANT = struct.Struct("<QQidiqq")
_REGISTERED = struct.Struct("<QqqqQ")
_VIEW = struct.Struct("<qBQqQQ")
_RESOLVED = struct.Struct("<QiqqqBI")

#: Answers that fit one RESOLVED packet.
RESOLVED_PER_PACKET = (MAX_PACKET - 1 - _VIEW.size) // _RESOLVED.size

#: Most rooms in a lot: with the guards of its rank they fit one transaction of etcd's 128 operations.
MAX_LOT = 120

#: Where an assignment came from, by its number on the wire.
SOURCES = ("registry", "named", "single-rank", "follow-bootstrap-room")
#: What the view may be, by its number on the wire.
VIEWS = ("synced", "stale", "closed")


class AdoptedRoom(NamedTuple):
    """A room that an engine registered through an earlier agent."""

    room: int
    epoch: int
    token: int
    lease_id: int


class WantedRoom(NamedTuple):
    """A wait.

    Attributes:
        named_rank: the rank that the request names, -1 where it names none.
        seconds: until its deadline.
        known_rank: the rank that an earlier agent gave, under ``known_epoch``, -1 where none has.
        known_revision: of etcd, at which that held, 0 where that was another etcd's; where no rank was given, up to
            which the room's key is of an earlier life of the room, that this process is done with.
    """

    id: int
    room: int
    named_rank: int
    seconds: float
    instance: str
    known_rank: int = -1
    known_epoch: int = 0
    known_revision: int = 0


class RegisteredRoom(NamedTuple):
    """A room that is in etcd: the answer to the REGISTER of this number."""

    room: int
    token: int
    lease_id: int
    epoch: int
    sequence: int


class ViewAt(NamedTuple):
    """How much the agent has sent this engine so far.

    Attributes:
        revision: every change up to it that concerns the engine's wants was sent before this packet.
        view: state of the agent's view of etcd, an index into VIEWS.
        last_want: number of the engine's latest want that this holds for.
        floor: revision of the agent's last list: what ended before it may be said to have ended at it.
        round: of the last PING that named one: everything that the engine said before that was looked at.
        cluster_id: of the etcd that the agent reads, 0 before it has.
    """

    revision: int
    view: int
    last_want: int
    floor: int
    round: int
    cluster_id: int


class Answer(NamedTuple):
    """What :class:`ResolvedWant` has beside its id."""

    dp_rank: int
    epoch: int
    revision: int
    lease_id: int
    source: int
    instance: int = 0


class ResolvedWant(NamedTuple):
    """The answer to a want; ``source`` indexes SOURCES.

    Attributes:
        instance: number of the instance's INSTANCE packet, 0 where it was too large to be sent.
    """

    id: int
    dp_rank: int
    epoch: int
    revision: int
    lease_id: int
    source: int
    instance: int = 0


def encode_room(kind: bytes, room: int, sequence: int) -> bytes:
    """REGISTER or RELEASE of one room."""
    return kind + _SAID.pack(room, sequence)


def encode_lot(rooms: Iterable[tuple[int, int]]) -> bytes:
    """A REGISTER_LOT packet of rooms, each with its number as in :func:`decode_rooms`."""
    return REGISTER_LOT + b"".join([_SAID.pack(*said) for said in rooms])


def decode_rooms(packet: bytes) -> list[tuple[int, int]]:
    """The rooms of a REGISTER, REGISTER_LOT or RELEASE packet, each with the number of what is said; they only grow."""
    return [(room, sequence) for room, sequence in _records(_SAID, packet)]


def encode_durable(sequence: int) -> bytes:
    """A DURABLE packet: etcd has each release and failure up to this number, or has no need of it."""
    return DURABLE + _ID.pack(sequence)


def decode_durable(packet: bytes) -> int:
    """The number in a DURABLE packet."""
    return _number(packet)


def encode_follow(instance: str) -> bytes:
    """A FOLLOW packet for an instance's id or address."""
    return FOLLOW + instance.encode()


def decode_follow(packet: bytes) -> str:
    """The name in a FOLLOW packet."""
    try:
        return packet[1:].decode()
    except UnicodeDecodeError as exc:
        raise ProtocolError("malformed FOLLOW packet") from exc


def encode_ping(round: int) -> bytes:
    """A PING that asks for this number in every VIEW from its answer on."""
    return PING + _ID.pack(round)


def decode_ping(packet: bytes) -> int:
    """The number in a PING packet, 0 where it is a bare sign of life."""
    return _number(packet) if len(packet) > 1 else 0


def encode_done(id: int) -> bytes:
    """DONE for one want."""
    return DONE + _ID.pack(id)


def decode_done(packet: bytes) -> list[int]:
    """The want ids of a DONE packet."""
    return [id for (id,) in _records(_ID, packet)]


def encode_adopted(rooms: Iterable[AdoptedRoom]) -> Iterator[bytes]:
    """ADOPT packets for any number of rooms."""
    return _pack_all(ADOPT, _ADOPTED, rooms)


def decode_adopted(packet: bytes) -> list[AdoptedRoom]:
    """The rooms of an ADOPT packet."""
    return [AdoptedRoom._make(record) for record in _records(_ADOPTED, packet)]


def encode_want(want: WantedRoom) -> bytes:
    """A WANT packet."""
    id, room, named_rank, seconds, instance, *known = want
    return WANT + _WANT.pack(id, room, named_rank, seconds, *known) + instance.encode()


def decode_want(packet: bytes) -> WantedRoom:
    """The wait of a WANT packet."""
    try:
        id, room, named_rank, seconds, *known = _WANT.unpack_from(packet, 1)
        want = WantedRoom(id, room, named_rank, seconds, packet[1 + _WANT.size :].decode(), *known)
    except (struct.error, UnicodeDecodeError) as exc:
        raise ProtocolError("malformed WANT packet") from exc
    if not math.isfinite(want.seconds):
        raise ProtocolError(f"WANT of room {want.room} for {want.seconds} s")
    return want


def encode_registered(rooms: Iterable[tuple[int, int, int, int, int]]) -> Iterator[bytes]:
    """REGISTERED packets for any number of :class:`RegisteredRoom`, or tuples of the same."""
    return _pack_all(REGISTERED, _REGISTERED, rooms)


def decode_registered(packet: bytes) -> Iterator[tuple[Any, ...]]:
    """What :class:`RegisteredRoom` has, of each room in a REGISTERED packet."""
    return _records(_REGISTERED, packet)


def encode_view(at: ViewAt) -> bytes:
    """A VIEW packet."""
    return VIEW + _VIEW.pack(*at)


def encode_resolved(at: ViewAt, wants: Iterable[ResolvedWant]) -> Iterator[bytes]:
    """RESOLVED packets; each says first what a VIEW packet says."""
    return _pack_all(RESOLVED + _VIEW.pack(*at), _RESOLVED, wants)


def decode_view(packet: bytes) -> ViewAt:
    """The head of a VIEW or RESOLVED packet."""
    try:
        at = ViewAt._make(_VIEW.unpack_from(packet, 1))
    except struct.error as exc:
        raise ProtocolError("malformed VIEW packet") from exc
    if at.view >= len(VIEWS):
        raise ProtocolError(f"VIEW {at.view}, which this version does not know")
    return at


def source_of(number: int) -> str:
    """The name of a source of assignments.

    Raises:
        ProtocolError: there is no such number.
    """
    try:
        return SOURCES[number]
    except IndexError:
        raise ProtocolError(f"source {number}, which this version does not know") from None


def decode_resolved(packet: bytes) -> Iterator[ResolvedWant]:
    """The answers of a RESOLVED packet."""
    try:
        return map(ResolvedWant._make, _RESOLVED.iter_unpack(memoryview(packet)[1 + _VIEW.size :]))
    except struct.error as exc:
        raise ProtocolError("malformed RESOLVED packet") from exc


def _number(packet: bytes) -> int:
    try:
        return int(_ID.unpack_from(packet, 1)[0])
    except struct.error as exc:
        raise ProtocolError(f"malformed {packet[:1]!r} packet") from exc


def _records(record: struct.Struct, packet: bytes) -> Iterator[tuple[Any, ...]]:
    try:
        return record.iter_unpack(memoryview(packet)[1:])
    except struct.error as exc:
        raise ProtocolError(f"malformed {packet[:1]!r} packet") from exc


def _pack_all(head: bytes, record: struct.Struct, items: Iterable[tuple[Any, ...]]) -> Iterator[bytes]:
    whole = b"".join([record.pack(*item) for item in items])
    step = (MAX_PACKET - len(head)) // record.size * record.size
    for start in range(0, len(whole), step):
        yield head + whole[start : start + step]
