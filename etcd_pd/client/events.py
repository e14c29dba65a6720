"""What poll() returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..errors import EtcdPDError, InstanceConflict, ResolveError
from ..wire.values import Assignment, PrefillInstance


@dataclass(frozen=True)
class Announced:
    """The rank is in etcd: it may be assigned rooms.

    Attributes:
        instance: the instance's id.
        incarnation: uuid of this start of the instance.
        epoch: create_revision of the rank's key; a new one after the agent's session was lost.
    """

    instance: str
    incarnation: str
    epoch: int


@dataclass(frozen=True)
class Refused:
    """The announcement was refused; announce again or give up."""

    error: InstanceConflict


class Registered(NamedTuple):
    """The room's key is in etcd.

    Attributes:
        room: the bootstrap room.
        token: the fencing token: create_revision of the key.
        lease_id: the lease that it hangs on (etcdctl prints it in hex).
        epoch: the rank's epoch under which it was registered, and with which it ends.
    """

    room: int
    token: int
    lease_id: int
    epoch: int


@dataclass(frozen=True)
class Rejected:
    """The room was not registered, or its registration is void: RoomConflict, RegistrationTimeout, RankLost, ..."""

    room: int
    error: EtcdPDError


@dataclass(frozen=True)
class RankEnded:
    """The rank's epoch ended and every room registered under it is dead; Announced follows with a new epoch.

    Attributes:
        epoch: the one that ended.
        reason: in a sentence.
        withdrawn: it was taken out of etcd as dead, and who waited for its rooms was notified of that. False: its keys
            went with its agent's session, so that what it registers again may still be fetched.
    """

    epoch: int
    reason: str
    withdrawn: bool = False


@dataclass(frozen=True)
class Drained:
    """After drain(): the rank's last room has ended."""


class Resolved(NamedTuple):
    """A wanted room's rank is known.

    Attributes:
        assignment: the answer; its ``instance`` is the prefill instance's id.
        instance: the instance as the caller named it, by id or address.
    """

    assignment: Assignment
    instance: str


@dataclass(frozen=True)
class Ended:
    """A wanted room will not come, or came and was lost with its rank; final."""

    error: ResolveError


@dataclass(frozen=True)
class Described:
    """The answer to follow(), and later each change of the instance.

    Attributes:
        name: the id or address as it was given to follow().
        instance: what is known of it, None where no such instance is announced.
    """

    name: str
    instance: PrefillInstance | None


PrefillEvent = Announced | Refused | Registered | Rejected | RankEnded | Drained
"""What ``client.prefill.poll()`` returns."""

DecodeEvent = Resolved | Ended | Described
"""What ``client.decode.poll()`` returns."""
