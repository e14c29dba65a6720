"""The Unix socket on which engines reach the agent: who may connect, and nothing half-started left behind."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
from collections.abc import Callable
from contextlib import suppress

from ..config import AgentSettings
from ..errors import ConfigError
from ..wire.private import check_way
from .connection import EngineConnection, Peer

log = logging.getLogger(__name__)

#: Engines that may wait for accept(): a large node starts that many rank processes at once.
BACKLOG = 256
#: Pause after accept() failed, seconds: the process is out of descriptors, say.
ACCEPT_PAUSE = 1.0


class Server:
    """Listens and accepts.

    Args:
        settings: where, with which mode, for whom.
        on_packet, on_closed: given to every :class:`EngineConnection`.
    """

    def __init__(
        self,
        settings: AgentSettings,
        on_packet: Callable[[EngineConnection, bytes], None],
        on_closed: Callable[[EngineConnection, str], None],
    ) -> None:
        self._settings = settings
        self._on_packet, self._on_closed = on_packet, on_closed
        self._socket: socket.socket | None = None
        self._inode = 0  # the socket's: once its file is removed, the path may be another agent's
        self._refusing = False  # accept() fails at present
        self.connections: dict[EngineConnection, None] = {}  # in the order of their coming
        self._received_before = self._sent_before = 0  # by connections that are closed

    @property
    def received_bytes(self) -> int:
        """Bytes of packets that engines sent since the start."""
        return self._received_before + sum(connection.received_bytes for connection in self.connections)

    @property
    def sent_bytes(self) -> int:
        """Bytes of packets that engines were sent since the start."""
        return self._sent_before + sum(connection.sent_bytes for connection in self.connections)

    def open(self) -> None:
        """Begin to listen.

        Raises:
            ConfigError: the path is in use, belongs to another user, is no socket, or cannot be bound.
        """
        path = self._settings.socket_path
        _make_room(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        mask = os.umask(0o777 & ~self._settings.socket_mode)  # never wider than asked, not even for a moment
        try:
            sock.bind(path)
        except OSError as exc:
            sock.close()
            raise ConfigError("socket", f"cannot listen on {path}: {exc.strerror}") from exc
        finally:
            os.umask(mask)
        self._inode = os.lstat(path).st_ino
        sock.listen(BACKLOG)
        self._socket = sock
        asyncio.get_running_loop().add_reader(sock, self._accept)
        log.info("listening socket=%s mode=%o", path, self._settings.socket_mode)

    def close(self) -> None:
        """Close every connection and remove the socket."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            with suppress(FileNotFoundError):  # while it listens: then no successor has bound the path
                if os.lstat(self._settings.socket_path).st_ino == self._inode:
                    os.unlink(self._settings.socket_path)
            self._socket.close()
            self._socket = None
        for connection in list(self.connections):
            connection.close("the agent ends")

    def _accept(self) -> None:
        assert self._socket is not None
        try:
            sock, _ = self._socket.accept()
        except BlockingIOError:
            return  # whoever it was has left
        except OSError as exc:
            if not self._refusing:  # once, not once an attempt
                log.error("engines cannot connect, trying again every %.0f s: %s", ACCEPT_PAUSE, exc.strerror)
            self._refusing = True
            self._pause()
            return
        if self._refusing:
            log.info("engines can connect again")
            self._refusing = False
        sock.setblocking(False)
        peer = Peer(sock)
        if peer.uid != os.getuid() and peer.uid not in self._settings.allowed_uids:
            log.warning("refused an engine of uid=%d pid=%d", peer.uid, peer.pid)
            sock.close()
            return
        limit = self._settings.push_queue_max_bytes
        self.connections[EngineConnection(sock, peer, limit, self._on_packet, self._closed)] = None

    def _pause(self) -> None:
        """The socket stays readable while nothing can be accepted: look away for a while."""
        assert self._socket is not None
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)

        def resume() -> None:
            if self._socket is not None:
                loop.add_reader(self._socket, self._accept)

        loop.call_later(ACCEPT_PAUSE, resume)

    def _closed(self, connection: EngineConnection, reason: str) -> None:
        self.connections.pop(connection, None)
        self._received_before += connection.received_bytes
        self._sent_before += connection.sent_bytes
        self._on_closed(connection, reason)


def _make_room(path: str) -> None:
    """Make the socket's directory, and remove a dead agent's socket."""
    directory = os.path.dirname(path) or "."
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        check_way("socket", path)
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise ConfigError("socket", f"cannot use {path}: {exc.strerror}") from exc
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigError("socket", f"{path} exists and is no socket")
    if found.st_uid != os.getuid():
        raise ConfigError("socket", f"{path} belongs to uid {found.st_uid}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(path)
        except OSError:
            os.unlink(path)
            return
    raise ConfigError("socket", f"another agent listens on {path}")
