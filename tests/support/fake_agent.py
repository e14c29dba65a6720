"""The agent's end of the socket, played by a test: it says what it is told to, and etcd has no part in it."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any

from etcd_pd import Client
from etcd_pd.wire import messages
from etcd_pd.wire.messages import MAX_PACKET, ResolvedWant, ViewAt, WantedRoom
from tests.support.packets import packet_of

SYNCED, STALE = 0, 1
#: Id of the etcd cluster that it says it reads, unless a test says another.
CLUSTER = 17


class FakeAgent:
    """Listens on a path. Nothing happens in the background: a test accepts, reads and speaks."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._listener: socket.socket | None = None
        self._engines: list[FakeEngineSocket] = []
        self.start()

    def start(self) -> None:
        """Listen, again after stop()."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._listener.bind(self.path)
        self._listener.listen()

    def accept(self) -> FakeEngineSocket:
        """The next engine that has connected."""
        assert self._listener is not None
        engine = FakeEngineSocket(self._listener.accept()[0])
        self._engines.append(engine)
        return engine

    def accept_next(self, client: Client) -> FakeEngineSocket:
        """Let the client look at its connection, which is a new one, and accept that."""
        client.decode.poll()
        return self.accept()

    def has_visitor(self) -> bool:
        """Whether somebody has connected; they are turned away."""
        assert self._listener is not None
        try:
            self._listener.accept()[0].close()
        except BlockingIOError:
            return False
        return True

    def stop(self) -> None:
        """Die: every connection ends, and nobody listens."""
        for engine in self._engines:
            engine.close()
        self._engines.clear()
        if self._listener:
            self._listener.close()
            self._listener = None
            os.unlink(self.path)


class FakeEngineSocket:
    """One connection of an engine, as the agent has it.

    Attributes:
        cluster_id: of the etcd that the agent reads.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket, self.cluster_id = sock, CLUSTER
        self._heard: list[bytes] = []
        self._round = 0
        self._sequences: dict[int, int] = {}

    def packets(self) -> list[bytes]:
        """What the engine has said since the last call; an empty packet at the end: it has left."""
        self._hear()
        found, self._heard = self._heard, []
        return found

    def _hear(self) -> None:
        try:
            while not self._heard or self._heard[-1]:
                self._heard.append(self._socket.recv(MAX_PACKET + 1))
                if self._heard[-1][:1] == messages.PING:
                    self._round = messages.decode_ping(self._heard[-1]) or self._round
                if self._heard[-1][:1] in (messages.REGISTER, messages.REGISTER_LOT):
                    self._sequences |= dict(messages.decode_rooms(self._heard[-1]))
        except (BlockingIOError, ConnectionResetError):
            pass

    def kinds(self) -> bytes:
        """The kinds of packets() in one word."""
        return b"".join(packet[:1] for packet in self.packets())

    def has_left(self) -> bool:
        """Whether the engine closed the connection; what it said before is dropped."""
        return self.packets()[-1:] == [b""]

    def wants(self) -> list[WantedRoom]:
        """The waits among packets()."""
        return [messages.decode_want(packet) for packet in self.packets() if packet[:1] == messages.WANT]

    def close(self) -> None:
        self._socket.close()

    # --- what an agent says

    def send(self, packet: bytes) -> None:
        self._socket.send(packet)

    def say(self, kind: bytes, **message: Any) -> None:
        self.send(packet_of(kind, message))

    def welcome(self) -> None:
        self.say(messages.WELCOME, agent="fake")

    def view(self, revision: int, view: int = SYNCED, last_want: int = 2**32, floor: int = 0) -> None:
        self._hear()
        self.send(messages.encode_view(ViewAt(revision, view, last_want, floor, self._round, self.cluster_id)))

    def announced(self, epoch: int, incarnation: str = "uuid") -> None:
        self.say(messages.ANNOUNCED, epoch=epoch, key_epoch=epoch, incarnation=incarnation)

    def registered(self, *rooms: tuple[int, int, int], epoch: int = 42) -> None:
        """Answer what was heard: with the room, its token and its lease."""
        self._hear()
        for packet in messages.encode_registered([(*room, epoch, self._sequences[room[0]]) for room in rooms]):
            self.send(packet)

    def rejected(self, room: int, **message: Any) -> None:
        self._hear()
        self.say(messages.REJECTED, room=room, sequence=self._sequences[room], **message)

    def resolved(
        self, wants: Sequence[ResolvedWant], revision: int, view: int = SYNCED, last_want: int = 2**32
    ) -> None:
        self._hear()
        at = ViewAt(revision, view, last_want, 0, self._round, self.cluster_id)
        for packet in messages.encode_resolved(at, wants):
            self.send(packet)

    def lost(self, id: int, revision: int, dp_rank: int = 0, epoch: int = 1, **more: Any) -> None:
        self.say(messages.ENDED, id=id, error="PrefillLost", dp_rank=dp_rank, epoch=epoch, revision=revision, **more)
