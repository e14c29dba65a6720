"""The rare packets from client to agent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError
from . import messages
from .limits import MAX_REVISION, check_heartbeat, check_int, check_linger, check_name, check_room, check_text
from .packet import Packet, check_type
from .values import InstanceInfo, Rank, RankEndpoint, Topology, check_rank


@dataclass(frozen=True)
class Hello(Packet):
    """The first packet of a connection.

    Attributes:
        protocol: the client's version of it.
        heartbeat: seconds of silence after which the engine counts as dead; None: only its socket's end counts.
        cluster_id, revision: how far the client has seen which etcd; zeros before it has.
        process: a name that the client gave itself by chance, the same on all its connections: what it says it numbers.
    """

    KIND = messages.HELLO

    protocol: object
    heartbeat: float | None = field(default_factory=lambda: None)  # sent also where there is none
    cluster_id: int = 0
    revision: int = 0
    process: str = ""

    def __post_init__(self) -> None:
        check_text("process", self.process)
        check_int("cluster_id", self.cluster_id, 0, 2**64 - 1)
        check_int("revision", self.revision, 0, MAX_REVISION)
        if self.heartbeat is not None:
            check_heartbeat(self.heartbeat)


@dataclass(frozen=True)
class Announce(Packet):
    """A rank, as :meth:`etcd_pd.client.Prefill.announce` describes it.

    Attributes:
        epoch, key_epoch, incarnation: what an earlier agent made of it; zeros and empty where none has.
    """

    KIND = messages.ANNOUNCE

    instance: str
    rank: Rank
    topology: Topology
    launch_id: str
    addresses: Sequence[str]
    ip: str
    port: int
    policy: str
    fingerprint: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    linger: float = field(default_factory=float)
    epoch: int = 0
    key_epoch: int = 0
    incarnation: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.topology, Mapping):
            self._set(topology=Topology(**self.topology))
        check_type("topology", self.topology, Topology)
        if isinstance(self.addresses, str):
            raise ConfigError("addresses", "must be a sequence of host:port strings, not a string")
        self._set(addresses=tuple(self.addresses), rank=check_rank(self.rank, self.topology))
        check_name("instance", self.instance)
        check_linger(self.linger)
        check_text("incarnation", self.incarnation)
        check_int("epoch", self.epoch, 0, MAX_REVISION)
        check_int("key_epoch", self.key_epoch, 0, MAX_REVISION)
        self.info, self.endpoint  # noqa: B018  # which check the rest

    @property
    def info(self) -> InstanceInfo:
        """What it says of its instance; the incarnation is etcd's to decide."""
        launch = (self.launch_id, tuple(self.addresses), self.topology, self.policy, self.fingerprint)
        return InstanceInfo("", *launch, extra=self.extra)

    @property
    def endpoint(self) -> RankEndpoint:
        """Where the rank hands over KV caches."""
        return RankEndpoint(self.rank, self.ip, self.port, self.incarnation)


@dataclass(frozen=True)
class Decoder(Packet):
    """A decode instance wants to be seen in etcd; ``address`` may be empty."""

    KIND = messages.DECODER

    instance: str
    address: str = field(default_factory=str)

    def __post_init__(self) -> None:
        check_name("instance", self.instance)
        if self.address:
            check_name("address", self.address)


@dataclass(frozen=True)
class Fail(Packet):
    """A room will not come; ``sequence`` as with what is said of rooms elsewhere."""

    KIND = messages.FAIL

    room: int
    reason: str
    sequence: int

    def __post_init__(self) -> None:
        check_room(self.room)
        check_text("reason", self.reason)
        check_int("sequence", self.sequence, 1, MAX_REVISION)


@dataclass(frozen=True)
class Look(Packet):
    """Somebody looks at the cell; ``gone``: not at what is there, but at who is gone, as :mod:`.listing` says it."""

    KIND = messages.LOOK

    gone: bool = False

    def __post_init__(self) -> None:
        check_type("gone", self.gone, bool)
