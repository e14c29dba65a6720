"""Every error that etcd_pd raises or reports, as one tree.

::

    EtcdPDError
    ├── ConfigError (ValueError)      field, rule        the caller's settings or arguments; before any I/O
    ├── ProtocolError                                    a packet between client and agent that cannot be understood
    ├── StoreError                    op                 raised by the store adapter alone
    │   ├── StoreUnavailable                             unreachable or no leader; retryable
    │   │   ├── StoreTimeout (TimeoutError)              a write's outcome is unknown: read back
    │   │   └── StoreBusy                                etcd did nothing: overloaded, or its database is full
    │   ├── StoreRejected                                authentication, too large, bad request
    │   ├── LeaseNotFound                                the lease is gone
    │   └── Compacted                                    the watch must relist
    ├── AgentError
    │   ├── AgentUnavailable                             no agent answers on the socket
    │   └── AgentBusy                 limit              the bounded queue towards the agent is full
    ├── AnnounceError
    │   ├── InstanceConflict          instance, holder   another live start owns the instance's name
    │   └── NotAnnounced                                 the rank was never announced, or its announcement was refused
    ├── RegistrationError             room
    │   ├── RoomConflict              room, holder       another live rank owns the room
    │   ├── RegistrationTimeout       room               etcd took no write for so long that the room is given up
    │   ├── RankDraining              room               the rank takes no new rooms
    │   └── RankLost                  room, epoch        the rank's epoch ended; its rooms are dead
    └── ResolveError                  instance, room
        ├── RoomFailed                reason             the prefill side said that it will not come; final
        ├── PrefillLost               dp_rank, epoch     the rank that held the room is gone; final
        ├── RoomTimeout (TimeoutError)                   the wait's own deadline passed; final
        ├── InstanceUnknown                              no such prefill instance within its deadline; final
        ├── RoomsNotWatched                              the agent serves prefill engines alone; final
        └── ViewStale                                    cannot tell at present: the agent is cut off from etcd
"""

from __future__ import annotations


class EtcdPDError(Exception):
    """Base of every error of this package."""


class ConfigError(EtcdPDError, ValueError):
    """A setting or an argument breaks a rule.

    Attributes:
        field: name of the setting or argument, as the caller spelled it.
        rule: what it must satisfy.
    """

    def __init__(self, field: str, rule: str) -> None:
        super().__init__(f"{field}: {rule}")
        self.field = field
        self.rule = rule


class ProtocolError(EtcdPDError):
    """A packet between client and agent could not be understood."""


class StoreError(EtcdPDError):
    """etcd did not do what was asked.

    Attributes:
        op: the operation, for example ``"txn"``.
    """

    def __init__(self, op: str, message: str) -> None:
        super().__init__(f"{op}: {message}")
        self.op = op


class StoreUnavailable(StoreError):
    """No endpoint answered, or the cluster has no leader. A read may be repeated."""


class StoreTimeout(StoreUnavailable, TimeoutError):
    """The deadline passed; whether a write happened is unknown and must be read back."""


class StoreBusy(StoreUnavailable):
    """etcd did nothing of it, and will later: it is overloaded, or its database is full. Pause, and say it again."""


class StoreRejected(StoreError):
    """etcd understood the request and refused it, as it will again: authentication, size, malformed."""


class LeaseNotFound(StoreError):
    """The lease does not exist, or has expired."""

    def __init__(self, op: str) -> None:
        super().__init__(op, "lease not found")


class Compacted(StoreError):
    """The revision asked for was compacted away."""

    def __init__(self, op: str) -> None:
        super().__init__(op, "revision compacted")


class AgentError(EtcdPDError):
    """The agent of this node cannot take the call."""


class AgentUnavailable(AgentError):
    """No agent answers on the socket at present; the client keeps trying inside its calls."""


class AgentBusy(AgentError):
    """The bounded queue towards the agent is full; nothing was queued, call again later."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} messages wait for the agent already")
        self.limit = limit


class AnnounceError(EtcdPDError):
    """A rank could not be announced."""


class InstanceConflict(AnnounceError):
    """Another live start owns this instance's name, or its topology differs.

    Attributes:
        instance: the instance's id.
        holder: who owns it, in words.
    """

    def __init__(self, instance: str, holder: str) -> None:
        super().__init__(f"instance {instance!r} belongs to {holder}")
        self.instance = instance
        self.holder = holder


class NotAnnounced(AnnounceError):
    """register() was called before announce(), or after the announcement was refused."""


class RegistrationError(EtcdPDError):
    """A room could not be registered.

    Attributes:
        room: the bootstrap room.
    """

    def __init__(self, room: int, message: str) -> None:
        super().__init__(f"room {room}: {message}")
        self.room = room


class RoomConflict(RegistrationError):
    """Another live rank owns the room.

    Attributes:
        holder: the owner as ``instance/dp_rank@epoch``.
    """

    def __init__(self, room: int, holder: str) -> None:
        super().__init__(room, f"owned by {holder}")
        self.holder = holder


class RegistrationTimeout(RegistrationError):
    """etcd took no write before the registration's deadline; nothing was registered."""


class RankDraining(RegistrationError):
    """The rank is draining and takes no new rooms."""


class RankLost(RegistrationError):
    """The rank's epoch ended before the room was written, or took the room with it.

    Attributes:
        epoch: the epoch that ended.
    """

    def __init__(self, room: int, epoch: int) -> None:
        super().__init__(room, f"epoch {epoch} of its rank ended")
        self.epoch = epoch


class ResolveError(EtcdPDError):
    """A wanted room has no usable rank.

    Attributes:
        instance: the prefill instance as the caller named it.
        room: the bootstrap room.
    """

    def __init__(self, instance: str, room: int, message: str) -> None:
        super().__init__(f"room {room} of {instance}: {message}")
        self.instance = instance
        self.room = room


class RoomFailed(ResolveError):
    """The prefill side failed the room; final.

    Attributes:
        reason: what the prefill engine said.
    """

    def __init__(self, instance: str, room: int, reason: str) -> None:
        super().__init__(instance, room, f"failed by prefill: {reason}")
        self.reason = reason


class PrefillLost(ResolveError):
    """The prefill rank that held the room is gone; final.

    Attributes:
        dp_rank: the rank, -1 where the whole instance went before the rank was known.
        epoch: the epoch that ended, 0 where it was not known.
        withdrawn: the agent at its side took it out of etcd, because its process ended, was silent or was evicted:
            nothing of it will come. False: its keys went with its agent's session, or it is not known how they
            went, and the process itself may live and hand over what it began to.
    """

    def __init__(self, instance: str, room: int, dp_rank: int, epoch: int, withdrawn: bool = False) -> None:
        who = f"dp_rank {dp_rank}" if dp_rank >= 0 else "instance"
        of = f" (epoch {epoch})" if epoch else ""
        super().__init__(instance, room, f"the prefill {who}{of} is gone")
        self.dp_rank = dp_rank
        self.epoch = epoch
        self.withdrawn = withdrawn


class RoomTimeout(ResolveError, TimeoutError):
    """The wait's own deadline passed without an assignment; final."""

    def __init__(self, instance: str, room: int) -> None:
        super().__init__(instance, room, "nobody registered it before the deadline")


class InstanceUnknown(ResolveError):
    """No prefill instance of that id or address appeared within its deadline; final."""

    def __init__(self, instance: str, room: int) -> None:
        super().__init__(instance, room, "no such prefill instance")


class RoomsNotWatched(ResolveError):
    """The agent serves prefill engines alone (its setting ``prefill_only``) and cannot tell; final."""

    def __init__(self, instance: str, room: int) -> None:
        super().__init__(instance, room, "the agent watches no rooms (prefill_only)")


class ViewStale(ResolveError):
    """Cannot tell at present: the agent is cut off from etcd. Ask again; the wait goes on."""

    def __init__(self, instance: str, room: int) -> None:
        super().__init__(instance, room, "the agent's view of etcd is stale")
