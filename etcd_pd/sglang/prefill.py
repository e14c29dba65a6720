"""The prefill side of the plug-in: a rank announces itself and registers the rooms that it takes."""

from __future__ import annotations

import logging
import os
import socket
from typing import Any
from urllib.parse import urlsplit

from ..client import PrefillEvent, RankEnded, Refused, Rejected
from ..config import LOOPBACK, bracketed, switch
from ..errors import (
    AgentBusy,
    ConfigError,
    EtcdPDError,
    NotAnnounced,
    RankDraining,
    RankLost,
    RegistrationTimeout,
    RoomConflict,
)
from .copies import Copies
from .fingerprint import own_fingerprint
from .guard import Original
from .route import parse_row
from .scheduler_session import Session, fail_room

log = logging.getLogger(__name__)


class PrefillSide:
    """One rank process.

    A living rank's requests are never failed because a key is gone: what the registry lost is registered again, and
    SGLang's own bootstrap server knows it meanwhile.

    Args:
        session: the connection.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._announced = False
        self._dp_rank: int | None = None
        self._copies = Copies() if switch("ETCD_PD_COPY_ROOMS", "1") else None
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
        launch_id, self._dp_rank = _launch_id(manager), row.rank.dp
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
                    fingerprint=own_fingerprint(manager),
                    extra=row.extra,
                )
            except (ConfigError, AgentBusy) as exc:
                log.error("etcd_pd: this rank is not announced: %s", exc)
                return
        log.info("etcd_pd: announcing instance=%s rank=%s", instance, row.rank.name(row.topology))

    def register(self, original: Original, sender: Any) -> None:
        """A rank took a room: say so to the registry, and to SGLang's own server in the background."""
        room = sender.bootstrap_room
        with self._session.lock:
            self._rooms.setdefault(room, []).append(sender)
            registered = self._ask(room)
        if self._copies is not None:
            dp_rank = sender.kv_mgr.attn_dp_rank if self._dp_rank is None else self._dp_rank
            self._copies.say(sender.bootstrap_server_url, room, dp_rank)
        elif not registered:
            original(sender)

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
            if room in self._handed_over:
                self._handed_over.discard(room)
                self._session.client.prefill.release(room)
            else:
                self._notify(room, sender.kv_mgr.failure_records.get(room, "the request ended on the prefill side"))

    def refused(self, room: Any, reason: str) -> None:
        """SGLang refused a request before it made a sender of it."""
        if type(room) is int:
            with self._session.lock:
                self._notify(room, reason)

    def on_event(self, event: PrefillEvent) -> None:
        """Events from the agent."""
        if isinstance(event, Rejected):
            self._on_rejected(event.room, event.error)
        elif isinstance(event, RankEnded):
            self._on_rank_ended(event)
        elif isinstance(event, Refused):
            log.error("etcd_pd: this rank is refused, SGLang's own bootstrap server is used: %s", event.error)

    def _on_rejected(self, room: int, error: EtcdPDError) -> None:
        if isinstance(error, RankLost) or (isinstance(error, RegistrationTimeout) and self._copies):
            if room in self._rooms:
                self._ask(room)
        elif isinstance(error, RoomConflict) or self._copies is None:
            self._fail(room, str(error))
        else:
            log.warning("etcd_pd: room %d is left to SGLang's own bootstrap server: %s", room, error)

    def _on_rank_ended(self, event: RankEnded) -> None:
        rooms = list(self._rooms)
        if not event.withdrawn:
            log.warning("etcd_pd: %s; its %d rooms are registered again", event.reason, len(rooms))
            for room in rooms:
                self._ask(room)
            return
        log.error("etcd_pd: %s; its %d rooms are dead", event.reason, len(rooms))
        for room in rooms:
            reason = f"epoch {event.epoch} of this rank ended: {event.reason}"
            self._fail(room, reason)
            self._notify(room, reason)

    def _ask(self, room: int) -> bool:
        """Have a room registered; False where it is not even queued."""
        try:
            self._session.client.prefill.register(room)
        except (NotAnnounced, AgentBusy, RankDraining, ConfigError) as exc:
            log.debug("etcd_pd: room %s is not registered: %s", room, exc)
            return False
        return self._session.connected

    def _notify(self, room: int, reason: str) -> None:
        """Let who waits for a room know that it will not come."""
        try:
            self._session.client.prefill.fail(room, reason[:512])
        except (NotAnnounced, AgentBusy, ConfigError) as exc:
            log.warning("etcd_pd: the end of room %s is left to its lease: %s", room, exc)

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
