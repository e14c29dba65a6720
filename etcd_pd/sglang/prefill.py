"""The prefill side of the plug-in: a rank announces itself and registers the rooms that it takes."""

from __future__ import annotations

import logging
import os
import socket
from typing import Any
from urllib.parse import urlsplit

from ..client import PrefillEvent, RankEnded, Refused, Rejected
from ..config import LOOPBACK, bracketed
from ..errors import AgentBusy, ConfigError, NotAnnounced
from .route import parse_row
from .scheduler_session import Session, fail_room

log = logging.getLogger(__name__)


class PrefillSide:
    """One rank process.

    Args:
        session: the connection.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._announced = False
        self._rooms: dict[int, list[Any]] = {}  # the senders of each registered room: several where requests share one
        self._handed_over: set[int] = set()  # those of which a sender has succeeded

    def announce(self, manager: Any, url: str, payload: dict[str, Any]) -> None:
        """A manager registers its rank; one of an earlier role of this process is withdrawn."""
        try:
            row = parse_row(payload)
        except ConfigError as exc:
            log.error("etcd_pd: this rank is not announced: %s", exc)
            return
        if (row.ip, row.port) != (manager.local_ip, manager.rank_port):
            return  # a row that this process writes for another
        host, port = urlsplit(url).hostname or "", urlsplit(url).port
        instance = os.environ.get("ETCD_PD_INSTANCE") or f"{_outside(host, manager.local_ip)}:{port}"
        launch_id = _launch_id(manager)
        with self._session.lock:
            client = self._session.renew() if self._announced else self._session.client
            self._announced = True
            try:
                client.prefill.announce(
                    instance,
                    rank=row.rank,
                    topology=row.topology,
                    launch_id=launch_id,
                    addresses=_addresses(manager, host, port),
                    ip=row.ip,
                    port=row.port,
                    policy=row.policy,
                    extra=row.extra,
                )
            except (ConfigError, AgentBusy) as exc:
                log.error("etcd_pd: this rank is not announced: %s", exc)
                return
        log.info("etcd_pd: announcing instance=%s rank=%s", instance, row.rank)

    def register(self, sender: Any) -> bool:
        """A rank took a room; False where SGLang should (also) say so over HTTP, since no agent answers."""
        room = sender.bootstrap_room
        with self._session.lock:
            try:
                self._session.client.prefill.register(room)
            except (NotAnnounced, AgentBusy, ConfigError) as exc:
                log.error("etcd_pd: room %s is not registered: %s", room, exc)
                return False
            self._rooms.setdefault(room, []).append(sender)
            return self._session.connected

    def cleared(self, sender: Any) -> None:
        """A sender is done with its room; the last one of a room ends it."""
        from sglang.srt.disaggregation.base.conn import KVPoll

        room = sender.bootstrap_room
        with self._session.lock:
            senders = self._rooms.get(room, [])
            if sender not in senders:
                return
            senders.remove(sender)
            if sender.conclude_state == KVPoll.Success:
                self._handed_over.add(room)
            if senders:
                return
            del self._rooms[room]
            try:
                if room in self._handed_over:
                    self._handed_over.discard(room)
                    self._session.client.prefill.release(room)
                else:
                    reason = sender.kv_mgr.failure_records.get(room, "the request ended on the prefill side")
                    self._session.client.prefill.fail(room, reason[:512])
            except (NotAnnounced, AgentBusy) as exc:
                log.warning("etcd_pd: the end of room %s is left to its lease: %s", room, exc)

    def on_event(self, event: PrefillEvent) -> None:
        """Events from the agent."""
        if isinstance(event, Rejected):
            self._fail(event.room, str(event.error))
        elif isinstance(event, RankEnded):
            log.error("etcd_pd: %s; its %d rooms are dead", event.reason, len(self._rooms))
            for room in list(self._rooms):
                self._fail(room, f"epoch {event.epoch} of this rank ended: {event.reason}")
        elif isinstance(event, Refused):
            log.error("etcd_pd: this rank is refused, SGLang's own bootstrap server is used: %s", event.error)

    def _fail(self, room: int, reason: str) -> None:
        self._handed_over.discard(room)
        for sender in self._rooms.pop(room, []):
            fail_room(sender.kv_mgr, room, reason)


def _launch_id(manager: Any) -> str:
    """What all processes and nodes of this start have in common."""
    from sglang.srt.runtime_context import get_parallel

    launch_id = os.environ["ETCD_PD_LAUNCH_ID"]
    parallel = get_parallel()
    if manager.dist_init_addr and parallel.nnodes > 1:
        # as SGLang does with the bootstrap port at this very place: every rank comes here once
        launch_id = str(parallel.world_group.broadcast_object(launch_id, src=0))
    return launch_id


def _addresses(manager: Any, host: str, port: int | None) -> list[str]:
    """The spellings under which requests may name this instance."""
    given = [a.strip() for a in os.environ.get("ETCD_PD_ADDRESSES", "").split(",") if a.strip()]
    hosts = [_outside(host, manager.local_ip)]
    if manager.bootstrap_host in ("0.0.0.0", "::") and not manager.dist_init_addr:
        hosts += [manager.local_ip, socket.gethostname()]
    return list(dict.fromkeys([*(f"{bracketed(h)}:{port}" for h in hosts), *given]))


def _outside(host: str, local_ip: str) -> str:
    """A host that means the same on other machines: SGLang rewrites a wildcard to loopback for its own request."""
    return local_ip if host in LOOPBACK and not local_ip.startswith("127.") else host
