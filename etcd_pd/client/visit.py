"""A short visit to an agent by something that is no engine: a probe, or who ends a pod. Standard library only."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import AgentUnavailable, ProtocolError
from ..wire import messages, to_agent, to_client


class Visit:
    """A connection to an agent, with blocking calls that all end at one deadline."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._socket, self._deadline = sock, deadline

    def greet(self) -> to_client.Welcome:
        """Say hello; what the agent answers.

        Raises:
            AgentUnavailable: it does not answer, or refuses this version.
        """
        self.send(to_agent.Hello(messages.VERSION).encode())
        welcome = to_client.Welcome.decode(self.receive(messages.WELCOME))
        if welcome.refused:
            raise AgentUnavailable(welcome.refused)
        return welcome

    def send(self, packet: bytes) -> None:
        """Say something."""
        try:
            self._socket.sendall(packet)
        except OSError as exc:
            raise AgentUnavailable(f"the agent went away: {exc}") from exc

    def receive(self, kind: bytes) -> bytes:
        """The next packet of a kind; others are passed over."""
        while True:
            self._socket.settimeout(max(self._deadline - time.monotonic(), 0.001))
            try:
                packet = self._socket.recv(messages.MAX_PACKET)
            except OSError as exc:
                raise AgentUnavailable(f"the agent does not answer: {exc}") from exc
            if not packet:
                raise AgentUnavailable("the agent closed the connection")
            if packet[:1] == kind:
                return packet


@contextmanager
def visit(socket_path: str, timeout: float) -> Iterator[Visit]:
    """Connect to the agent on a socket; everything ends ``timeout`` seconds from now.

    Raises:
        AgentUnavailable: nobody listens there, or what answers is no agent.
    """
    deadline = time.monotonic() + timeout
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(timeout)
        try:
            sock.connect(socket_path)
        except OSError as exc:
            raise AgentUnavailable(f"no agent answers on {socket_path}: {exc}") from exc
        try:
            yield Visit(sock, deadline)
        except ProtocolError as exc:
            raise AgentUnavailable(f"what answers on {socket_path} is no agent: {exc}") from exc
