"""Leases are kept alive on one stream, that of the connection in use."""

from __future__ import annotations

import asyncio
from typing import Any

from ..errors import StoreError, StoreTimeout
from . import etcdrpc as rpc
from .calls import Calls
from .deadline import within
from .stream import Stream


class KeepAlive:
    """Renews leases, one after another.

    Args:
        calls: opens the stream.
        timeout: the longest wait for an answer, seconds.
    """

    def __init__(self, calls: Calls, timeout: float) -> None:
        self._calls, self._timeout = calls, timeout
        self._stream: Stream | None = None

    async def renew(self, lease_id: int) -> int:
        """Give a lease its whole time again; its TTL in seconds, 0 where it is gone.

        Raises:
            StoreError: etcd did not say so, though it may have done it.
        """
        stream = self._stream
        if stream is None or stream.connection is not self._calls.connections.current:
            await self.close()
            stream = self._stream = await self._calls.open("keepalive", "Lease", "LeaseKeepAlive", _as_it_is)
        stream.send(rpc.LeaseKeepAliveRequest(ID=lease_id))
        try:
            return await within(_answer(stream, lease_id), self._timeout)
        except asyncio.TimeoutError as exc:
            await self.close()
            error = StoreTimeout("keepalive", f"{stream.connection.endpoint}: no answer in {self._timeout} s")
            self._calls.note("keepalive", stream.connection, error)
            raise error from exc
        except (StoreError, asyncio.CancelledError):
            await self.close()
            raise

    async def close(self) -> None:
        """End the stream."""
        stream, self._stream = self._stream, None
        if stream:
            await stream.close()


async def _answer(stream: Stream, lease_id: int) -> int:
    while True:
        answer = await stream.receive()
        if lease_id == answer.ID:
            return int(answer.TTL)


def _as_it_is(answer: Any, endpoint: str) -> Any:
    return answer
