"""What a rank process is given, and its line to the front."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import zmq

from etcd_pd import Client

from .errors import RequestFailed
from .messages import Failed, ToFront, ToRank, decode_to_rank, encode
from .settings import EngineSettings


@dataclass(frozen=True)
class RankSpec:
    """What a rank process is started with.

    Attributes:
        settings: those of its instance; their type says which role it has.
        dp_rank: its number.
        link: ZeroMQ address of the front's socket.
        launch_id: what all ranks of this start have in common.
        model_path: the model's directory.
        connect: opens the registry's client, given the agent's socket path.
        log_level: least important records to log.
        log_format: how the front formats its own records.
    """

    settings: EngineSettings
    dp_rank: int
    link: str
    launch_id: str
    model_path: str
    connect: Callable[[str], Client]
    log_level: int
    log_format: logging.Formatter | None


class Link:
    """A rank's end of the socket pair between it and the front."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, dp_rank: int) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.IDENTITY, str(dp_rank).encode())
        # the front's own accounting bounds what is in flight; dropping an update would hang its request
        self.socket.setsockopt(zmq.SNDHWM, 0)
        self.socket.setsockopt(zmq.LINGER, 1000)
        self.socket.connect(address)

    def receive(self) -> Iterator[ToRank]:
        """What the front said since the last call."""
        while True:
            try:
                yield decode_to_rank(self.socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                return

    def send(self, message: ToFront) -> None:
        """Notify the front."""
        self.socket.send(encode(message))

    def fail(self, id: int, error: RequestFailed) -> None:
        """End a request without a result."""
        self.send(Failed(id=id, status=error.status, kind=error.type, message=str(error), details=error.details))
