"""A connection to an agent that says whatever it likes."""

from __future__ import annotations

import socket

from etcd_pd.wire import messages
from tests.support.packets import packet_of

HELLO = packet_of(messages.HELLO, {"protocol": messages.VERSION, "heartbeat": None})


def raw(socket_path: str) -> socket.socket:
    """Connected, and silent."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(socket_path)
    sock.setblocking(False)
    return sock


def packets(sock: socket.socket) -> list[bytes]:
    """What the agent has said since the last call."""
    found: list[bytes] = []
    try:
        while said := sock.recv(messages.MAX_PACKET):
            found.append(said)
    except (BlockingIOError, ConnectionResetError):
        pass
    return found


def heard(sock: socket.socket, kind: bytes = messages.WELCOME) -> bytes | None:
    """The first packet of a kind that has come; the others are dropped."""
    return next((said for said in packets(sock) if said[:1] == kind), None)


def is_closed(sock: socket.socket) -> bool:
    """Whether the agent closed the connection; what it said before is dropped."""
    try:
        while sock.recv(messages.MAX_PACKET):
            pass
    except BlockingIOError:
        return False
    except ConnectionResetError:
        pass
    return True
