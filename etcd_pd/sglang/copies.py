"""Rooms said to SGLang's own bootstrap server as well, off the scheduler's thread."""

from __future__ import annotations

import http.client
import json
import logging
import queue
import threading
from typing import NamedTuple

log = logging.getLogger(__name__)

#: Rooms that may wait. SGLang's server takes some 1,000 a second; more than this have waited past their use.
LIMIT = 4096
#: As in SGLang's own call (sglang 0.5.23, CommonKVSender._register_prefill_dp_rank), seconds.
TIMEOUT = 5.0


class _Copy(NamedTuple):
    server: str
    room: int
    dp_rank: int


class Copies:
    """One daemon thread and a bounded queue; what does not fit is dropped and counted.

    Args:
        limit: rooms that may wait.

    Attributes:
        dropped: rooms that found the queue full.
        failed: rooms that the server did not take.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._queue: queue.Queue[_Copy | None] = queue.Queue(limit)
        self._connections: dict[str, http.client.HTTPConnection] = {}
        self._thread: threading.Thread | None = None
        self._failing = False
        self.dropped = self.failed = 0

    def say(self, server: str, room: int, dp_rank: int) -> None:
        """Let that server (``host:port``) know the room's rank. Never blocks."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="etcd_pd copies", daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait(_Copy(server, room, dp_rank))
        except queue.Full:
            self.dropped += 1
            if self.dropped == 1:
                log.warning("etcd_pd: rooms come faster than SGLang's own bootstrap server takes them: dropped")

    def close(self) -> None:
        """End the thread, after what waits."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None
        for connection in self._connections.values():
            connection.close()

    def _run(self) -> None:
        while (copy := self._queue.get()) is not None:
            try:
                self._post(copy)
                self._failing = False
            except (OSError, http.client.HTTPException, ValueError) as exc:
                self.failed += 1
                broken = self._connections.pop(copy.server, None)
                if broken:
                    broken.close()
                if not self._failing:  # once an outage
                    log.warning("etcd_pd: SGLang's own bootstrap server at %s takes no rooms: %s", copy.server, exc)
                self._failing = True

    def _post(self, copy: _Copy) -> None:
        connection = self._connections.get(copy.server)
        if connection is None:
            connection = self._connections[copy.server] = http.client.HTTPConnection(copy.server, timeout=TIMEOUT)
        try:
            answer = _ask(connection, copy)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            connection.close()  # it was idle for too long: once more on a new one
            answer = _ask(connection, copy)
        text = answer.read()
        if answer.status != 200:
            raise ValueError(f"{answer.status} {text[:200]!r}")


def _ask(connection: http.client.HTTPConnection, copy: _Copy) -> http.client.HTTPResponse:
    body = json.dumps({"bootstrap_room": copy.room, "dp_rank": copy.dp_rank})
    connection.request("POST", "/register_dp_rank", body, {"Content-Type": "application/json"})
    return connection.getresponse()
