"""Prefill's end of the legs' connection: it listens, and knows which decode waits for which of its requests."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from contextlib import suppress
from typing import NamedTuple

import aiohttp
import msgspec
from aiohttp import web

from . import legs
from .errors import RequestFailed
from .legs import (
    MAX_MESSAGE_BYTES,
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

#: How long it is kept that a leg ended before the other one came, seconds.
EARLY_SECONDS = 5.0


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
            raise OtherLegEnded.of(early.ended.failure("decode"))
        self._live[leg] = early.decode if early else None
        self._arrived.append((time.monotonic() + self._arrival_seconds, leg))
        return True

    def end(self, leg: Leg, error: RequestFailed | None) -> None:
        """A request has ended, or decode has its KV cache."""
        decode = self._live.pop(leg, None)
        if error is None or isinstance(error, OtherLegEnded):
            return
        if decode is not None:
            self._send(decode, ended(leg, error))
        else:
            self._keep(leg, _Early(time.monotonic() + EARLY_SECONDS, ended=ended(leg, error)))

    async def stop(self) -> None:
        """Close every connection."""
        if self._sweeping:
            self._sweeping.cancel()
        await asyncio.gather(*(decode.close() for decode in list(self._decodes)), return_exceptions=True)
        await asyncio.gather(*self._sending, return_exceptions=True)

    # --- from decode

    async def _serve(self, request: web.Request) -> web.WebSocketResponse:
        decode = web.WebSocketResponse(heartbeat=legs.HEARTBEAT_SECONDS, max_msg_size=MAX_MESSAGE_BYTES)
        await decode.prepare(request)
        self._decodes.add(decode)
        try:
            async for packet in decode:
                if packet.type is not aiohttp.WSMsgType.BINARY:
                    break
                self._on_message(decode, decode_message(packet.data))
        except msgspec.DecodeError as exc:
            _log.warning("legs: a peer sent nonsense peer=%s error=%.200s", request.remote, exc)
            await decode.close()
        finally:
            self._decodes.discard(decode)
            asyncio.get_running_loop().call_later(legs.GRACE_SECONDS, self._lose, decode)
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
        self._fail(leg, OtherLegEnded.of(error))

    # --- inside

    def _keep(self, leg: Leg, early: _Early) -> None:
        self._early[leg] = early
        while len(self._early) > legs.MOST_LEGS_KEPT:
            del self._early[next(iter(self._early))]

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(EARLY_SECONDS, self._arrival_seconds) / 10)
            now = time.monotonic()
            for leg in [leg for leg, early in self._early.items() if early.expires < now]:
                decode = self._early.pop(leg).decode
                if decode is not None:
                    late = f"the request did not reach prefill within {self._arrival_seconds:g} s"
                    self._send(decode, ended(leg, RequestFailed(504, "PrefillMissing", late, room=leg.room)))
            while self._arrived and self._arrived[0][0] < now:
                _, leg = self._arrived.popleft()
                if self._live.get(leg, self) is None:
                    late = f"no decode instance asked for it within {self._arrival_seconds:g} s"
                    self._end_by_other(leg, RequestFailed(504, "DecodeMissing", late, room=leg.room))

    def _send(self, decode: web.WebSocketResponse, message: Ended) -> None:
        task = asyncio.create_task(_send_bytes(decode, encode_message(message)))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)


async def _send_bytes(peer: web.WebSocketResponse, data: bytes) -> None:
    with suppress(OSError, RuntimeError, aiohttp.ClientError):  # it has gone, and will be missed
        await peer.send_bytes(data)
