"""The engine's end of the socket: never blocks, owns no thread, reconnects inside the caller's calls."""

from __future__ import annotations

import os
import select
import socket
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable

from ..errors import AgentBusy, ConfigError
from ..wire.messages import LISTS, MAX_PACKET, PING
from ..wire.private import check_way

#: A lost agent is looked for again after this long; an attempt on a Unix socket costs some 20 us.
RECONNECT_SECONDS = 0.05
#: Send buffer asked of the kernel, which caps it at net.core.wmem_max.
SEND_BUFFER = 1 << 20
#: While the socket is full, packets that hold lists are merged up to this size: the agent pays for each packet.
MERGED_BYTES = 1024
#: Packets taken from the socket in one go, so that a flood cannot hold the caller.
MAX_PACKETS_PER_CALL = 256

_open: weakref.WeakSet[Connection] = weakref.WeakSet()


class Connection:
    """One non-blocking SOCK_SEQPACKET connection to the agent.

    Args:
        path: the agent's socket.
        queue_limit: most packets that wait while the socket is full.
        heartbeat: seconds between signs of life, None where the agent is to look at the socket alone.
        hello: what to say first on every new connection: all that the agent must know of this engine.
        on_lost: called when the connection is gone.
    """

    def __init__(
        self,
        path: str,
        queue_limit: int,
        heartbeat: float | None,
        hello: Callable[[], Iterable[bytes]],
        on_lost: Callable[[], None],
    ) -> None:
        self._path = path
        self._queue_limit = queue_limit
        self._heartbeat = heartbeat
        self._hello = hello
        self._on_lost = on_lost
        self._socket: socket.socket | None = None
        self._ready = select.poll().poll  # a look that finds nothing costs a seventh of a recv() that raises
        self._buffer = memoryview(bytearray(MAX_PACKET))  # recv() would allocate as much for every packet
        self._queue: deque[bytes] = deque()
        self._next_attempt = 0.0
        self._last_sent = 0.0
        self._closed = False

    @property
    def connected(self) -> bool:
        """Whether an agent is at the other end, as far as is known."""
        return self._socket is not None

    def fileno(self) -> int:
        """The socket's descriptor, -1 while there is none."""
        return self._socket.fileno() if self._socket else -1

    def open(self) -> bool:
        """Look for the agent unless that was tried a moment ago; True where connected."""
        if self._socket is not None:
            return True
        now = time.monotonic()
        if self._closed or now < self._next_attempt:
            return False
        self._next_attempt = now + RECONNECT_SECONDS
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            check_way("socket_path", self._path)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            sock.connect(self._path)
        except (OSError, ConfigError):
            sock.close()
            return False
        self._socket = sock
        poller = select.poll()
        poller.register(sock, select.POLLIN)
        self._ready = poller.poll
        _open.add(self)
        self._queue.extend(self._hello())
        self._flush()
        return self._socket is not None

    def send(self, packet: bytes) -> bool:
        """Send or queue a packet; False where there is no agent and nothing was kept.

        Raises:
            AgentBusy: the queue is full; nothing was queued.
        """
        if self._socket is None and not self.open():
            return False
        if self._queue:
            self._flush()
        if self._queue:
            last = self._queue[-1]
            if packet[:1] in LISTS and last[:1] == packet[:1] and len(last) < MERGED_BYTES:
                self._queue[-1] = last + packet[1:]
                return self._socket is not None
            if len(self._queue) >= self._queue_limit:
                raise AgentBusy(self._queue_limit)
            self._queue.append(packet)
            return self._socket is not None
        return self._send_now(packet) or self._keep(packet)

    def receive(self) -> list[bytes]:
        """The packets that have arrived; never blocks."""
        if self._socket is None and not self.open():
            return []
        packets = self._take() if self._ready(0) else []
        if self._queue:
            self._flush()
        if self._heartbeat and self._socket and time.monotonic() - self._last_sent >= self._heartbeat / 3:
            self.send(PING)
        return packets

    def _take(self) -> list[bytes]:
        packets: list[bytes] = []
        sock = self._socket
        try:
            while sock is not None:
                size = sock.recv_into(self._buffer)
                if not size:
                    self.lose()
                    break
                packets.append(bytes(self._buffer[:size]))
                if len(packets) == MAX_PACKETS_PER_CALL or not self._ready(0):
                    break
        except BlockingIOError:
            pass
        except OSError:
            self.lose()
        return packets

    def wait(self, seconds: float) -> None:
        """Wait until something arrives, or for so long."""
        poller = select.poll()  # select() itself takes no descriptor above 1023
        if self._socket is not None:
            poller.register(self._socket, select.POLLIN)
        poller.poll(seconds * 1000)

    def close(self) -> None:
        """Close for good."""
        self._closed = True
        self._queue.clear()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send_now(self, packet: bytes) -> bool:
        sock = self._socket
        if sock is None:
            return False
        try:
            sock.send(packet)
        except BlockingIOError:
            return False
        except OSError:
            self.lose()
            return False
        if self._heartbeat:
            self._last_sent = time.monotonic()
        return True

    def _keep(self, packet: bytes) -> bool:
        if self._socket is None:
            return False
        self._queue.append(packet)
        return True

    def _flush(self) -> None:
        while self._queue and self._send_now(self._queue[0]):
            self._queue.popleft()

    def lose(self) -> None:
        """Drop this connection; what was queued is said again by ``hello`` on the next."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._queue.clear()
        self._on_lost()


def _close_in_child() -> None:
    # a forked child that kept the descriptor would hide its parent's death from the agent
    for connection in list(_open):
        connection.close()


os.register_at_fork(after_in_child=_close_in_child)
