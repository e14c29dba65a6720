"""etcd_pd as an engine uses it: the client, on the socket of an agent."""

from __future__ import annotations

import time
from typing import Any

import etcd_pd

from . import DP_RANK, DP_SIZE, INSTANCE

#: Longest wait for the announcement, seconds.
ANNOUNCE_SECONDS = 20.0
#: Registrations that a writer at full speed may have unanswered.
QUEUE_LIMIT = 100_000


class OurWriter:
    """A prefill rank.

    Args:
        config: ``socket``, and ``instance`` where it is not the usual one.

    Attributes:
        epoch: of the announced rank.

    Raises:
        RuntimeError: the rank was not announced in time.
    """

    blocking = False

    def __init__(self, config: dict[str, Any]) -> None:
        self._client = etcd_pd.connect(config["socket"], queue_limit=QUEUE_LIMIT)
        self._prefill = self._client.prefill
        self._prefill.announce(
            config.get("instance", INSTANCE),
            rank=etcd_pd.Rank(DP_RANK),
            topology=etcd_pd.Topology(dp=DP_SIZE),
            launch_id="bench",
            addresses=["127.0.0.1:8998"],
            ip="127.0.0.1",
            port=1,
        )
        deadline = time.monotonic() + ANNOUNCE_SECONDS
        while not self._prefill.epoch:
            self._prefill.poll()
            if time.monotonic() > deadline:
                raise RuntimeError("the rank was not announced")
            time.sleep(0.005)
        self.epoch = self._prefill.epoch
        self.register, self.release = self._prefill.register, self._prefill.release

    def turn(self) -> list[int]:
        """Rooms that etcd has."""
        rooms = []
        for event in self._prefill.poll():
            if isinstance(event, etcd_pd.Registered):
                rooms.append(event.room)
            elif isinstance(event, etcd_pd.Rejected):
                raise event.error
        return rooms

    def configure(self, message: dict[str, Any]) -> None:
        """Nothing to do."""

    def filenos(self) -> list[int]:
        """The agent's socket."""
        return [self._client.fileno()]


class OurReader:
    """A decode engine, or several in one process, whose rooms go round: one for each agent.

    Args:
        config: ``sockets``.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self._clients = [etcd_pd.connect(path, queue_limit=QUEUE_LIMIT) for path in config["sockets"]]
        for client in self._clients:
            client.decode.poll()
        self._seconds, self._next = 0.0, 0.0

    def configure(self, message: dict[str, Any]) -> None:
        """``look_ms``: how long to do without a look."""
        self._seconds, self._next = message.get("look_ms", 0) / 1e3, 0.0

    def _of(self, room: int) -> etcd_pd.Decode:
        return self._clients[room % len(self._clients)].decode

    def want(self, room: int) -> None:
        """One packet to the agent."""
        self._of(room).want(INSTANCE, room)

    def turn(self, now: float) -> list[int]:
        """Rooms whose rank was pushed."""
        if now < self._next:
            return []
        self._next = now + self._seconds
        rooms = []
        for client in self._clients:
            for event in client.decode.poll():
                if isinstance(event, etcd_pd.Resolved):
                    rooms.append(event.assignment.room)
                elif isinstance(event, etcd_pd.Ended):
                    raise event.error
        return rooms

    def done(self, room: int) -> float | None:
        """How long resolve_nowait() takes; then the wait is forgotten."""
        decode = self._of(room)
        before = time.perf_counter_ns()
        found = decode.resolve_nowait(INSTANCE, room)
        took = (time.perf_counter_ns() - before) / 1e3
        if found is None or found.dp_rank != DP_RANK:
            raise RuntimeError(f"room {room} resolved to {found}")
        decode.done(INSTANCE, room)
        return took

    def forget(self, room: int) -> None:
        """One packet to the agent."""
        self._of(room).done(INSTANCE, room)

    def filenos(self) -> list[int]:
        """The agents' sockets."""
        return [client.fileno() for client in self._clients]
