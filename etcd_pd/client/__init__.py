"""The engine's side: standard library only, no threads, nothing that blocks.

One :class:`Client` per engine process. It talks to the agent of its node over a Unix socket, and is opened at its
first call, so make it after the last fork; in a forked child it closes itself.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterable, Iterator
from types import TracebackType

from ..errors import AgentBusy, AgentUnavailable, ConfigError, ProtocolError
from ..wire import messages, to_agent, to_client
from ..wire.limits import check_heartbeat, check_int
from ..wire.private import check_way
from .connection import Connection
from .decode import Decode
from .events import (
    Announced,
    DecodeEvent,
    Described,
    Drained,
    Ended,
    PrefillEvent,
    RankEnded,
    Refused,
    Registered,
    Rejected,
    Resolved,
)
from .prefill import Prefill
from .seen import Seen
from .start import start_agent as _start_agent
from .wanted import Admission

__all__ = [
    "Admission",
    "Announced",
    "Client",
    "Decode",
    "DecodeEvent",
    "Described",
    "Drained",
    "Ended",
    "Prefill",
    "PrefillEvent",
    "RankEnded",
    "Refused",
    "Registered",
    "Rejected",
    "Resolved",
    "connect",
]

#: Packets that wait in the client while the socket is full, before AgentBusy.
DEFAULT_QUEUE_LIMIT = 10_000


def connect(
    socket_path: str | None = None,
    *,
    start_agent: bool = False,
    heartbeat: float | None = None,
    queue_limit: int = DEFAULT_QUEUE_LIMIT,
) -> Client:
    """A client of the node's agent. It connects at its first call and reconnects by itself.

    Args:
        socket_path: the agent's socket; by default ``$ETCD_PD_SOCKET``.
        start_agent: for development: start an agent where none answers (needs ``etcd-pd[agent]`` installed).
        heartbeat: seconds after which the agent takes a silent engine for dead. The engine must then call
            poll() or another method more often than that. None: only the socket's end counts.
        queue_limit: packets and unanswered registrations that may wait before AgentBusy.

    Raises:
        ConfigError: no socket path, or one that leads through another user's directory, or an argument breaks a rule.
        AgentUnavailable: ``start_agent`` was asked for and failed.
    """
    path = socket_path or os.environ.get("ETCD_PD_SOCKET", "")
    if not path:
        raise ConfigError("socket_path", "must be given, or ETCD_PD_SOCKET set")
    if heartbeat is not None:
        check_heartbeat(heartbeat)
    check_way("socket_path", path)
    check_int("queue_limit", queue_limit, 1, 10_000_000)
    if start_agent:
        _start_agent(path)
    return Client(path, heartbeat, queue_limit)


class Client:
    """One engine process's connection to its agent.

    Attributes:
        prefill: the prefill side.
        decode: the decode side.
    """

    def __init__(self, socket_path: str, heartbeat: float | None, queue_limit: int) -> None:
        self._heartbeat, self._process = heartbeat, ""
        self._connection = Connection(socket_path, queue_limit, heartbeat, self._hello, self._on_lost)
        self._seen = Seen()
        self.prefill = Prefill(self._connection, self._pump, queue_limit, self._seen)
        self.decode = Decode(self._connection, self._pump, self._seen)
        self._refused = ""
        prefill, decode = self.prefill, self.decode
        self._handlers = {
            messages.WELCOME[0]: self._on_welcome,
            messages.ANNOUNCED[0]: prefill.on_announced,
            messages.REFUSED[0]: prefill.on_refused,
            messages.REGISTERED[0]: prefill.on_registered,
            messages.REJECTED[0]: prefill.on_rejected,
            messages.DURABLE[0]: prefill.on_durable,
            messages.RANK_ENDED[0]: prefill.on_rank_ended,
            messages.DRAINED[0]: prefill.on_drained,
            messages.INSTANCE[0]: decode.on_instance,
            messages.RESOLVED[0]: decode.on_resolved,
            messages.ENDED[0]: decode.on_ended,
            messages.VIEW[0]: decode.on_view,
            messages.LOST_PUSHES[0]: self._on_lost_pushes,
            messages.HISTORY_LOST[0]: self._on_history_lost,
        }

    def __repr__(self) -> str:
        return f"<Client {self.state} view={self.decode.view} revision={self.decode.revision}>"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def state(self) -> str:
        """``connected`` or ``connecting``."""
        return "connected" if self._connection.connected else "connecting"

    def fileno(self) -> int:
        """Descriptor that is readable when poll() has events; -1 while not connected. It changes on reconnect."""
        self._connection.open()
        return self._connection.fileno()

    def close(self) -> None:
        """End the connection: the agent takes this engine's rank out of etcd, also one that may linger."""
        if self._connection.connected:
            try:
                self._connection.send(messages.BYE)
            except AgentBusy:
                pass
        self._connection.close()

    def detach(self) -> None:
        """End the connection as a crash does: a rank that was announced with ``linger`` stays that long."""
        self._connection.close()

    def _pump(self) -> None:
        packets = self._connection.receive()
        for packet in packets:
            handler = self._handlers.get(packet[0])
            try:
                if handler is None:
                    raise ProtocolError(f"the agent said {packet[:1]!r}, which this version does not know")
                handler(packet)
            except ProtocolError as exc:
                self._connection.lose()  # the next one says everything again
                raise ProtocolError(f"the agent's {packet[:1]!r} packet makes no sense: {exc}") from exc
        if packets:
            self.decode.note_sign(time.monotonic())
        if self._refused:
            raise AgentUnavailable(self._refused)

    def _hello(self) -> Iterator[bytes]:
        seen = self._seen
        revision = seen.revision if seen.cluster_id else 0  # without its cluster it says nothing
        self._process = self._process or secrets.token_hex(8)  # not before: it may be forked until it is opened
        yield to_agent.Hello(messages.VERSION, self._heartbeat, seen.cluster_id, revision, self._process).encode()
        yield from self.prefill.hello()
        yield from self.decode.hello()

    def _on_lost(self) -> None:
        self.decode.on_lost()

    def _on_welcome(self, packet: bytes) -> None:
        self._refused = to_client.Welcome.decode(packet).refused

    def _on_history_lost(self, packet: bytes) -> None:
        self._say(self.decode.on_history_lost())
        self.prefill.on_history_lost()
        self._seen.forget()  # what of it is void the agent says besides

    def _on_lost_pushes(self, packet: bytes) -> None:
        self._say((*self.prefill.ask_again(), *self.decode.ask_again()))

    def _say(self, packets: Iterable[bytes]) -> None:
        try:
            for packet in packets:
                # to a connection that is lost, already or meanwhile, nothing more: the next one has said everything
                if not (self._connection.connected and self._connection.send(packet)):
                    return
        except AgentBusy:
            self._connection.lose()  # half of it would leave waits unanswered; the next connection says all
