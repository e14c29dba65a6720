"""The rare packets from agent to client. Their texts may be longer than what is stored: only their type is checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import messages
from .limits import MAX_REVISION, check_int, check_room, check_seconds
from .packet import Packet, check_type
from .values import InstanceInfo, PrefillInstance, Rank, RankEndpoint, Topology

#: Longest time that a view may be stale, or remember, in seconds: a bound on nonsense.
MAX_AGE = 1e9


@dataclass(frozen=True)
class Welcome(Packet):
    """The answer to Hello.

    Attributes:
        agent: its id.
        synced: it has seen all of etcd once.
        refused: why it does not serve this client, and what to upgrade; empty where it does.
    """

    KIND = messages.WELCOME

    agent: str = ""
    synced: bool = False
    refused: str = ""

    def __post_init__(self) -> None:
        check_type("refused", self.refused, str)


@dataclass(frozen=True)
class Looked(Packet):
    """The answer to Look; what was looked at follows as it is at this moment, in KEYS, a packet for each LOOK_ON.

    Attributes:
        agent: its id.
        root: of its cell.
        revision: of etcd that its view is at, 0 before it has seen etcd.
        stale_seconds: for how long changes may be missing in it, 0 while none are.
        prefill_only: it follows no rooms.
        memory_seconds: for how long it would know of somebody who is gone.
        session: state of its session's lease: ``live``, ``suspect`` or ``lost``; empty where it does not say.
        watch: state of its view: ``synced``, ``stale`` or ``closed``; empty where it does not say.
        register_seconds, resolve_seconds: how long registrations and questions took since it began: how many at most
            so many seconds each, as (seconds, how many).
    """

    KIND = messages.LOOKED

    agent: str
    root: str
    revision: int = 0
    stale_seconds: float = 0.0
    prefill_only: bool = False
    memory_seconds: float = 0.0
    session: str = ""
    watch: str = ""
    register_seconds: Sequence[tuple[float, int]] = ()
    resolve_seconds: Sequence[tuple[float, int]] = ()

    def __post_init__(self) -> None:
        check_type("agent", self.agent, str)
        check_type("root", self.root, str)
        check_int("revision", self.revision, 0, MAX_REVISION)
        check_seconds("stale_seconds", self.stale_seconds, 0, MAX_AGE)
        check_seconds("memory_seconds", self.memory_seconds, 0, MAX_AGE)
        for name in ("session", "watch"):
            check_type(name, getattr(self, name), str)
        for name in ("register_seconds", "resolve_seconds"):
            self._set(**{name: tuple(_check_counts(name, getattr(self, name)))})
        check_type("prefill_only", self.prefill_only, bool)


def _check_counts(field: str, counts: Sequence[tuple[float, int]]) -> Iterator[tuple[float, int]]:
    for seconds, count in counts:
        check_int(field, count, 0, MAX_REVISION)
        yield check_seconds(field, seconds, 0, MAX_AGE), count


@dataclass(frozen=True)
class Announced(Packet):
    """The rank is in etcd.

    Attributes:
        epoch: of its DP rank.
        key_epoch: create_revision of its own key.
        incarnation: the start of the instance that it belongs to.
    """

    KIND = messages.ANNOUNCED

    epoch: int
    key_epoch: int
    incarnation: str

    def __post_init__(self) -> None:
        check_int("epoch", self.epoch, 1, MAX_REVISION)
        check_int("key_epoch", self.key_epoch, 0, MAX_REVISION)
        check_type("incarnation", self.incarnation, str)


@dataclass(frozen=True)
class Refused(Packet):
    """The rank was not let in: ``holder`` has the instance's name."""

    KIND = messages.REFUSED

    instance: str
    holder: str

    def __post_init__(self) -> None:
        check_type("instance", self.instance, str)
        check_type("holder", self.holder, str)


@dataclass(frozen=True)
class RankEnded(Packet):
    """The epoch of the rank has ended; ``withdrawn``: not with its agent's session, but by itself."""

    KIND = messages.RANK_ENDED

    epoch: int
    reason: str
    withdrawn: bool = False

    def __post_init__(self) -> None:
        check_int("epoch", self.epoch, 0, MAX_REVISION)
        check_type("reason", self.reason, str)
        check_type("withdrawn", self.withdrawn, bool)


@dataclass(frozen=True)
class Rejected(Packet):
    """A room was not registered.

    Attributes:
        error: name of the error's class.
        text: what it says.
        sequence: the number of the registration.
        holder, owned: of a RoomConflict: who has which room.
        epoch: of a RankLost.
        limit: of an AgentBusy.
    """

    KIND = messages.REJECTED

    room: int
    sequence: int
    error: str
    text: str = ""
    holder: str = ""
    owned: int | None = None
    epoch: int = 0
    limit: int = 0

    def __post_init__(self) -> None:
        check_room(self.room)
        check_int("sequence", self.sequence, 0, MAX_REVISION)
        for name in ("error", "text", "holder"):
            check_type(name, getattr(self, name), str)
        if self.owned is not None:
            check_room(self.owned)
        check_int("epoch", self.epoch, 0, MAX_REVISION)
        check_int("limit", self.limit, 0, MAX_REVISION)


@dataclass(frozen=True)
class Ended(Packet):
    """A wait has ended without its rank, or after it.

    Attributes:
        id: of the want.
        error: name of the error's class.
        revision: of etcd at which that held, 0 where the agent's clock decided.
        reason: of a RoomFailed.
        dp_rank, epoch: of a PrefillLost; -1 and 0 where all of the instance is lost.
        arrived: what the room was before, where the wait came too late for that: as a RESOLVED record without its id.
        withdrawn: of a PrefillLost: its processes are gone, not only its keys.
    """

    KIND = messages.ENDED

    id: int
    error: str
    revision: int = 0
    reason: str = ""
    dp_rank: int = -1
    epoch: int = 0
    arrived: messages.Answer | None = None
    withdrawn: bool = False

    def __post_init__(self) -> None:
        check_int("id", self.id, 0, 2**64 - 1)
        check_int("revision", self.revision, 0, MAX_REVISION)
        check_int("dp_rank", self.dp_rank, -1, 2**31 - 1)
        check_int("epoch", self.epoch, 0, MAX_REVISION)
        check_type("error", self.error, str)
        check_type("reason", self.reason, str)
        check_type("withdrawn", self.withdrawn, bool)
        if self.arrived is not None:
            answer = messages.Answer(*self.arrived)
            for name, value in zip(answer._fields, answer, strict=True):
                check_int(f"arrived.{name}", value, 0, MAX_REVISION)
            messages.source_of(answer.source)
            self._set(arrived=answer)


@dataclass(frozen=True)
class Instance(Packet):
    """An instance as the agent sees it.

    Attributes:
        number: short for it in answers on this connection.
        names: its id and addresses, as far as the engine asked for them and they mean this instance.
        info: what it says of itself, None where it is not there.
        ranks: of each endpoint its rank, ip, port, state and epoch.
    """

    KIND = messages.INSTANCE

    id: str
    number: int
    names: tuple[str, ...]
    info: InstanceInfo | None = field(default_factory=lambda: None)
    ranks: tuple[tuple[Any, ...], ...] = field(default_factory=tuple)

    @classmethod
    def describe(cls, id: str, number: int, names: tuple[str, ...], found: PrefillInstance | None) -> Instance:
        """As the view shows it."""
        if found is None:
            return cls(id, number, names)
        return cls(id, number, names, found.info, tuple((e.rank, e.ip, e.port, e.state, e.epoch) for e in found.ranks))

    def __post_init__(self) -> None:
        check_type("id", self.id, str)
        check_int("number", self.number, 0, 2**32 - 1)
        for name in self.names:
            check_type("names", name, str)
        raw: object = self.info
        if isinstance(raw, Mapping):
            given = {**raw, "topology": Topology(**raw["topology"])}
            self._set(info=InstanceInfo(**{**given, "addresses": tuple(given["addresses"])}))
        elif raw is not None:
            check_type("info", raw, InstanceInfo)
        self.instance  # noqa: B018  # which checks the ranks

    @property
    def instance(self) -> PrefillInstance | None:
        """As decode sees it."""
        if self.info is None:
            return None
        start = self.info.incarnation
        ranks = tuple(RankEndpoint(Rank(*rank), ip, port, start, *more) for rank, ip, port, *more in self.ranks)
        return PrefillInstance(self.id, self.info, ranks)
