"""SOCK_SEQPACKET between clients and agents, as far as they use it: whole packets, in order, some time later."""

from __future__ import annotations

import os
import random
import struct
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, copy_context
from typing import Any

import etcd_pd.client.connection as client_connection
from etcd_pd.agent import agent as agent_module
from etcd_pd.agent.connection import EngineConnection, Peer
from etcd_pd.agent.server import Server

from .loop import AWAKE, VirtualLoop

#: Packets that a socket holds before it takes no more: the kernel's is some hundreds.
CAPACITY = 500
#: How long a packet travels, seconds.
TRAVELS = (1e-5, 3e-4)


class Network:
    """Who listens where, and how long packets travel.

    Attributes:
        delivered: packets so far.
    """

    def __init__(self, loop: VirtualLoop, draw: random.Random) -> None:
        self.loop, self._draw = loop, draw
        self.delivered = 0
        self._listeners: dict[str, tuple[Callable[[Socket], None], Context]] = {}

    def listen(self, path: str, accept: Callable[[Socket], None]) -> None:
        """Take connections to a path."""
        self._listeners[path] = accept, copy_context()

    def unlisten(self, path: str) -> None:
        """Take none any more."""
        self._listeners.pop(path, None)

    def connect(self, near: Socket, path: str) -> None:
        """Join a socket with a new one of whoever listens."""
        if path not in self._listeners:
            raise ConnectionRefusedError(111, "Connection refused")
        _, context = self._listeners[path]
        far = Socket(self)
        near.peer, far.peer = far, near

        def accepted() -> None:
            if path in self._listeners:
                self._listeners[path][0](far)
            else:
                far.close()

        self.loop.call_later(self.delay(), accepted, context=context)

    def delay(self) -> float:
        """How long the next packet travels."""
        return self._draw.uniform(*TRAVELS)


class Socket:
    """One end."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._loop = network.loop
        self.peer: Socket | None = None
        self._inbox: deque[bytes] = deque()
        self._travelling = 0
        self._closed = self._ended = self._attended = False
        self._last_arrival = 0.0

    # --- what the code under test calls

    def setsockopt(self, *_: Any) -> None: ...

    def setblocking(self, _: bool) -> None: ...

    def fileno(self) -> int:
        return 99

    def getsockopt(self, *_: Any) -> bytes:
        return struct.pack("3i", 0, os.getuid(), 0)

    def connect(self, path: str) -> None:
        self._network.connect(self, path)

    def send(self, packet: bytes) -> int:
        peer = self.peer
        if self._closed or peer is None or peer._closed:
            raise BrokenPipeError(32, "Broken pipe")
        if len(peer._inbox) + peer._travelling >= CAPACITY:
            raise BlockingIOError
        peer._travelling += 1
        peer._last_arrival = max(self._loop.time() + self._network.delay(), peer._last_arrival)
        self._loop.call_at(peer._last_arrival, peer._arrive, bytes(packet), context=AWAKE)
        return len(packet)

    def recv_into(self, buffer: memoryview) -> int:
        if self._inbox:
            packet = self._inbox.popleft()
            buffer[: len(packet)] = packet
            if self.peer and (writer := self._loop.writer_of(self.peer)):
                self._loop.call_soon(writer)
            return len(packet)
        if self._ended:
            return 0
        raise BlockingIOError

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self.peer:
            self._loop.call_at(max(self._loop.time(), self.peer._last_arrival), self.peer._end, context=AWAKE)

    # --- inside

    @property
    def readable(self) -> bool:
        """Whether recv_into() has something."""
        return bool(self._inbox or self._ended)

    def attend(self) -> None:
        """Call the reader soon, if there is something and it is not on its way already."""
        found = self._loop.reader_of(self)
        if self.readable and not self._attended and found:
            self._attended = True
            self._loop.call_soon(self._read, context=found[1])

    def _arrive(self, packet: bytes) -> None:
        self._travelling -= 1
        self._network.delivered += 1
        self._inbox.append(packet)
        self.attend()

    def _end(self) -> None:
        self._ended = True
        self.attend()

    def _read(self) -> None:
        self._attended = False
        found = self._loop.reader_of(self)
        if found and self.readable:
            found[0]()
            self.attend()


class _Poll:
    def __init__(self) -> None:
        self._socket: Socket | None = None

    def register(self, socket: Socket, _: int) -> None:
        self._socket = socket

    def poll(self, _: int) -> bool:
        return self._socket is not None and self._socket.readable


class _Socket:
    """The ``socket`` module as the client sees it."""

    AF_UNIX, SOCK_SEQPACKET, SOCK_NONBLOCK, SOCK_CLOEXEC, SOL_SOCKET, SO_SNDBUF = range(6)

    def __init__(self, network: Network) -> None:
        self._network = network

    def socket(self, *_: int) -> Socket:
        return Socket(self._network)


class _Select:
    """The ``select`` module as the client sees it."""

    poll, POLLIN = _Poll, 1


@contextmanager
def joined(network: Network) -> Iterator[None]:
    """While this is entered, clients and agents that are made speak over this network."""

    class SimulatedServer(Server):
        def open(self) -> None:
            network.listen(self._settings.socket_path, self._take)

        def _take(self, sock: Any) -> None:
            limit = self._settings.push_queue_max_bytes
            self.connections[EngineConnection(sock, Peer(sock), limit, self._on_packet, self._closed)] = None

        def close(self) -> None:
            network.unlisten(self._settings.socket_path)
            for connection in list(self.connections):
                connection.close("the agent ends")

        def die(self) -> None:
            """Its connections end, and nobody in its process is there to notice."""
            self._on_closed = lambda *_: None
            self.close()

    client: Any = client_connection
    agent: Any = agent_module
    real = client.socket, client.select, agent.Server
    client.socket, client.select, agent.Server = _Socket(network), _Select(), SimulatedServer
    try:
        yield
    finally:
        client.socket, client.select, agent.Server = real
