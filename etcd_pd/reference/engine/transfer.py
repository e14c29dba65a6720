"""How a KV cache travels: decode asks the prefill rank for a room, the rank answers when it is computed.

One ZeroMQ ROUTER in each prefill rank, one DEALER in a decode rank for each prefill rank that it talks to. A message is
a msgpack header, and for an answer the cache's safetensors bytes behind it::

    decode                        prefill rank
      Ask(room)        ------->                     may come before the room's request does
                       <-------  Answer(room, ...)  + bytes      or Refusal(room, ...)
      Ack(room)        ------->                     the rank forgets the room and ends its HTTP response
      Cancel(room)     ------->                     instead of Ack: nobody wants it any more

There is no authentication here: keep the transfer ports inside the network that the KV caches may be seen in.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import zmq

from etcd_pd import ConfigError
from etcd_pd.config import bracketed

#: Longest message that a prefill rank accepts: its peers send headers only.
_MAX_HEADER_BYTES = 65_536
#: A peer that is silent for this long, in milliseconds, is taken for gone and connected to anew.
_HEARTBEAT_MS, _HEARTBEAT_TIMEOUT_MS = 5_000, 20_000
#: How long a connection without a room in flight is kept.
_IDLE_SECONDS = 60.0


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """Decode wants the KV cache of a room."""

    room: int


class Ack(msgspec.Struct, frozen=True, tag="ack"):
    """Decode has it."""

    room: int


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Decode does not want it any more."""

    room: int
    reason: str


class Answer(msgspec.Struct, frozen=True, kw_only=True, tag="answer"):
    """The header before a KV cache.

    Attributes:
        room: whose it is.
        tokens: how many prompt tokens it covers.
        first_token: the token that prefill chose after them.
        first_logprob: its log probability.
        seed: of the request's draws, so that decode goes on with the same.
        registered_ns: monotonic time of the room's registration in nanoseconds, 0 where none was needed.
        boot_id: boot on which that time counts; no other host's clock can be compared with it.
    """

    room: int
    tokens: int
    first_token: int
    first_logprob: float
    seed: int
    registered_ns: int
    boot_id: str


class Refusal(msgspec.Struct, frozen=True, kw_only=True, tag="refusal"):
    """Prefill has no KV cache for the room, and will have none."""

    room: int
    kind: str
    message: str


class Arrival(NamedTuple):
    """An answer and its bytes."""

    answer: Answer
    data: bytes


class Request(NamedTuple):
    """What a decode rank said, and by which name it is answered."""

    peer: bytes
    message: Ask | Ack | Cancel


_encode = msgspec.msgpack.Encoder().encode
_decode_request = msgspec.msgpack.Decoder(Ask | Ack | Cancel).decode
_decode_answer = msgspec.msgpack.Decoder(Answer | Refusal).decode


def boot_id() -> str:
    """The host's current boot: equal for processes whose monotonic clocks can be compared."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class KVServer:
    """A prefill rank's end.

    Args:
        host: address to listen on; the port is any free one.

    Attributes:
        socket: for a poller.
        port: where it listens.
        garbage: messages that could not be understood so far.

    Raises:
        ConfigError: this machine has no such address.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], host: str) -> None:
        self.socket = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self.socket.setsockopt(zmq.MAXMSGSIZE, _MAX_HEADER_BYTES)
        _set_heartbeat(self.socket)
        if ":" in host:
            self.socket.setsockopt(zmq.IPV6, 1)
        try:
            self.port = self.socket.bind_to_random_port(f"tcp://{bracketed(host)}")
        except zmq.ZMQError as error:
            self.socket.close(linger=0)
            raise ConfigError("kv_host", f"cannot listen on {host!r}: {error.strerror}") from error
        self.garbage = 0

    def receive(self) -> Iterator[Request]:
        """What decode ranks said since the last call. Never blocks, never raises for what they sent."""
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                peer, header = frames
                yield Request(peer, _decode_request(header))
            except (ValueError, msgspec.DecodeError):
                self.garbage += 1

    def answer(self, peer: bytes, answer: Answer, data: bytes) -> bool:
        """Send a KV cache; False where the peer is gone or takes no more at present."""
        return self._send(peer, _encode(answer), data)

    def refuse(self, peer: bytes, room: int, kind: str, message: str) -> None:
        """Notify a peer that there will be none. A peer that is gone does not learn it."""
        self._send(peer, _encode(Refusal(room=room, kind=kind, message=message)))

    def close(self) -> None:
        """Stop listening; what was said last still goes out."""
        self.socket.close(linger=1000)

    def _send(self, *frames: bytes) -> bool:
        try:
            self.socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                return False
            raise
        return True


class KVClient:
    """A decode rank's end.

    Attributes:
        garbage: messages that could not be understood so far.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._context = context
        self._peers: dict[str, _Peer] = {}
        self.garbage = 0

    @property
    def sockets(self) -> list[zmq.Socket[bytes]]:
        """For a poller; changes with every new peer."""
        return [peer.socket for peer in self._peers.values()]

    def ask(self, ip: str, port: int, room: int) -> str:
        """Ask the rank at ``ip:port`` for a room; returns the peer's name for :meth:`ack` and :meth:`cancel`."""
        name = f"tcp://{bracketed(ip)}:{port}"
        if name not in self._peers:
            self._peers[name] = _Peer(self._connect(name))
        self._peers[name].rooms.add(room)
        self._send(name, Ask(room))
        return name

    def ack(self, name: str, room: int) -> None:
        """The room's KV cache is here."""
        self._end(name, room, Ack(room))

    def cancel(self, name: str, room: int, reason: str) -> None:
        """The room's KV cache is not wanted any more."""
        self._end(name, room, Cancel(room, reason))

    def receive(self) -> Iterator[Arrival | Refusal]:
        """What arrived since the last call. Never blocks, never raises for what peers sent."""
        for peer in list(self._peers.values()):
            yield from self._receive(peer.socket)
        self._close_idle()

    def close(self) -> None:
        """Close every connection; what was said last still goes out."""
        for peer in self._peers.values():
            peer.socket.close(linger=500)
        self._peers.clear()

    def _connect(self, name: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        socket.setsockopt(zmq.IPV6, int("[" in name))
        _set_heartbeat(socket)
        socket.connect(name)
        return socket

    def _receive(self, socket: zmq.Socket[bytes]) -> Iterator[Arrival | Refusal]:
        while True:
            try:
                header, *data = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = _decode_answer(header)
            except (ValueError, msgspec.DecodeError):
                self.garbage += 1
                continue
            if isinstance(message, Refusal):
                yield message
            else:
                yield Arrival(message, data[0] if data else b"")

    def _end(self, name: str, room: int, message: Ack | Cancel) -> None:
        peer = self._peers.get(name)
        if peer is not None:
            peer.rooms.discard(room)
            peer.idle_since = time.monotonic()
            self._send(name, message)

    def _send(self, name: str, message: Ask | Ack | Cancel) -> None:
        try:
            self._peers[name].socket.send(_encode(message), zmq.NOBLOCK)
        except zmq.Again:
            # a rank that takes no messages is as good as gone: the room's deadline or PrefillLost ends the wait
            return

    def _close_idle(self) -> None:
        oldest = time.monotonic() - _IDLE_SECONDS
        for name in [name for name, peer in self._peers.items() if not peer.rooms and peer.idle_since < oldest]:
            self._peers.pop(name).socket.close(linger=500)


class _Peer:
    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self.socket = socket
        self.rooms: set[int] = set()
        self.idle_since = time.monotonic()


def _set_heartbeat(socket: zmq.Socket[bytes]) -> None:
    socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _HEARTBEAT_TIMEOUT_MS)
