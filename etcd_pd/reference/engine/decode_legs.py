"""Decode's end of the legs' connections: one to each prefill instance that is needed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque

import aiohttp
import msgspec
from aiohttp import web

from . import legs
from .errors import RequestFailed
from .legs import (
    MAX_MESSAGE_BYTES,
    MOST_LEGS,
    MOST_LEGS_KEPT,
    PATH,
    Await,
    Ended,
    Fail,
    Leg,
    Legs,
    OtherLegEnded,
    decode_message,
    encode_message,
    ended,
)

_log = logging.getLogger(__name__)

#: Pause between two attempts to connect, seconds.
RETRY_SECONDS = 0.1
#: An unused connection, and what is known of an instance that has gone, are kept this long, seconds.
IDLE_SECONDS = 60.0


class DecodeLegs(Legs):
    """Decode's end: a connection to each prefill instance that is needed."""

    def __init__(self, fail: Fail) -> None:
        super().__init__(fail)
        self._links: dict[str, _Link] = {}
        self._address: dict[Leg, str] = {}
        self._session: aiohttp.ClientSession | None = None

    async def start(self, app: web.Application | None = None) -> None:
        """Make connections from now on."""
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=legs.GRACE_SECONDS))

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
            told = isinstance(error, OtherLegEnded)
            self._links[address].end(leg, ended(leg, error) if error and not told else None)

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
        self._fail(leg, OtherLegEnded.of(error))


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
        self._outbox: deque[bytes] = deque(maxlen=MOST_LEGS_KEPT)
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
        self._outbox.append(encode_message(message))
        self._wake.set()

    async def run(self, session: aiohttp.ClientSession) -> None:
        """Hold the connection until it was not needed for a while."""
        while self._legs or time.monotonic() - self._used_at < IDLE_SECONDS:
            try:
                connecting = session.ws_connect(
                    f"http://{self._address}{PATH}", heartbeat=legs.HEARTBEAT_SECONDS, max_msg_size=MAX_MESSAGE_BYTES
                )
                async with await asyncio.wait_for(connecting, legs.GRACE_SECONDS) as prefill:
                    await self._talk(prefill)
            except (aiohttp.ClientError, OSError, asyncio.TimeoutError, msgspec.DecodeError) as exc:
                _log.debug("legs: no connection address=%s error=%r", self._address, exc)
            if self._linked and time.monotonic() - self._lost_at >= legs.GRACE_SECONDS:
                self._lose()
            await asyncio.sleep(RETRY_SECONDS)

    async def _talk(self, prefill: aiohttp.ClientWebSocketResponse) -> None:
        self._linked = self._talking = True
        writing = asyncio.create_task(self._write(prefill, list(self._legs)))
        try:
            async for packet in prefill:
                if packet.type is not aiohttp.WSMsgType.BINARY:
                    return
                message = decode_message(packet.data)
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
            await prefill.send_bytes(encode_message(Await(waiting[first : first + MOST_LEGS])))
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
