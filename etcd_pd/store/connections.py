"""Connections to etcd: one is in use at a time, until a call or a stream fails on it; the next one is opened anew.

A new one looks the name up again, reads certificates again, and behind one address of many members finds another one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import grpc.aio

from ..config import EtcdSettings, bracketed
from ..errors import StoreUnavailable
from . import etcdrpc
from .base import StoreCounts
from .names import Names, is_address
from .papers import Papers

log = logging.getLogger(__name__)

#: etcd refuses pings more frequent than every 5 s. The wait for a ping's answer has no effect in grpcio 1.85 under its
#: documented name, keepalive_timeout_ms.
PING_SECONDS, PING_ANSWER_SECONDS = 10.0, 3.0
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", int(1000 * PING_SECONDS)),
    ("grpc.http2.ping_timeout_ms", int(1000 * PING_ANSWER_SECONDS)),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # or else a new channel would find the old one's connection
    ("grpc.enable_http_proxy", 0),
)


class Connection:
    """A channel to an endpoint. It is entered by whatever runs on it; left and idle, it is closed.

    Attributes:
        endpoint: its URL.
        answered: whether a call was ever answered on it.
    """

    def __init__(self, endpoint: str, channel: grpc.aio.Channel) -> None:
        self.endpoint = endpoint
        self.answered = False
        self._channel = channel
        self._stubs: dict[str, Any] = {}
        self._running = 0
        self._left = False
        self._closing: asyncio.Task[None] | None = None

    def __enter__(self) -> Connection:
        self._running += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running -= 1
        self._close_if_idle()

    def stub(self, service: str) -> Any:
        """A service of etcd's."""
        if service not in self._stubs:
            self._stubs[service] = getattr(etcdrpc, f"{service}Stub")(self._channel)
        return self._stubs[service]

    @property
    def was_left(self) -> bool:
        """Whether another one is used now."""
        return self._left

    @property
    def is_closed(self) -> bool:
        """Whether it was left, and nothing runs on it any more."""
        return self._closing is not None and self._closing.done()

    def leave(self) -> None:
        """Begin nothing on it any more; what runs on it may end."""
        self._left = True
        self._close_if_idle()

    async def close(self) -> None:
        """End all that runs on it."""
        await (self._closing or self._channel.close())

    def _close_if_idle(self) -> None:
        if self._left and not self._running and not self._closing:
            self._closing = asyncio.ensure_future(self._channel.close())


class Connections:
    """Opens them, one after another, in the order of the endpoints.

    Args:
        settings: the endpoints.
        names: where their hosts are.
        papers: certificates.
        counts: counts those that are used.

    Attributes:
        current: the one in use; None before the first, and after a failure until the next use.
        learned: endpoints beside those given, used after them.
        verify: whether the other end of a connection to a learned one belongs to the same cluster.
    """

    def __init__(self, settings: EtcdSettings, names: Names, papers: Papers, counts: StoreCounts) -> None:
        self._settings, self._names, self._papers, self._counts = settings, names, papers, counts
        self.current: Connection | None = None
        self.learned: list[str] = []
        self.verify: Callable[[Connection], Awaitable[bool]] | None = None
        self._position = 0
        self._rounds = 0
        self._opening = asyncio.Lock()
        self._left: set[Connection] = set()

    @property
    def endpoint(self) -> str:
        """The endpoint in use, or to be used next."""
        if self.current:
            return self.current.endpoint
        endpoints = [*self._settings.endpoints, *self.learned]
        return endpoints[self._position % len(endpoints)]

    async def use(self) -> Connection:
        """The connection in use, opened where there is none.

        Raises:
            StoreUnavailable: its name cannot be found, or certificates cannot be read.
        """
        return self.current or await self._open()

    async def _open(self) -> Connection:
        async with self._opening:
            if self.current is None:
                try:
                    self.current = await self._open_next()
                except Exception:
                    self._turn()
                    raise
                self._counts.connections += 1
            return self.current

    async def _open_next(self) -> Connection:
        connection = await self.connect(self.endpoint)
        if connection.endpoint in self._settings.endpoints or (self.verify and await self.verify(connection)):
            return connection
        await connection.close()
        raise StoreUnavailable("connect", f"no member of this cluster answers at {connection.endpoint}")

    async def connect(self, endpoint: str) -> Connection:
        """A connection beside the one in use.

        Raises:
            StoreUnavailable: its name cannot be found, or certificates cannot be read.
        """
        return Connection(endpoint, await self._make_channel(endpoint))

    def move(self, connection: Connection) -> None:
        """Use another one from now on, which has answered."""
        before, self.current = self.current, connection
        self._counts.connections += 1
        if before:
            self._leave(before)

    def note_answer(self, connection: Connection) -> None:
        """etcd answered on it."""
        connection.answered = True
        log.info("etcd answers endpoint=%s", connection.endpoint)
        self._names.trust(_host(connection.endpoint))

    def leave(self, connection: Connection, why: str) -> None:
        """It failed somebody: use another one from now on, unless that was done already."""
        if connection is self.current:
            log.log(logging.INFO if connection.answered else logging.DEBUG, "leaving an etcd endpoint: %s", why)
            self.current = None
            self._names.doubt(_host(connection.endpoint))
            self._turn()
            self._leave(connection)

    def _leave(self, connection: Connection) -> None:
        self._left = {left for left in self._left if not left.is_closed}
        self._left.add(connection)
        connection.leave()

    async def close(self) -> None:
        """End all of them."""
        ending = [*self._left, *filter(None, [self.current])]
        self.current, self._left = None, set()
        for connection in ending:
            await connection.close()

    def _turn(self) -> None:
        self._position += 1
        if self._position >= len(self._settings.endpoints) + len(self.learned):
            self._position = 0
            self._rounds += 1  # of a host with several addresses, another is tried first each time round

    async def _make_channel(self, endpoint: str) -> grpc.aio.Channel:
        host, port = _host(endpoint), urlsplit(endpoint).port
        addresses = await self._names.addresses(host)
        first = self._rounds % len(addresses)
        inet6 = ":" in addresses[first]
        order = [*addresses[first:], *addresses[:first]]
        target = [f"{bracketed(address)}:{port}" for address in order if (":" in address) is inet6]
        options: list[tuple[str, Any]] = list(CHANNEL_OPTIONS)
        # the time that a connection may take: calls end before it, so that it is they who say what was slow
        options.append(("grpc.min_reconnect_backoff_ms", int(2000 * self._settings.request_timeout_seconds)))
        name = self._settings.server_name or ("" if is_address(host) else host)
        if name:
            options.append(("grpc.default_authority", f"{name}:{port}"))
        place = f"{'ipv6' if inet6 else 'ipv4'}:{','.join(target)}"
        if not self._settings.tls:
            return grpc.aio.insecure_channel(place, options)
        if name:
            options.append(("grpc.ssl_target_name_override", name))
        return grpc.aio.secure_channel(place, self._papers.credentials(), options)


def _host(endpoint: str) -> str:
    return urlsplit(endpoint).hostname or ""
