"""TCP proxies between an agent and etcd, to be cut as a network is: what was on its way waits, nobody is told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TypeVar
from urllib.parse import urlsplit

_T = TypeVar("_T")


class Proxies:
    """A thread with an event loop for any number of proxies. Use it as a context manager."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._proxies: list[Proxy] = []

    def __enter__(self) -> Proxies:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.call(self._close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def add(self, target: str, host: str = "127.0.0.1", port: int = 0) -> Proxy:
        """A proxy to an endpoint, ``http://HOST:PORT``, at an address of its own."""
        proxy = Proxy(self, target, host, port)
        self.call(proxy.open)
        self._proxies.append(proxy)
        return proxy

    def call(self, act: Callable[[], Awaitable[_T]]) -> _T:
        """Do something on the loop and wait for it."""

        async def run() -> _T:
            return await act()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    async def _close(self) -> None:
        for proxy in self._proxies:
            await proxy.close()


class Proxy:
    """One way to one endpoint.

    Attributes:
        endpoint: where to reach it instead.
        target: where it leads; new connections follow a change.
    """

    def __init__(self, proxies: Proxies, target: str, host: str, port: int) -> None:
        self._proxies, self._address = proxies, (host, port)
        self.target = target
        self.endpoint = ""
        self._to_server, self._to_client = asyncio.Event(), asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Begin to listen."""
        self._to_server.set()
        self._to_client.set()
        self._server = await asyncio.start_server(self._serve, *self._address)
        self.endpoint = f"http://{self._address[0]}:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        """Drop everything."""
        self._server.close()
        await self._drop()

    def cut(self, *, to_server: bool = True, to_client: bool = True) -> None:
        """Hold back what is sent in one direction or both; connections stay open."""

        async def act() -> None:
            if to_server:
                self._to_server.clear()
            if to_client:
                self._to_client.clear()

        self._proxies.call(act)

    def heal(self) -> None:
        """Let everything through again, also what was held back."""

        async def act() -> None:
            self._to_server.set()
            self._to_client.set()

        self._proxies.call(act)

    def vanish(self) -> None:
        """Nobody listens there any more, and old connections end."""
        self._proxies.call(self.close)

    def lead_to(self, target: str) -> None:
        """Lead to another server from now on; old connections end."""
        self.target = target
        self._proxies.call(self._drop)

    async def _drop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        writers = [writer]
        try:
            await self._to_server.wait()
            parts = urlsplit(self.target)
            from_server, to_server = await asyncio.open_connection(parts.hostname, parts.port)
            writers.append(to_server)
            pumps = [
                asyncio.create_task(_pump(reader, to_server, self._to_server)),
                asyncio.create_task(_pump(from_server, writer, self._to_client)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass  # one end is gone, or the proxy is: the other end is told by what follows
        finally:
            self._tasks.discard(task)
            for each in writers:
                each.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event) -> None:
    while data := await reader.read(1 << 16):
        await gate.wait()
        writer.write(data)
        await writer.drain()
    await gate.wait()
