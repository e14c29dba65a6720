"""The values that travel through etcd_pd: frozen, checked where they are made, JSON at the edge."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from ..errors import ConfigError
from .limits import MAX_ADDRESSES, MAX_PARALLEL, MAX_REVISION, check_extra, check_int, check_name, check_text

#: Reason of a room whose registration timed out: it may have been written all the same, and decode been given it.
TIMED_OUT = "its registration timed out"
#: States of ranks and instances; ``ended`` is an instance's last word, before its key goes.
SERVING, DRAINING, ENDED = "serving", "draining", "ended"
ASSIGNED, FAILED = "assigned", "failed"
#: What reading a value raises that somebody else wrote: no JSON, JSON of another shape, JSON nested too deep.
_GARBAGE = (ValueError, KeyError, TypeError, RecursionError)


@dataclass(frozen=True)
class Topology:
    """Sizes of a prefill instance's parallel dimensions; ``dp`` counts the ranks that a room can land on."""

    dp: int = 1
    cp: int = 1
    tp: int = 1
    pp: int = 1

    def __post_init__(self) -> None:
        for name in ("dp", "cp", "tp", "pp"):
            check_int(f"topology.{name}", getattr(self, name), 1, MAX_PARALLEL)

    @property
    def endpoints_per_rank(self) -> int:
        """How many processes make up one DP rank."""
        return self.cp * self.tp * self.pp


class Rank(NamedTuple):
    """One process of an instance: its index in each parallel dimension, written ``dp.cp.tp.pp`` in keys."""

    dp: int
    cp: int = 0
    tp: int = 0
    pp: int = 0

    def __str__(self) -> str:
        return f"{self.dp}.{self.cp}.{self.tp}.{self.pp}"

    def name(self, topology: Topology) -> str:
        """As people call it: the DP rank, with its place in every other dimension that has several (``2/tp1``)."""
        places = {"cp": self.cp, "tp": self.tp, "pp": self.pp}
        named = [f"{name}{place}" for name, place in places.items() if place or getattr(topology, name) > 1]
        return "/".join([str(self.dp), *named])


def check_rank(rank: object, topology: Topology) -> Rank:
    """Return ``rank`` if it is a place in the topology: one index, or up to four, none beyond its dimension.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(rank, (tuple, list)) or not 1 <= len(rank) <= 4:
        raise ConfigError("rank", f"must be a Rank, not {rank!r:.80}")
    place = Rank(*rank)
    for name in ("dp", "cp", "tp", "pp"):
        check_int(f"rank.{name}", getattr(place, name), 0, getattr(topology, name) - 1)
    return place


@dataclass(frozen=True)
class RankEndpoint:
    """Where one process of a DP rank listens for decode's KV cache requests.

    Attributes:
        rank: its place in the topology.
        ip: address of its transfer socket.
        port: port of its transfer socket.
        incarnation: the start of the instance that it belongs to.
        state: ``serving`` or ``draining``.
        epoch: create_revision of its key; 0 before it is in etcd.
    """

    rank: Rank
    ip: str
    port: int
    incarnation: str = ""
    state: str = SERVING
    epoch: int = 0

    def __post_init__(self) -> None:
        check_name("ip", self.ip)
        check_int("port", self.port, 0, 65535)

    def to_json(self) -> bytes:
        """The value of the rank's key."""
        return _dump({"incarnation": self.incarnation, "ip": self.ip, "port": self.port, "state": self.state})

    @classmethod
    def from_json(cls, rank: Rank, value: bytes, epoch: int) -> RankEndpoint | None:
        """Read a rank key's value; None where it is garbage."""
        try:
            data = json.loads(value)
            incarnation, state = check_text("incarnation", data["incarnation"]), check_text("state", data["state"])
            return cls(rank, data["ip"], data["port"], incarnation, state, epoch)
        except _GARBAGE:
            return None


@dataclass(frozen=True)
class InstanceInfo:
    """What a prefill instance says of itself: the value of ``prefill/{id}``.

    Attributes:
        incarnation: uuid of this start of the instance, chosen by its first announcer.
        launch_id: what all processes and nodes of one start have in common.
        addresses: the ``host:port`` spellings that requests may carry as bootstrap address.
        topology: sizes of its parallel dimensions.
        policy: its DP dispatch policy; ``follow_bootstrap_room`` means that decode may compute the rank.
        fingerprint: what must match between prefill and decode (model, KV layout, version), opaque here.
        state: ``serving``, or ``ended`` where this start is over for good.
        extra: what else its engine wants decode to know, as a small JSON object, opaque here.
        began: create_revision of this start's first key, where the key was lost and written again; 0: this is it.
    """

    incarnation: str
    launch_id: str
    addresses: tuple[str, ...]
    topology: Topology
    policy: str
    fingerprint: str = ""
    state: str = SERVING
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    began: int = 0

    def __post_init__(self) -> None:
        check_name("launch_id", self.launch_id)
        check_name("policy", self.policy)
        check_text("fingerprint", self.fingerprint)
        check_extra(self.extra)
        check_int("began", self.began, 0, MAX_REVISION)
        if len(self.addresses) > MAX_ADDRESSES:
            raise ConfigError("addresses", f"must be at most {MAX_ADDRESSES}")
        for address in self.addresses:
            check_name("addresses", address)

    def to_json(self) -> bytes:
        """The value of the instance's key."""
        return _dump(asdict(self))

    @classmethod
    def from_json(cls, value: bytes) -> InstanceInfo | None:
        """Read an instance key's value; None where it is garbage."""
        try:
            data = json.loads(value)
            if not isinstance(data["addresses"], list):
                return None
            return cls(
                incarnation=check_text("incarnation", data["incarnation"]),
                launch_id=data["launch_id"],
                addresses=tuple(data["addresses"]),
                topology=Topology(**data["topology"]),
                policy=data["policy"],
                fingerprint=data.get("fingerprint", ""),
                state=check_text("state", data.get("state", SERVING)),
                extra=data.get("extra", {}),
                began=data.get("began", 0),
            )
        except _GARBAGE:
            return None


@dataclass(frozen=True)
class RoomValue:
    """The value of ``rooms/{id}/{room}``: which DP rank owns the room, under which epoch."""

    dp_rank: int
    epoch: int
    state: str = ASSIGNED
    reason: str = ""

    def to_json(self) -> bytes:
        """The value of the room's key. Written by hand on the hot path: dp_rank and epoch are integers."""
        if self.state == ASSIGNED:
            return b'{"dp_rank":%d,"epoch":%d,"state":"assigned"}' % (self.dp_rank, self.epoch)
        return _dump(asdict(self))

    @classmethod
    def from_json(cls, value: bytes) -> RoomValue | None:
        """Read a room key's value; None where it is garbage."""
        return _room_value(value) if len(value) <= _REMEMBERED_BYTES else _parse_room_value(value)


def _parse_room_value(value: bytes) -> RoomValue | None:
    try:
        data = json.loads(value)
        dp_rank, epoch, state = data["dp_rank"], data["epoch"], data["state"]
        reason = check_text("reason", data.get("reason", ""))
    except _GARBAGE:
        return None
    if type(dp_rank) is not int or type(epoch) is not int or state not in (ASSIGNED, FAILED) or dp_rank < 0:
        return None
    return RoomValue(dp_rank, epoch, state, reason)


#: Longest value that is parsed once for all: what all assigned rooms of a rank's epoch hold is about 50 bytes.
_REMEMBERED_BYTES = 128
_room_value = lru_cache(maxsize=1024)(_parse_room_value)


@dataclass(frozen=True)
class PrefillInstance:
    """A prefill instance as decode sees it.

    Attributes:
        id: its stable id.
        info: what it says of itself.
        ranks: the endpoints of its processes that are alive.
    """

    id: str
    info: InstanceInfo
    ranks: tuple[RankEndpoint, ...]

    def endpoints(self, dp_rank: int) -> tuple[RankEndpoint, ...]:
        """The processes of one DP rank, in cp, tp, pp order."""
        return tuple(sorted((e for e in self.ranks if e.rank.dp == dp_rank), key=lambda e: e.rank))


class Assignment(NamedTuple):
    """The answer: which prefill rank holds a room's KV cache.

    Attributes:
        instance: id of the prefill instance.
        room: the bootstrap room.
        dp_rank: the data-parallel rank.
        epoch: create_revision of that rank's key; the assignment holds while it lives.
        revision: etcd revision at which the assignment became visible (the same for every reader).
        lease_id: etcd lease that the room's key hangs on, 0 where the rank was computed.
        source: ``registry``, ``named``, ``single-rank`` or ``follow-bootstrap-room``.
        stale: True where the agent was cut off from etcd when this answer was given.
    """

    instance: str
    room: int
    dp_rank: int
    epoch: int
    revision: int
    lease_id: int
    source: str
    stale: bool = False


def leaving(value: bytes) -> bytes:
    """A key's value as the last word of a process that ends as it was asked to."""
    return _dump({**json.loads(value), "left": True})


def has_left(value: bytes) -> bool:
    """Whether a key's value says that its process is to end: that it drains, or has left."""
    try:
        data = json.loads(value)
        return data.get("left") is True or data.get("state") == DRAINING
    except (*_GARBAGE, AttributeError):
        return False


def _dump(data: dict[str, Any]) -> bytes:
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode()
