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
import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import aiohttp
import msgspec
from aiohttp import web

from .errors import ABORTED, RequestFailed

_log = logging.getLogger(__name__)

#: A front that answers no ping for half as long again is taken for gone, seconds.
HEARTBEAT_SECONDS = 0.7
#: How long a lost connection may take to come back before the legs that need it end, seconds.
GRACE_SECONDS = 0.8
#: How long it is kept that a leg ended before the other one came, seconds.
EARLY_SECONDS = 5.0
#: Most legs that are known here alone; the oldest are forgotten beyond it.
MOST_EARLY = 10_000
#: Pause between two attempts to connect, seconds.
RETRY_SECONDS = 0.1
#: An unused connection, and what is known of an instance that has gone, are kept this long, seconds.
IDLE_SECONDS = 60.0
#: Largest message, and most legs in one: a leg has a room and a request id of 128 characters at most.
MAX_MESSAGE_BYTES, MOST_LEGS = 65_536, 300
PATH = "/legs"


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
        status = self.status if self.status >= 500 else 502
        details = {**self.details, "leg": other, "cause": self.kind}
        return RequestFailed(status, f"{other.capitalize()}Failed", f"its {other} leg ended: {self.message}", **details)


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Await | Ended).decode

#: Ends this side's leg of a request.
Fail = Callable[[Leg, RequestFailed], None]


def _ended(leg: Leg, error: RequestFailed) -> Ended:
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


class _Early(NamedTuple):
    """What is known of a leg while its request is not here: who waits for it, or how it ended on either side."""

    expires: float
    decode: web.WebSocketResponse | None = None
    ended: Ended | None = None
    by_decode: bool = False


class PrefillLegs(Legs):
    """Prefill's end: it listens, and knows which decode waits for which of its requests.

    Args:
        fail: called with a leg of this side that cannot go on.
        arrival_seconds: how long one leg of a request may come after the other.
    """

    def __init__(self, fail: Fail, arrival_seconds: float) -> None:
        super().__init__(fail)
        self._arrival_seconds = arrival_seconds
        self._live: dict[Leg, web.WebSocketResponse | None] = {}
        self._arrived: deque[tuple[float, Leg]] = deque()
        self._early: dict[Leg, _Early] = {}  # decode has spoken of it, or its leg ended here before decode's came
        self._decodes: set[web.WebSocketResponse] = set()
        self._sending: set[asyncio.Task[None]] = set()
        self._sweeping: asyncio.Task[None] | None = None

    async def start(self, app: web.Application | None = None) -> None:
        """Serve ``/legs``."""
        assert app is not None
        app.router.add_get(PATH, self._serve)
        self._sweeping = asyncio.create_task(self._sweep())

    def begin(self, leg: Leg, address: str) -> bool:
        """A request came in."""
        if leg in self._live:
            return False
        early = self._early.pop(leg, None)
        if early and early.ended and early.by_decode:
            raise _OtherLegEnded.of(early.ended.failure("decode"))
        self._live[leg] = early.decode if early else None
        self._arrived.append((time.monotonic() + self._arrival_seconds, leg))
        return True

    def end(self, leg: Leg, error: RequestFailed | None) -> None:
        """A request has ended, or decode has its KV cache."""
        decode = self._live.pop(leg, None)
        if error is None or isinstance(error, _OtherLegEnded):
            return
        if decode is not None:
            self._send(decode, _ended(leg, error))
        else:
            self._keep(leg, _Early(time.monotonic() + EARLY_SECONDS, ended=_ended(leg, error)))

    async def stop(self) -> None:
        """Close every connection."""
        if self._sweeping:
            self._sweeping.cancel()
        await asyncio.gather(*(decode.close() for decode in list(self._decodes)), return_exceptions=True)
        await asyncio.gather(*self._sending, return_exceptions=True)

    # --- from decode

    async def _serve(self, request: web.Request) -> web.WebSocketResponse:
        decode = web.WebSocketResponse(heartbeat=HEARTBEAT_SECONDS, max_msg_size=MAX_MESSAGE_BYTES)
        await decode.prepare(request)
        self._decodes.add(decode)
        try:
            async for packet in decode:
                if packet.type is not aiohttp.WSMsgType.BINARY:
                    break
                self._on_message(decode, _decode(packet.data))
        except msgspec.DecodeError as exc:
            _log.warning("legs: a peer sent nonsense peer=%s error=%.200s", request.remote, exc)
            await decode.close()
        finally:
            self._decodes.discard(decode)
            asyncio.get_running_loop().call_later(GRACE_SECONDS, self._lose, decode)
        return decode

    def _on_message(self, decode: web.WebSocketResponse, message: Await | Ended) -> None:
        if isinstance(message, Ended):
            if message.leg in self._live:
                self._end_by_other(message.leg, message.failure("decode"))
            else:
                self._keep(message.leg, _Early(time.monotonic() + EARLY_SECONDS, ended=message, by_decode=True))
            return
        for leg in message.legs:
            early = self._early.get(leg)
            if leg in self._live:
                self._live[leg] = decode
            elif early and early.ended and not early.by_decode:
                del self._early[leg]
                self._send(decode, early.ended)
            else:
                self._keep(leg, _Early(time.monotonic() + self._arrival_seconds, decode))

    def _lose(self, decode: web.WebSocketResponse) -> None:
        """A connection did not come back: its front would have named its legs again."""
        for leg in [leg for leg, waiting in self._live.items() if waiting is decode]:
            lost = "the decode instance that waited for it is gone"
            self._end_by_other(leg, RequestFailed(502, "DecodeLost", lost, room=leg.room))
        for leg in [leg for leg, early in self._early.items() if early.decode is decode]:
            del self._early[leg]

    def _end_by_other(self, leg: Leg, error: RequestFailed) -> None:
        self._live.pop(leg, None)
        self._fail(leg, _OtherLegEnded.of(error))

    # --- inside

    def _keep(self, leg: Leg, early: _Early) -> None:
        self._early[leg] = early
        while len(self._early) > MOST_EARLY:
            del self._early[next(iter(self._early))]

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(EARLY_SECONDS, self._arrival_seconds) / 10)
            now = time.monotonic()
            for leg in [leg for leg, early in self._early.items() if early.expires < now]:
                decode = self._early.pop(leg).decode
                if decode is not None:
                    late = f"the request did not reach prefill within {self._arrival_seconds:g} s"
                    self._send(decode, _ended(leg, RequestFailed(504, "PrefillMissing", late, room=leg.room)))
            while self._arrived and self._arrived[0][0] < now:
                _, leg = self._arrived.popleft()
                if self._live.get(leg, self) is None:
                    late = f"no decode instance asked for it within {self._arrival_seconds:g} s"
                    self._end_by_other(leg, RequestFailed(504, "DecodeMissing", late, room=leg.room))

    def _send(self, decode: web.WebSocketResponse, message: Ended) -> None:
        task = asyncio.create_task(_send_bytes(decode, _encode(message)))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)


class DecodeLegs(Legs):
    """Decode's end: a connection to each prefill instance that is needed."""

    def __init__(self, fail: Fail) -> None:
        super().__init__(fail)
        self._links: dict[str, _Link] = {}
        self._address: dict[Leg, str] = {}
        self._session: aiohttp.ClientSession | None = None

    async def start(self, app: web.Application | None = None) -> None:
        """Make connections from now on."""
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=GRACE_SECONDS))

    def meet(self, address: str) -> None:
        """A request may name any address: only those that the registry knows are connected to."""
        self._link(address).met = True
        self._run(address)

    def begin(self, leg: Leg, address: str) -> bool:
        """A request came in."""
        if leg in self._address:
            return False
        self._address[leg] = address
        self._link(address).await_(leg)
        self._run(address)
        return True

    def end(self, leg: Leg, error: RequestFailed | None) -> None:
        """A request has ended, or has its KV cache."""
        address = self._address.pop(leg, None)
        if address is not None:
            told = isinstance(error, _OtherLegEnded)
            self._links[address].end(leg, _ended(leg, error) if error and not told else None)

    async def stop(self) -> None:
        """Close every connection."""
        tasks = [link.task for link in self._links.values() if link.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session:
            await self._session.close()

    def _link(self, address: str) -> _Link:
        if address not in self._links:
            for old in [name for name, link in self._links.items() if link.forgotten]:
                del self._links[old]
            self._links[address] = _Link(address, self._end_by_other)
        return self._links[address]

    def _run(self, address: str) -> None:
        link = self._links[address]
        if link.met and self._session and (link.task is None or link.task.done()):
            link.task = asyncio.create_task(link.run(self._session))

    def _end_by_other(self, leg: Leg, error: RequestFailed) -> None:
        self._address.pop(leg, None)
        self._fail(leg, _OtherLegEnded.of(error))


class _Link:
    """Decode's connection to one prefill instance.

    Attributes:
        met: whether the registry knows the address.
        task: runs it, while it is needed.
    """

    def __init__(self, address: str, fail: Fail) -> None:
        self.met = False
        self.task: asyncio.Task[None] | None = None
        self._address, self._fail = address, fail
        self._legs: dict[Leg, None] = {}
        self._outbox: deque[bytes] = deque(maxlen=MOST_EARLY)
        self._wake = asyncio.Event()
        self._talking = False
        self._linked = False  # whether it ever was connected: what was never there cannot be lost
        self._lost_at = 0.0
        self._used_at = time.monotonic()

    @property
    def forgotten(self) -> bool:
        """Whether nobody needs to know of it any more."""
        idle = not self._legs and time.monotonic() - self._used_at > IDLE_SECONDS
        return idle and (self.task is None or self.task.done())

    def await_(self, leg: Leg) -> None:
        """A request waits for the instance."""
        self._legs[leg] = None
        self._used_at = time.monotonic()
        if self._talking:  # else it is among those that the next connection begins with
            self._say(Await([leg]))

    def end(self, leg: Leg, ended: Ended | None) -> None:
        """A request waits for it no longer."""
        self._legs.pop(leg, None)
        self._used_at = time.monotonic()
        if ended and self.met:
            self._say(ended)

    def _say(self, message: Await | Ended) -> None:
        self._outbox.append(_encode(message))
        self._wake.set()

    async def run(self, session: aiohttp.ClientSession) -> None:
        """Hold the connection until it was not needed for a while."""
        while self._legs or time.monotonic() - self._used_at < IDLE_SECONDS:
            try:
                connecting = session.ws_connect(
                    f"http://{self._address}{PATH}", heartbeat=HEARTBEAT_SECONDS, max_msg_size=MAX_MESSAGE_BYTES
                )
                async with await asyncio.wait_for(connecting, GRACE_SECONDS) as prefill:
                    await self._talk(prefill)
            except (aiohttp.ClientError, OSError, asyncio.TimeoutError, msgspec.DecodeError) as exc:
                _log.debug("legs: no connection address=%s error=%r", self._address, exc)
            if self._linked and time.monotonic() - self._lost_at >= GRACE_SECONDS:
                self._lose()
            await asyncio.sleep(RETRY_SECONDS)

    async def _talk(self, prefill: aiohttp.ClientWebSocketResponse) -> None:
        self._linked = self._talking = True
        writing = asyncio.create_task(self._write(prefill, list(self._legs)))
        try:
            async for packet in prefill:
                if packet.type is not aiohttp.WSMsgType.BINARY:
                    return
                message = _decode(packet.data)
                if isinstance(message, Ended) and message.leg in self._legs:
                    del self._legs[message.leg]
                    self._fail(message.leg, message.failure("prefill"))
        finally:
            self._talking, self._lost_at = False, time.monotonic()
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def _write(self, prefill: aiohttp.ClientWebSocketResponse, waiting: list[Leg]) -> None:
        """Say again who waits: what an earlier connection was told may not have arrived. Then, what is new."""
        for first in range(0, len(waiting), MOST_LEGS):
            await prefill.send_bytes(_encode(Await(waiting[first : first + MOST_LEGS])))
        while True:
            while self._outbox:
                await prefill.send_bytes(self._outbox[0])
                self._outbox.popleft()
            self._wake.clear()
            await self._wake.wait()

    def _lose(self) -> None:
        legs, self._legs = self._legs, {}
        self._outbox.clear()
        for leg in legs:
            message = f"the prefill instance at {self._address} does not answer any more"
            self._fail(leg, RequestFailed(502, "PrefillUnreachable", message, room=leg.room, instance=self._address))


class _OtherLegEnded(RequestFailed):
    """A failure that the other leg knows of."""

    @classmethod
    def of(cls, error: RequestFailed) -> _OtherLegEnded:
        """The same failure, marked."""
        return cls(error.status, error.type, str(error), **error.details)


async def _send_bytes(peer: web.WebSocketResponse, data: bytes) -> None:
    with suppress(OSError, RuntimeError, aiohttp.ClientError):  # it has gone, and will be missed
        await peer.send_bytes(data)
