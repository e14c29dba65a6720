"""A stream of etcd's in both directions, and the watch that is one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio

from ..core.records import WatchResponse
from ..errors import StoreError, StoreUnavailable
from . import etcdrpc as rpc
from .connections import Connection
from .refusals import translate


class Stream:
    """Requests go out in order; answers wait until they are received. A task of its own reads it.

    Args:
        op: what it is for.
        connection: where it runs.
        method: of the service's stub.
        metadata: sent once, at its start.
        convert: makes what is received of an answer; its StoreError ends the stream.
        on_ended: called where the other side, or its silence, ended it, and not :meth:`close`.
    """

    def __init__(
        self,
        op: str,
        connection: Connection,
        method: Callable[..., Any],
        metadata: tuple[tuple[str, str], ...],
        convert: Callable[[Any], Any],
        on_ended: Callable[[Connection, StoreError], None],
    ) -> None:
        self.connection = connection
        self._op, self._convert, self._on_ended = op, convert, on_ended
        self._requests: asyncio.Queue[Any] = asyncio.Queue()
        self._answers: asyncio.Queue[Any] = asyncio.Queue()
        self._error: StoreError | None = None
        self._closed = False
        self._call = method(self._outgoing(), metadata=metadata)
        self._reader = asyncio.create_task(self._read())

    def send(self, request: Any) -> None:
        """Queue a request."""
        self._requests.put_nowait(request)

    async def receive(self) -> Any:
        """The next answer.

        Raises:
            StoreError: the stream has ended.
        """
        answer = await self._answers.get()
        if isinstance(answer, StoreError):
            self._answers.put_nowait(answer)  # it stays ended, however often it is asked
            raise answer
        return answer

    def end(self, error: StoreError) -> None:
        """The other side is silent: end the stream with an error for whoever receives."""
        self._error = error
        self._call.cancel()

    async def close(self) -> None:
        """Nobody needs it any more."""
        self._closed = True
        self._call.cancel()
        await asyncio.wait([self._reader])

    async def _outgoing(self) -> AsyncIterator[Any]:
        while (request := await self._requests.get()) is not None:
            yield request

    async def _read(self) -> None:
        with self.connection as connection:
            error: StoreError = StoreUnavailable(self._op, f"{connection.endpoint} ended the stream")
            try:
                while (answer := await self._call.read()) is not grpc.aio.EOF:
                    self._answers.put_nowait(self._convert(answer))
            except StoreError as exc:
                error = exc
            except grpc.aio.AioRpcError as exc:
                error = translate(self._op, exc.code(), exc.details() or "", connection.endpoint)
            except asyncio.CancelledError:  # by the call: nobody cancels this task
                error = StoreUnavailable(self._op, "closed")
            self._call.cancel()
            self._requests.put_nowait(None)  # grpc's own task waits for the next request, whether the call lives or not
            self._answers.put_nowait(self._error or error)
            if not self._closed:
                self._on_ended(connection, self._error or error)


class EtcdWatch:
    """An open watch; iterate it. It ends with a StoreError, never quietly."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[WatchResponse]:
        while True:
            yield await self._stream.receive()

    def request_progress(self) -> None:
        """Ask etcd for a sign of life on this stream."""
        self._stream.send(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))

    @property
    def was_left(self) -> bool:
        """Whether its connection is not the one in use any more."""
        return self._stream.connection.was_left

    def give_up(self, why: str) -> None:
        """It is silent for too long: end it with an error, and let the next one run elsewhere."""
        self._stream.end(StoreUnavailable("watch", why))

    async def close(self) -> None:
        """End the watch."""
        await self._stream.close()
