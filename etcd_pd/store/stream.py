"""grpc's synchronous calls and streams, awaited from asyncio."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from ..core.records import WatchResponse
from ..errors import StoreError, StoreUnavailable
from . import etcdrpc as rpc
from .refusals import translate


class Stream:
    """A bidirectional stream of grpc's synchronous API, readable from asyncio. A thread of its own reads it."""

    def __init__(
        self,
        op: str,
        call: Any,
        metadata: tuple[tuple[str, str], ...],
        endpoint: int,
        address: str,
        convert: Callable[[Any], Any] | None,
        on_ended: Callable[[int, StoreError], None],
    ) -> None:
        self.endpoint = endpoint
        self._op, self._address = op, address
        self._convert, self._on_ended = convert, on_ended
        self._loop = asyncio.get_running_loop()
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._read_ahead: deque[Any] = deque()  # by the thread; the loop is woken once for all that it holds
        self._responses: asyncio.Queue[Any] = asyncio.Queue()
        self._call = call(iter(self._requests.get, None), metadata=metadata)
        self._thread = threading.Thread(target=self._read, name=f"etcd-{op}", daemon=True)
        self._thread.start()

    def send(self, request: Any) -> None:
        self._requests.put(request)

    async def receive(self) -> Any:
        response = await self._responses.get()
        if isinstance(response, StoreError):
            self._on_ended(self.endpoint, response)
            raise response
        return response

    def close(self) -> None:
        self._requests.put(None)
        self._call.cancel()
        self._thread.join(timeout=1.0)

    def _read(self) -> None:
        error: StoreError = StoreUnavailable(self._op, f"{self._address} ended the stream")
        try:
            for response in self._call:
                self._hand_over(self._convert(response) if self._convert else response)
        except StoreError as exc:
            error = exc
        except grpc.RpcError as exc:
            error = translate(self._op, exc, self._address)
        self._requests.put(None)  # grpc's own thread waits for the next request, whether the stream lives or not
        self._hand_over(error)

    def _hand_over(self, item: Any) -> None:
        self._read_ahead.append(item)
        if len(self._read_ahead) > 1:
            return  # the loop was woken for the first and has not come yet: it takes this one along
        try:
            self._loop.call_soon_threadsafe(self._take_over)
        except RuntimeError:
            pass  # the loop is closed: nobody listens any more

    def _take_over(self) -> None:
        # what the thread adds behind something that is still here is seen by this loop's next turn
        while self._read_ahead:
            self._responses.put_nowait(self._read_ahead.popleft())


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

    async def close(self) -> None:
        """End the watch."""
        self._stream.close()


async def result_of(future: Any) -> Any:
    """Await a future of grpc's synchronous API."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle() -> None:
        if not done.done():
            done.set_result(None)

    def wake(_: Any) -> None:
        try:
            loop.call_soon_threadsafe(settle)
        except RuntimeError:
            pass  # the loop is closed: nobody waits any more

    future.add_done_callback(wake)
    try:
        await done
    except asyncio.CancelledError:
        future.cancel()
        raise
    return future.result()
