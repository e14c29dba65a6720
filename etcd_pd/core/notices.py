"""A wait for a room, and the notices that answer it: effects as data, for the agent to push."""

from __future__ import annotations

from typing import NamedTuple

from ..wire.values import Assignment
from .cell import End


class Known(NamedTuple):
    """What an earlier agent answered a wait, and the revision of etcd at which that held."""

    dp_rank: int
    epoch: int
    revision: int


class Wait:
    """One wanted room. Compared by identity: two engines may want the same room.

    Attributes:
        instance: the instance as the engine named it, by id or address.
        named_rank: the rank that the request itself named, None where it did not.
        known: what it was answered before, to be confirmed or ended; None where it was not.
        placed: id of the instance that it was found to mean, None before, and again while that is gone.
        start: of which start of an instance its room is expected: id and incarnation. None while that is not sure: the
            view that placed it may have been a moment behind etcd.
        key: the room's key there.
        assignment: set once, when the rank is known.
        asked_at: for the owner to keep when it asked.
        beyond: revision up to which the room's key is of an earlier life of the room: no answer to this wait.
    """

    __slots__ = (
        *("asked_at", "assignment", "beyond", "ended", "id", "instance", "key"),
        *("known", "named_rank", "owner", "placed", "room", "start"),
    )

    def __init__(
        self,
        owner: object,
        id: int,
        instance: str,
        room: int,
        named_rank: int | None = None,
        known: Known | None = None,
    ) -> None:
        self.owner = owner
        self.id = id
        self.instance = instance
        self.room = room
        self.named_rank = named_rank
        self.known = known
        self.asked_at = 0.0
        self.beyond = 0
        self.placed: str | None = None
        self.start: tuple[str, str] | None = None
        self.key = b""
        self.assignment: Assignment | None = None
        self.ended = False


class Resolved(NamedTuple):
    """The wait's rank is known."""

    wait: Wait
    assignment: Assignment


class WaitFailed(NamedTuple):
    """The prefill side failed the room.

    Attributes:
        arrived: what the room was before, where this wait came too late for that.
    """

    wait: Wait
    reason: str
    revision: int
    arrived: Assignment | None = None


class WaitLost(NamedTuple):
    """The rank that held the room, or the whole instance (``dp_rank`` -1), is gone from etcd.

    Attributes:
        arrived: as in WaitFailed.
        withdrawn: its processes are gone too. Else its keys went with its agent's session.
    """

    wait: Wait
    dp_rank: int
    epoch: int
    revision: int
    arrived: Assignment | None = None
    withdrawn: bool = False


class InstanceChanged(NamedTuple):
    """Instance info or live endpoints differ from before."""

    id: str


class AgentSpoke(NamedTuple):
    """An agent wrote its own key: it has listed, and others are to say that they came past that."""

    id: str


Notice = Resolved | WaitFailed | WaitLost | InstanceChanged | AgentSpoke


def collapse(notices: list[Notice]) -> list[Notice]:
    """Leave out the answers that are void by the end of a batch: their end says what they were."""
    void = {one.wait: one.assignment for one in notices if isinstance(one, Resolved) and one.wait.ended}
    if not void:
        return notices
    kept: list[Notice] = []
    for notice in notices:
        if isinstance(notice, (WaitFailed, WaitLost)) and notice.wait in void:
            kept.append(notice._replace(arrived=void[notice.wait]))
        elif not (isinstance(notice, Resolved) and notice.wait in void):
            kept.append(notice)
    return kept


def lost(wait: Wait, end: End, arrived: Assignment | None = None) -> WaitLost:
    """End a wait with an epoch's end."""
    wait.ended = True
    return WaitLost(wait, end.dp_rank, end.epoch, end.revision, arrived, end.withdrawn)
