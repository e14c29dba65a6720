"""The two legs of a request tell each other how they ended, whatever became of registry, agents and ranks.

A router sends a request to prefill and to decode and waits for both: a leg that cannot go on has to end the other one.
Decode's front keeps a WebSocket to the bootstrap address of each prefill instance that the registry has shown it::

    decode                          prefill
      Await(legs)        ------->                    these KV caches are wanted
      Ended(leg, ...)    <------>                    this leg ended without a result: end the other one

Where the connection is lost and does not come back at once, the other front is gone, and every leg that needs it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
from aiohttp import web

from .errors import ABORTED, RequestFailed

#: A front that answers no ping for half as long again is taken for gone, seconds.
HEARTBEAT_SECONDS = 0.7
#: How long a lost connection may take to come back before the legs that need it end, seconds.
GRACE_SECONDS = 0.8
#: Most legs that are remembered for the other side; the oldest are forgotten beyond it.
MOST_LEGS_KEPT = 10_000
#: Largest message, and most legs in one: a leg has a room and a request id of 128 characters at most.
MAX_MESSAGE_BYTES, MOST_LEGS = 65_536, 300
PATH = "/legs"
#: What is passed on of a failure's details: what was lost.
DETAILS = ("room", "instance", "dp_rank")


class Leg(NamedTuple):
    """A request, as both of its legs can name it: the room alone may be used again."""

    room: int
    request_id: str = ""


class Await(msgspec.Struct, frozen=True, tag="await"):
    """Decode waits for the KV caches of these requests."""

    legs: list[Leg]


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """The sender's leg ended without a result.

    Attributes:
        status, kind, message: the failure as its own client was told it.
        details: what else its client was told.
    """

    leg: Leg
    status: int
    kind: str
    message: str
    details: dict[str, Any] = {}

    def failure(self, other: str) -> RequestFailed:
        """The failure of this side's leg; ``other`` is the sender's role."""
        status = self.status if 500 <= self.status <= 599 else 502
        details = {name: self.details[name] for name in DETAILS if name in self.details}
        details |= {"leg": other, "cause": self.kind}
        return RequestFailed(status, f"{other.capitalize()}Failed", f"its {other} leg ended: {self.message}", **details)


encode_message = msgspec.json.Encoder().encode
decode_message = msgspec.json.Decoder(Await | Ended).decode

#: Ends this side's leg of a request.
Fail = Callable[[Leg, RequestFailed], None]


def ended(leg: Leg, error: RequestFailed) -> Ended:
    """What the other side learns of a leg's failure."""
    return Ended(leg, error.status, error.type, str(error)[:500], error.details)


def failure_of(error: BaseException) -> RequestFailed:
    """What a leg's end is called, whatever ended it."""
    if isinstance(error, RequestFailed):
        return error
    if isinstance(error, asyncio.CancelledError):
        return RequestFailed(499, ABORTED, "the client has gone")
    return RequestFailed(500, "InternalError", "see the instance's log")


class Legs:
    """What a front does for the other legs of its requests; by itself, it knows of none.

    Args:
        fail: called with a leg of this side that cannot go on.
    """

    def __init__(self, fail: Fail) -> None:
        self._fail = fail

    async def start(self, app: web.Application | None = None) -> None:
        """Begin, on this event loop."""

    def meet(self, address: str) -> None:
        """The registry knows a prefill instance at this bootstrap address."""

    def begin(self, leg: Leg, address: str) -> bool:
        """A leg begins here; False where another request has it already, which then alone may end it.

        Raises:
            RequestFailed: the other one ended before.
        """
        return True

    def end(self, leg: Leg, error: RequestFailed | None) -> None:
        """A leg has ended here, without an error where it has what it needs of the other one."""

    async def stop(self) -> None:
        """Close every connection."""


class OtherLegEnded(RequestFailed):
    """A failure that the other leg knows of."""

    @classmethod
    def of(cls, error: RequestFailed) -> OtherLegEnded:
        """The same failure, marked."""
        return cls(error.status, error.type, str(error), **error.details)
