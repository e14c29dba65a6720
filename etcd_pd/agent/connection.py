"""The agent's end of one engine's socket: reads packets, never waits for a slow reader, notices its death."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from ..core.claims import LocalRank
from ..core.notices import Wait
from ..core.records import Header
from ..errors import ConfigError, ProtocolError
from ..wire import messages
from ..wire.values import Rank

log = logging.getLogger(__name__)

#: Packets read in one turn of the event loop, so that no engine starves the others.
PACKETS_PER_TURN = 64
#: How often silence is looked at: what the agent slept through is known as exactly.
LOOKS_PER_HEARTBEAT = 4
_UCRED = struct.Struct("3i")
#: Of connections whose process does not name itself.
_numbers = itertools.count(1)
#: Every packet is read into it and copied out: recv() would allocate as much for each. One thread reads all sockets.
_BUFFER = memoryview(bytearray(messages.MAX_PACKET + 1))


class Peer:
    """Who is at the other end, as the kernel says; ``pid`` is 0 across PID namespaces."""

    def __init__(self, sock: socket.socket) -> None:
        self.pid, self.uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))


class Speaker(NamedTuple):
    """Who says something of rooms: a process, whichever connection it has at present.

    Attributes:
        process: its name for itself.
        instance, rank: the rank that it announced, None before it did.
    """

    process: str
    instance: str = "unknown"
    rank: Rank | None = None


class EngineConnection:
    """One engine process.

    Args:
        sock: its connected, non-blocking socket.
        peer: who it is.
        limit: most bytes of pushes that wait for it before they are dropped and it is notified.
        on_packet: handles one packet; ProtocolError or ConfigError closes the connection.
        on_closed: called once, with the reason.

    Attributes:
        seen: how far it had seen etcd when it connected, where it had, and was not notified that etcd is another.
        speaker: who says what it says of rooms.
        rank: the rank that it announced.
        decoder: the decode instance that it announced.
        wants: its waits by their number.
        last_want: the latest number that it wanted.
        said: the highest number of what it said of rooms.
        undurable: numbers of its releases and failures that etcd may not have yet, in order.
        round: of its last PING that named one.
        known: names under which it knows an instance, by the instance's id.
        numbers: by which answers refer to instances that it knows, by their ids.
        followed: names of instances whose changes it wants.
        leaving: it said goodbye, or its node is drained: its end is no death.
        pages: of what it looks at, those that it has not asked for yet.
        received_bytes, sent_bytes: of packets so far.
    """

    def __init__(
        self,
        sock: socket.socket,
        peer: Peer,
        limit: int,
        on_packet: Callable[[EngineConnection, bytes], None],
        on_closed: Callable[[EngineConnection, str], None],
    ) -> None:
        self.peer = peer
        self.seen: Header | None = None
        self.speaker = Speaker(f"connection {next(_numbers)}")
        self.rank: LocalRank | None = None
        self.decoder: str | None = None
        self.wants: dict[int, Wait] = {}
        self.last_want = self.round = self.said = 0
        self.undurable: dict[int, None] = {}
        self.known: dict[str, set[str]] = {}
        self.numbers: dict[str, int] = {}
        self.followed: set[str] = set()
        self.pages: Iterator[bytes] = iter(())
        self.closed = self.greeted = self.leaving = False
        self.received_bytes = self.sent_bytes = 0
        self._socket = sock
        self._limit = limit
        self._on_packet, self._on_closed = on_packet, on_closed
        self._loop = asyncio.get_running_loop()
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._lost_pushes = self._cut_off = False
        self._heartbeat = self._next_look = 0.0
        self._last_packet_at = self._loop.time()
        self._pidfd = _pidfd(peer.pid)
        self._loop.add_reader(sock, self._readable)
        if self._pidfd >= 0:
            # a forked child may hold the socket for ever, the pidfd it cannot
            self._loop.add_reader(self._pidfd, self.close, "its process ended")

    def __repr__(self) -> str:
        who = f"{self.rank.instance}/{self.rank.rank}" if self.rank else self.decoder or "engine"
        return f"<{who} pid={self.peer.pid} uid={self.peer.uid}>"

    def expect_heartbeat(self, seconds: float) -> None:
        """Take the engine for dead when it is silent for this long."""
        self._heartbeat = seconds
        self._look_later()

    def send(self, packet: bytes) -> None:
        """Send what must arrive: state, not an event. An engine that reads nothing at all is cut off."""
        if self.closed:
            return
        if not self._queue and self._send_now(packet):
            return
        self._enqueue(packet)
        if self._queued_bytes > 2 * self._limit and not self._cut_off:
            self._cut_off = True  # closing here would surprise callers in the middle of a loop over connections
            self._loop.call_soon(self.close, f"it read nothing of {self._queued_bytes} bytes")

    def push(self, packets: Iterable[bytes]) -> None:
        """Send events; where the engine does not read, they are dropped and it is notified, to ask again."""
        for packet in packets:
            if self._lost_pushes or self.closed:
                return
            if self._queued_bytes + len(packet) > self._limit:
                self._lost_pushes = True  # nothing is pushed until it knows, and then it begins another round
                log.warning("pushes dropped for %r: it does not read", self)
                return
            self.send(packet)

    @property
    def is_behind(self) -> bool:
        """Whether the engine has not read yet what was sent before."""
        return bool(self._queue)

    @property
    def durable(self) -> int:
        """etcd has all releases and failures up to this number, or has no need of them."""
        return next(iter(self.undurable)) - 1 if self.undurable else self.said

    def close(self, reason: str) -> None:
        """End the connection."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        self._on_closed(self, reason)

    def _readable(self) -> None:
        now = self._loop.time()
        for _ in range(PACKETS_PER_TURN):
            try:
                size = self._socket.recv_into(_BUFFER)
            except BlockingIOError:
                return
            except ConnectionResetError:  # it closed and had not read all: what it said before that is still to be read
                continue
            except OSError as exc:
                self.close(f"its socket failed: {exc.strerror}")
                return
            if not size:
                self.close("its socket closed")
                return
            self._last_packet_at = now
            self.received_bytes += size
            try:
                self._on_packet(self, bytes(_BUFFER[:size]))
            except (ProtocolError, ConfigError) as exc:
                self.close(f"it broke the protocol: {exc}")
            if self.closed:
                return

    def _writable(self) -> None:
        while self._queue and self._send_now(self._queue[0]):
            self._queued_bytes -= len(self._queue.popleft())
        if self._queue or self.closed:
            return
        self._loop.remove_writer(self._socket)
        if self._lost_pushes:
            self._lost_pushes = False
            self.send(messages.LOST_PUSHES)

    def _send_now(self, packet: bytes) -> bool:
        try:
            self._socket.send(packet)
        except BlockingIOError:
            return False
        except OSError as exc:
            self._loop.call_soon(self.close, f"its socket failed: {exc.strerror}")
            return True
        self.sent_bytes += len(packet)
        return True

    def _enqueue(self, packet: bytes) -> None:
        if not self._queue:
            self._loop.add_writer(self._socket, self._writable)
        self._queue.append(packet)
        self._queued_bytes += len(packet)

    def _look_later(self) -> None:
        self._next_look = self._loop.time() + self._heartbeat / LOOKS_PER_HEARTBEAT
        self._loop.call_at(self._next_look, self._check_heartbeat)

    def _check_heartbeat(self) -> None:
        if not self.closed:
            self._readable()  # what has come already says that it lives
        if self.closed:
            return
        now = self._loop.time()
        # for as long as the agent itself slept, nothing is known of its engines
        self._last_packet_at = min(now, self._last_packet_at + max(0.0, now - self._next_look))
        silent = now - self._last_packet_at
        if silent >= self._heartbeat:
            self.close(f"no heartbeat for {silent:.1f} s")
        else:
            self._look_later()


def _pidfd(pid: int) -> int:
    if not pid:
        return -1  # another PID namespace: the socket's end is the only sign
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1
