"""The agent: what engines say goes to etcd, what etcd says goes to the engines that asked.

packets.py    from engines          pushes.py    to engines
announcer.py  ranks into etcd       registrar.py rooms into etcd
watcher.py    from etcd             session.py   the lease that ranks hang on
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time

from ..config import AgentSettings
from ..core.book import RoomBook
from ..core.claims import LocalRank
from ..core.keys import Keys
from ..core.lease import BucketPool
from ..core.records import KeyValue
from ..core.roster import Roster
from ..core.view import View
from ..core.watch import Changes, Snapshot, WatchState
from ..errors import EtcdPDError, InstanceConflict
from ..store.base import Store
from ..wire import messages
from ..wire.values import RoomValue
from .announcer import Announcer
from .connection import EngineConnection, Speaker
from .etcd_health import EtcdHealth
from .histories import Histories
from .looks import Looks
from .packets import Packets
from .pushes import Pushes
from .ranks import Ranks
from .registrar import Registrar
from .server import Server
from .session import Session
from .spread import Spread
from .stats import SUMMARY_SECONDS, Stats
from .wants import Wants
from .watcher import Watcher

log = logging.getLogger(__name__)

#: How long a release may wait for a registration to go to etcd with. The registrar looks again a sweep later at most.
RELEASE_DELAY_SECONDS = 0.1
#: How long an agent that ends may take to write what engines released and failed, and how often it looks, seconds.
FLUSH_SECONDS, FLUSH_LOOK_SECONDS = 2.0, 0.01


class Agent:
    """All parts of one agent, on one event loop that owns all state.

    Args:
        settings: everything that it needs to know.
        store: etcd.
    """

    def __init__(self, settings: AgentSettings, store: Store) -> None:
        self._settings, self.store = settings, store
        self._keys = Keys(settings.root)
        self._ending = False
        self.prefill_only = settings.prefill_only
        self.queue_limit = settings.queue_max_rooms
        self.certificate_file = settings.etcd.cert_file
        self.stats = Stats()
        self.view, self.roster = View(self._keys), Roster(self._keys)
        self.server = Server(settings, self._on_packet, self._on_closed)
        self.etcd_health = EtcdHealth(store)
        self.session = Session(store, settings.session_ttl_seconds, self._on_new_lease)
        self.announcer = Announcer(store, self._keys, self.session, self.view, self._on_established, self._on_refused)
        self.watcher = Watcher(
            store,
            self._keys.prefix,
            settings.watch_silence_seconds,
            end=self._keys.rooms() if settings.prefill_only else b"",
            on_snapshot=self._on_snapshot,
            on_changes=self._on_changes,
            on_state=self._on_state,
        )
        self.pool = _make_pool(settings)
        self.book = _make_book(settings, self._keys, self.pool, self.announcer)
        self._pushes = Pushes(
            self.view, self.book, self.server.connections, self._state, self._on_instances, self.stats
        )
        written = (self._is_dead, self._pushes.deliver, self.watcher.note_revision)
        self.registrar = Registrar(store, self.book, self.pool, self.view, *written, self.stats)
        connections = self.server.connections
        self._spread = Spread(store, self._keys, settings.agent_id)
        self._histories = Histories(store, self._keys.agent(settings.agent_id), self._on_history_lost)
        pushes, stats = self._pushes, self.stats
        local = (self.view, self.book, self.announcer, self.registrar)
        self.ranks = Ranks(*local, pushes, connections, self._histories.lose)
        self._wants = Wants(settings, store, self.view, self.watcher, pushes, connections, stats)
        looks = Looks(settings, self.view, self.roster, self.watcher, self.session, stats)
        drivers = (self.announcer, self.registrar, self.watcher.synced, self.ranks, self._wants)
        self._packets = Packets(settings, self.book, *drivers, pushes, connections, self._histories, looks, stats)

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set.

        Raises:
            ConfigError: the socket cannot be used; nothing was started.
        """
        self.server.open()
        about = {"version": 1, "socket": f"{socket.gethostname()}:{self._settings.socket_path}"}
        self.announcer.keep(self._keys.agent(self._settings.agent_id), json.dumps(about).encode())
        work = [asyncio.create_task(part) for part in (self.session.run(), self.watcher.run(), self.registrar.run())]
        work += [asyncio.create_task(self._report()), asyncio.create_task(self._give_signs())]
        work += [asyncio.create_task(part.run(self.watcher.synced)) for part in (self.etcd_health, self._spread)]
        stopped = asyncio.create_task(stop.wait())
        try:
            done, _ = await asyncio.wait([*work, stopped], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # a part that ended did so by a bug: let it be seen
        finally:
            stopped.cancel()
            await self._end(work)

    async def _end(self, work: list[asyncio.Task[None]]) -> None:
        session, *others = work
        self.announcer.leave(self._keys.agent(self._settings.agent_id))
        await self._flush()
        self._ending = True
        self._histories.close()
        self._wants.close()
        await _cancel(others)
        ranks_gone = await self.announcer.close()
        await _cancel([session])  # renewed until here: its successor has that much longer
        # engines that live on will re-attach to a new agent within the session's TTL: leave it what is theirs
        served = any(connection.rank or connection.wants for connection in self.server.connections)
        if served or self.ranks.lingering:
            log.info("leaving the session lease=%x to a successor", self.session.lease_id)
        else:
            await self._revoke_all(ranks_gone)
        self.server.close()
        self.ranks.lingering.close()

    async def _flush(self) -> None:
        """Write what engines released and failed; what cannot be written in time they say to the next agent."""
        deadline = time.monotonic() + FLUSH_SECONDS
        self.book.hurry()
        while (left := self._count_unwritten()) and time.monotonic() < deadline:
            self.registrar.kick()
            await asyncio.sleep(FLUSH_LOOK_SECONDS)
        if left:
            log.warning("%d releases and failures are not in etcd yet: engines say them to the next agent", left)

    def _count_unwritten(self) -> int:
        # who spoke for a rank that lingers, or lingered, is gone, and says nothing again
        of_ranks = sum(self.book.count_ending(ref) for ref in {local.ref for local in self.announcer.ranks})
        return of_ranks or sum(len(engine.undurable) for engine in self.server.connections)

    async def _revoke_all(self, ranks_gone: bool) -> None:
        try:
            await asyncio.wait_for(self._revoke(ranks_gone), timeout=self._settings.session_ttl_seconds)
        except (EtcdPDError, asyncio.TimeoutError) as exc:
            log.warning("leases are left to expire: %s", exc)

    async def _revoke(self, ranks_gone: bool) -> None:
        await self.session.revoke()  # ranks first: while their epochs live, so do their rooms
        if ranks_gone:  # else one may hang on another agent's lease
            await self.registrar.close()

    async def _report(self) -> None:
        """One summary line every while in which something was done or changed, for those who only have the log."""
        last = ""
        while True:
            await asyncio.sleep(SUMMARY_SECONDS)
            state = (
                f"session={self.session.state.value} watch={self.watcher.state.value} rooms={len(self.view.rooms)} "
                f"queued={len(self.book)} leases={len(self.pool)} engines={len(self.server.connections)}"
            )
            if self.stats.was_active or state != last:
                log.info("summary %s %s revision=%d", self.stats.summary(), state, self.view.revision)
            last = state

    async def _give_signs(self) -> None:
        """Show engines that this agent runs: a socket stays open also while its process is stopped."""
        while True:
            await asyncio.sleep(messages.SIGN_SECONDS)
            self._wants.pin()
            for engine in list(self.server.connections):
                if engine.greeted and not engine.is_behind:
                    self._pushes.send_view(engine)

    # --- from engines

    def _on_packet(self, engine: EngineConnection, packet: bytes) -> None:
        if not self._ending:  # else engines say it to the next agent
            self._packets.packet(engine, packet)

    def _on_closed(self, engine: EngineConnection, reason: str) -> None:
        if not self._ending:
            self._packets.closed(engine, reason)
        elif engine.rank and (engine.rank.linger or not self.announcer.closed):
            self.ranks.leave(engine)

    def _on_history_lost(self, engine: EngineConnection) -> None:
        engine.send(messages.HISTORY_LOST)
        if engine.rank:
            engine.rank.outlive()
            self.ranks.repeat_epoch(engine)
        revision = self.view.revision
        self._pushes.notify(self.view.waits.disown(list(engine.wants.values()), revision), revision)

    # --- from etcd

    def _state(self) -> tuple[WatchState, int]:
        return self.watcher.state, self.watcher.cluster_id

    def _on_new_lease(self, lease_id: int) -> None:
        if not self._ending:
            self.announcer.new_lease(lease_id)

    def _on_snapshot(self, snapshot: Snapshot) -> None:
        log.info("listed revision=%d keys=%d", snapshot.revision, len(snapshot.kvs))
        agents = self._keys.agent("")
        self.watcher.peers = sum(kv.key.startswith(agents) for kv in snapshot.kvs)
        if snapshot.void:
            log.error("etcd has another history: every token and epoch from before is void")
            for engine in self.server.connections:
                engine.seen = None
                engine.send(messages.HISTORY_LOST)
            self.session.abandon()
            self.announcer.history_lost()
            self._pushes.notify(self.view.void(snapshot.revision), self.view.revision)
            self._wants.expect_instances()
        self.roster.replace(snapshot.kvs, time.monotonic())
        before = self.view.revision
        self._pushes.notify(self.view.relist(snapshot.revision, snapshot.kvs), before)
        self._wants.answer_early()
        # a decode group admits nothing before all of its agents came past this list: in a quiet cell they would not
        self.announcer.touch(self._keys.agent(self._settings.agent_id))
        self.registrar.kick()

    def _on_changes(self, changes: Changes) -> None:
        self.roster.apply(changes.events, time.monotonic())
        before = self.view.revision
        self._pushes.notify(self.view.apply(changes.revision, changes.events), before)

    def _on_state(self, state: WatchState) -> None:
        for engine in self.server.connections:
            self._pushes.send_view(engine)

    def _on_instances(self, ids: list[str]) -> None:
        self.ranks.instances_changed(ids)
        if any(self.view.instance(id) is None for id in ids):
            self._wants.expect_instances()
        self._wants.judge_orphans()

    def _on_established(self, local: LocalRank) -> None:
        self.ranks.instances_changed([local.instance])

    def _on_refused(self, local: LocalRank, error: InstanceConflict) -> None:
        self.ranks.refused(local, error)

    def _is_dead(self, instance: str, value: RoomValue, kv: KeyValue) -> bool | None:
        # a view that has come to the epoch's begin knows its end, or still takes it for alive; it need not have come
        # to the room, of which an agent that watches no rooms never gets an event
        if self.watcher.state is not WatchState.SYNCED or self.view.revision < min(value.epoch, kv.create_revision):
            return None
        return self.view.is_dead(instance, value.dp_rank, value.epoch)


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _make_pool(settings: AgentSettings) -> BucketPool:
    return BucketPool(
        settings.room_ttl_seconds,
        settings.bucket_max_age_seconds,
        settings.bucket_max_rooms,
        settings.bootstrap_timeout_seconds,
    )


def _make_book(settings: AgentSettings, keys: Keys, pool: BucketPool, announcer: Announcer) -> RoomBook:
    return RoomBook(
        keys,
        pool,
        announcer.guard_of,
        max_rooms=min(settings.batch_max_rooms, settings.bucket_max_rooms),
        max_queue=settings.queue_max_rooms,
        registration_timeout=settings.registration_timeout_seconds,
        tombstone_seconds=settings.room_ttl_seconds,
        release_delay=RELEASE_DELAY_SECONDS,
        place_of=_place_of,
    )


def _place_of(owner: object) -> object:
    """The place in its rank's topology that a process speaks for; another one may speak for it later."""
    assert isinstance(owner, Speaker)
    return owner.rank
