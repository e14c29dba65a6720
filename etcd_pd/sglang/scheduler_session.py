"""One SGLang scheduler process's connection to its agent, shared by its prefill and its decode side."""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Any

from .. import client as _client
from ..client import Client
from ..config import default_socket_path
from ..errors import AgentUnavailable, PrefillLost, ProtocolError, ResolveError, RoomFailed
from ..wire.values import TIMED_OUT, PrefillInstance

log = logging.getLogger(__name__)

#: Silence after which the agent takes the scheduler for wedged, seconds: as long as SGLang's own health check waits for
#: it (sglang 0.5.23, entrypoints/http_server.py). A process that ends is noticed at once in any case.
DEFAULT_HEARTBEAT_SECONDS = 20.0


class Session:
    """The client, and what happens on it.

    SGLang asks for rooms on its scheduler thread and on a helper thread, so every use of the client holds ``lock``.

    Args:
        prefill, decode: make the two sides, which use this session and get its events.
    """

    def __init__(self, prefill: Callable[[Session], Any], decode: Callable[[Session], Any]) -> None:
        self.lock = threading.RLock()
        self._connected: bool | None = None
        self._useless = False
        self.client = connect()
        self.prefill = prefill(self)
        self.decode = decode(self)

    @property
    def connected(self) -> bool:
        """Whether an agent answers."""
        return not self._useless and self.client.fileno() >= 0

    @property
    def synced(self) -> bool:
        """Whether what the agent says of the registry is what etcd says now."""
        return self.connected and self.client.decode.view == "synced"

    def renew(self) -> Client:
        """End this connection and its rank, and begin another: a connection carries one rank."""
        with self.lock:
            self.client.close()
            self.client = connect()
            return self.client

    def tick(self) -> None:
        """Take events; whoever speaks for the agent's heartbeat is the scheduler's own loop."""
        with self.lock:
            if self._useless:
                return
            try:
                prefill_events, decode_events = self.client.prefill.poll(), self.client.decode.poll()
            except AgentUnavailable as exc:  # another protocol version: it will not get better
                self._useless = True
                log.error("etcd_pd: %s; SGLang goes on without it", exc)
                return
            except ProtocolError as exc:  # the client has closed that connection and opens another
                log.error("etcd_pd: %s", exc)
                return
            for event in prefill_events:
                self.prefill.on_event(event)
            for decoded in decode_events:
                self.decode.on_event(decoded)
            self.decode.retry()
            self._note_connection()

    def wait(self, seconds: float) -> None:
        """Wait for events."""
        with self.lock:
            poller, descriptor = select.poll(), self.client.fileno()  # select() takes no descriptor above 1023
            if descriptor >= 0:
                poller.register(descriptor, select.POLLIN)
            poller.poll(seconds * 1000)
            self.tick()

    def _note_connection(self) -> None:
        connected = self.connected
        if connected != self._connected:
            self._connected = connected
            if connected:
                log.info("etcd_pd: connected to the agent at %s; without it, %s", socket_path(), _WITHOUT)
            else:
                log.warning("etcd_pd: no agent answers at %s; until one does, %s", socket_path(), _WITHOUT)


_WITHOUT = "SGLang's own bootstrap server is used"


def socket_path() -> str:
    """Where the agent's socket is."""
    return os.environ.get("ETCD_PD_SOCKET") or default_socket_path()


def connect() -> Client:
    """A client with the environment's settings.

    Raises:
        ConfigError, ValueError: one of them breaks a rule.
    """
    heartbeat = float(os.environ.get("ETCD_PD_HEARTBEAT_SECONDS", DEFAULT_HEARTBEAT_SECONDS))
    return _client.connect(socket_path(), heartbeat=heartbeat or None)


def fail_room(manager: Any, room: int, reason: str) -> None:
    """Put a room on SGLang's own failure path, unless it has succeeded already."""
    from sglang.srt.disaggregation.base.conn import KVPoll

    if manager.request_status.get(room) in (None, KVPoll.Success, KVPoll.Failed):
        return
    manager.record_failure(room, reason)
    manager.update_status(room, KVPoll.Failed)


def forget_moved(manager: Any, address: str, instance: PrefillInstance) -> None:
    """Drop where SGLang remembers that ranks of an address hand over, for those that are elsewhere now."""
    there = {(one.ip, one.port) for one in instance.ranks}
    with manager.connection_lock:
        for key, infos in list(manager.connection_pool.items()):
            places = {(info["rank_ip"], int(info["rank_port"])) for info in infos}
            if key.startswith(f"{address}_") and not places <= there:
                del manager.connection_pool[key]


def awaits_rank(manager: Any, room: int) -> bool:
    """Whether SGLang does not know the room's rank yet."""
    from sglang.srt.disaggregation.base.conn import KVPoll

    return bool(manager.request_status.get(room) == KVPoll.Bootstrapping)


def is_final(error: ResolveError) -> bool:
    """Whether it says of the request's rank that it will not hand over; else only that the registry cannot tell."""
    if isinstance(error, RoomFailed):
        return error.reason != TIMED_OUT  # the registration came too late for etcd; the rank has the request
    return isinstance(error, PrefillLost) and error.withdrawn


def now() -> float:
    """Monotonic seconds."""
    return time.monotonic()
