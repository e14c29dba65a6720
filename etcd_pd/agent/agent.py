"""The agent: what engines say goes to etcd, what etcd says goes to the engines that asked."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterable

from .. import protocol
from ..config import AgentSettings
from ..core.batch import Outcome, Registered, Rejected
from ..core.book import RoomBook
from ..core.lease import BucketPool
from ..core.rooms import AgentSpoke, InstanceChanged, Notice, Resolved, View, Wait, WaitFailed, WaitLost
from ..core.watch import Changes, Snapshot, WatchState
from ..errors import (
    AgentBusy,
    AnnounceError,
    ConfigError,
    EtcdPDError,
    InstanceConflict,
    ProtocolError,
    RankDraining,
    RankLost,
    RoomConflict,
)
from ..keys import Keys
from ..model import (
    MAX_ROOM,
    Assignment,
    InstanceInfo,
    RankEndpoint,
    RoomValue,
    Topology,
    check_heartbeat,
    check_int,
    check_linger,
    check_name,
    check_rank,
    check_room,
    check_text,
)
from ..records import KeyValue
from ..store.base import Store
from .announcer import Announcer, LocalRank
from .connection import EngineConnection
from .etcd_health import EtcdHealth
from .lingering import Lingering
from .registrar import Registrar
from .server import Server
from .session import Session
from .stats import SUMMARY_SECONDS, Stats
from .watcher import Watcher

log = logging.getLogger(__name__)

#: How long a release may wait for a registration to go to etcd with. The registrar looks again a sweep later at most.
RELEASE_DELAY_SECONDS = 0.1
#: How often to look whether a node that drains has rooms left, seconds.
NODE_DRAIN_LOOK_SECONDS = 0.1

_SOURCE = {name: number for number, name in enumerate(protocol.SOURCES)}
_VIEW = {WatchState.SYNCED: 0, WatchState.STALE: 1, WatchState.CLOSED: 2}


class Agent:
    """All parts of one agent, on one event loop that owns all state.

    Args:
        settings: everything that it needs to know.
        store: etcd.
    """

    def __init__(self, settings: AgentSettings, store: Store) -> None:
        self._settings, self._store = settings, store
        self._keys = Keys(settings.root)
        self.view = View(self._keys)
        self.stats = Stats()
        self.queue_limit = settings.queue_max_rooms
        self._ending = False
        self._answers: list[Notice] = []  # to wants, and not told yet
        self._asked: set[EngineConnection] = set()
        self.pool = BucketPool(
            settings.room_ttl_seconds,
            settings.bucket_max_age_seconds,
            settings.bucket_max_rooms,
            settings.bootstrap_timeout_seconds,
        )
        self.session = Session(store, settings.session_ttl_seconds, self._on_new_lease)
        self.announcer = Announcer(store, self._keys, self.session, self.view, self._on_established, self._on_refused)
        self.book = RoomBook(
            self._keys,
            self.pool,
            self.announcer.guard_of,
            max_rooms=min(settings.batch_max_rooms, settings.bucket_max_rooms),
            max_queue=settings.queue_max_rooms,
            registration_timeout=settings.registration_timeout_seconds,
            tombstone_seconds=settings.bootstrap_timeout_seconds,
            release_delay=RELEASE_DELAY_SECONDS,
        )
        self.registrar = Registrar(store, self.book, self.pool, self.view, self._is_dead, self._deliver, self.stats)
        self.watcher = Watcher(
            store,
            self._keys.prefix,
            settings.watch_silence_seconds,
            on_snapshot=self._on_snapshot,
            on_changes=self._on_changes,
            on_state=self._on_state,
        )
        self.server = Server(settings, self._on_packet, self._on_closed)
        self.lingering = Lingering(self._withdraw)
        self.etcd_health = EtcdHealth(store)
        self._handlers: dict[int, Callable[[EngineConnection, bytes], None]] = {
            protocol.HELLO[0]: self._hello,
            protocol.ANNOUNCE[0]: self._announce,
            protocol.DECODER[0]: self._decoder,
            protocol.REGISTER[0]: self._register,
            protocol.REGISTER_LOT[0]: self._register_lot,
            protocol.RELEASE[0]: self._release,
            protocol.ADOPT[0]: self._adopt,
            protocol.FAIL[0]: self._fail,
            protocol.DRAIN[0]: self._drain,
            protocol.DRAIN_NODE[0]: self._drain_node,
            protocol.WANT[0]: self._want,
            protocol.DONE[0]: self._done,
            protocol.FOLLOW[0]: self._follow,
            protocol.BYE[0]: self._bye,
            protocol.PING[0]: self._ping,
        }

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set.

        Raises:
            ConfigError: the socket cannot be used; nothing was started.
        """
        self.server.open()
        self.announcer.keep(self._keys.agent(self._settings.agent_id), json.dumps({"version": 1}).encode())
        work = [asyncio.create_task(part) for part in (self.session.run(), self.watcher.run(), self.registrar.run())]
        work.append(asyncio.create_task(self._report()))
        work.append(asyncio.create_task(self.etcd_health.run(self.watcher.synced)))
        stopped = asyncio.create_task(stop.wait())
        try:
            done, _ = await asyncio.wait([*work, stopped], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # a part that ended did so by a bug: let it be seen
        finally:
            stopped.cancel()
            await self._end(work)

    async def _end(self, work: list[asyncio.Task[None]]) -> None:
        # engines that live on will re-attach to a new agent within the session's TTL: leave it what is theirs
        served = any(connection.rank or connection.wants for connection in self.server.connections)
        served = served or bool(self.lingering)
        self._ending = True
        self.lingering.close()
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        await self.announcer.close()
        if served:
            log.info("leaving the session lease=%x to a successor", self.session.lease_id)
        else:
            await self._revoke_all()
        self.server.close()

    async def _revoke_all(self) -> None:
        try:
            await asyncio.wait_for(self._revoke(), timeout=self._settings.session_ttl_seconds)
        except (EtcdPDError, asyncio.TimeoutError) as exc:
            log.warning("leases are left to expire: %s", exc)

    async def _revoke(self) -> None:
        await self.session.revoke()
        await self.registrar.close()

    async def _report(self) -> None:
        """One summary line every while, for those who only have the log."""
        while True:
            await asyncio.sleep(SUMMARY_SECONDS)
            log.info(
                "summary %s session=%s watch=%s revision=%d rooms=%d queued=%d leases=%d engines=%d",
                self.stats.summary(),
                self.session.state.value,
                self.watcher.state.value,
                self.view.revision,
                self.view.room_count(),
                len(self.book),
                len(self.pool),
                len(self.server.connections),
            )

    # --- from engines

    def _on_packet(self, engine: EngineConnection, packet: bytes) -> None:
        handler = self._handlers.get(packet[0])
        if handler is None or len(packet) > protocol.MAX_PACKET:
            raise ProtocolError(f"unknown or oversized packet {packet[:1]!r}")
        if not engine.greeted and packet[0] != protocol.HELLO[0]:
            raise ProtocolError("the first packet must be HELLO")
        try:
            handler(engine, packet)
        except (ProtocolError, ConfigError):
            raise
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as exc:
            raise ProtocolError(f"malformed {packet[:1]!r} packet: {exc}") from exc

    def _on_closed(self, engine: EngineConnection, reason: str) -> None:
        if self._ending:
            return
        if reason.startswith("it broke"):
            self.stats.protocol_errors += 1
            log.warning("engine %r closed: %s", engine, reason)
        else:
            log.log(
                logging.INFO if engine.rank or engine.decoder else logging.DEBUG, "engine %r left: %s", engine, reason
            )
        for wait in engine.wants.values():
            self.view.forget(wait)
        engine.wants.clear()
        if engine.rank and engine.rank.linger:
            log.info("lingering instance=%s rank=%s", engine.rank.instance, engine.rank.rank)
            self.lingering.add(engine.rank)
        elif engine.rank:
            self._withdraw(engine.rank)
        if engine.decoder:
            self.announcer.drop(self._keys.decode(engine.decoder))

    def _withdraw(self, local: LocalRank) -> None:
        self.announcer.withdraw(local)
        self._rank_ended(local)

    def _rank_ended(self, local: LocalRank) -> None:
        """A rank process left, or was never let in: what that means for the rooms of its DP rank."""
        siblings = any(other.ref == local.ref for other in self.announcer.ranks)
        if local.key_epoch or not siblings:  # one that never stood has ended nothing for others of the same rank
            self._deliver(self.book.rank_ended(local.ref, gone=not siblings))

    def _hello(self, engine: EngineConnection, packet: bytes) -> None:
        message = protocol.decode_json(packet)
        if message.get("protocol") != protocol.VERSION:
            refusal = f"the agent speaks protocol {protocol.VERSION}, the client {message.get('protocol')!r}"
            engine.send(protocol.encode_json(protocol.WELCOME, {"refused": refusal}))
            raise ProtocolError(refusal)
        engine.greeted = True
        heartbeat = message.get("heartbeat")
        if heartbeat is not None:
            engine.expect_heartbeat(check_heartbeat(heartbeat))
        synced = self.watcher.synced.is_set()
        engine.send(protocol.encode_json(protocol.WELCOME, {"agent": self._settings.agent_id, "synced": synced}))
        self._ping(engine, packet)

    def _announce(self, engine: EngineConnection, packet: bytes) -> None:
        message = protocol.decode_json(packet)
        if engine.rank:
            raise ProtocolError("one rank per connection")
        topology = Topology(**message["topology"])
        rank = check_rank(message["rank"], topology)
        info = InstanceInfo(
            incarnation="",
            launch_id=message["launch_id"],
            addresses=tuple(message["addresses"]),
            topology=topology,
            policy=message["policy"],
            fingerprint=message["fingerprint"],
            extra=message.get("extra", {}),
        )
        endpoint = RankEndpoint(rank, message["ip"], message["port"], str(message.get("incarnation", "")))
        local = LocalRank(check_name("instance", message["instance"]), rank, info, endpoint)
        local.key_epoch = check_int("key_epoch", message.get("key_epoch", 0), 0, MAX_ROOM)
        local.told_epoch = check_int("epoch", message.get("epoch", 0), 0, MAX_ROOM)
        local.linger = check_linger(message.get("linger", 0.0))
        left = self.lingering.take_over(local)
        if left:  # another process on behalf of the same engine: nothing has changed but whom to tell
            left.linger, left.told_epoch = local.linger, 0
            engine.rank = left
            self._tell_epoch(engine, left)
            return
        engine.rank = local
        self.announcer.announce(local)

    def _decoder(self, engine: EngineConnection, packet: bytes) -> None:
        message = protocol.decode_json(packet)
        engine.decoder = check_name("instance", message["instance"])
        value = json.dumps({"address": str(message["address"]), "agent": self._settings.agent_id}).encode()
        self.announcer.keep(self._keys.decode(engine.decoder), value)

    def _register(self, engine: EngineConnection, packet: bytes) -> None:
        now = time.monotonic()
        outcomes: list[Outcome] = []
        for room in _rooms(packet):
            if engine.rank is None or engine.rank.draining:
                outcomes.append(_refused(engine, room))
            else:
                outcomes.extend(self.book.register(engine, engine.rank.ref, room, now))
        if outcomes:
            self._deliver(outcomes)
        self.registrar.kick()

    def _register_lot(self, engine: EngineConnection, packet: bytes) -> None:
        rooms = _rooms(packet)
        if not 0 < len(rooms) <= protocol.MAX_LOT:
            raise ProtocolError(f"a lot of {len(rooms)} rooms")
        if engine.rank is None or engine.rank.draining:
            self._deliver([_refused(engine, room) for room in rooms])
        else:
            self._deliver(self.book.register_lot(engine, engine.rank.ref, rooms, time.monotonic()))
        self.registrar.kick()

    def _release(self, engine: EngineConnection, packet: bytes) -> None:
        for room in protocol.decode_rooms(packet):
            if engine.rank:
                self.book.release(engine.rank.ref, room)
        self.registrar.kick()

    def _adopt(self, engine: EngineConnection, packet: bytes) -> None:
        for room, epoch, token, lease_id in protocol.decode_adopted(packet):
            if engine.rank and epoch == engine.rank.told_epoch:
                self.book.adopt(engine.rank.ref, epoch, room, token, lease_id, time.monotonic())

    def _fail(self, engine: EngineConnection, packet: bytes) -> None:
        message = protocol.decode_json(packet)
        room, reason = check_room(message["room"]), check_text("reason", message["reason"])
        if engine.rank:
            self.book.fail(engine.rank.ref, room, reason, time.monotonic())
        self.registrar.kick()

    def _drain(self, engine: EngineConnection, packet: bytes) -> None:
        if engine.rank and not engine.rank.draining:
            log.info("draining instance=%s rank=%s", engine.rank.instance, engine.rank.rank)
            self.announcer.drain(engine.rank)
        self._tell_drained(engine)

    def _drain_node(self, engine: EngineConnection, packet: bytes) -> None:
        """Whoever ends this node asks: let no new room in, and say when the last one has ended."""
        log.info("draining the node engines=%d", len(self.server.connections) - 1)
        for other in self.server.connections:
            if other.rank:
                self._drain(other, packet)
        self._tell_node_drained(engine)

    def _tell_node_drained(self, engine: EngineConnection) -> None:
        if any(other.wants or (other.rank and self.book.live(other.rank.ref)) for other in self.server.connections):
            asyncio.get_running_loop().call_later(NODE_DRAIN_LOOK_SECONDS, self._tell_node_drained, engine)
        else:
            engine.send(protocol.DRAINED)

    def _want(self, engine: EngineConnection, packet: bytes) -> None:
        asked = protocol.decode_want(packet)
        earlier = engine.wants.pop(asked.id, None)
        if earlier:  # the engine lost pushes and asks again
            self.view.forget(earlier)
        named = asked.named_rank if asked.named_rank >= 0 else None
        wait = Wait(engine, asked.id, check_name("instance", asked.instance), asked.room, named)
        wait.asked_at = time.monotonic()
        engine.wants[asked.id], engine.last_want = wait, asked.id
        self.stats.wanted += 1
        self._answers.extend(self.view.want(wait))
        if not self._asked:
            asyncio.get_running_loop().call_soon(self._answer)  # once for all packets that are read together
        self._asked.add(engine)
        if self.view.is_unplaced(wait):
            seconds = min(asked.seconds, self._settings.instance_timeout_seconds)
            asyncio.get_running_loop().call_later(seconds, self._give_up_unknown, wait)

    def _answer(self) -> None:
        """Answer what was just wanted; that there is no answer yet is one: the engine's revision holds for it."""
        asked, self._asked = self._asked, set()
        told = self._notify((), self.view.revision)
        for engine in asked - told:
            self._ping(engine, b"")

    def _give_up_unknown(self, wait: Wait) -> None:
        if wait.ended or not self.view.is_unplaced(wait):
            return
        if self.watcher.state is not WatchState.SYNCED:  # cannot tell: the wait's own deadline still holds
            asyncio.get_running_loop().call_later(self._settings.instance_timeout_seconds, self._give_up_unknown, wait)
            return
        self._end_wait(wait, {"error": "InstanceUnknown"})

    def _done(self, engine: EngineConnection, packet: bytes) -> None:
        for id in protocol.decode_done(packet):
            wait = engine.wants.pop(id, None)
            if wait:
                self.view.forget(wait)

    def _follow(self, engine: EngineConnection, packet: bytes) -> None:
        name = check_name("instance", protocol.decode_follow(packet))
        engine.followed.add(name)
        id = self.view.find(name)
        if id is not None:
            engine.known.setdefault(id, set()).add(name)
        # after the answers to earlier wants, which may still be queued as pushes
        self._tell_instance(engine, id if id is not None else name)

    def _bye(self, engine: EngineConnection, packet: bytes) -> None:
        if engine.rank:
            engine.rank.linger = 0.0

    def _ping(self, engine: EngineConnection, packet: bytes) -> None:
        engine.push([protocol.encode_view(self._view_at(engine, self.view.revision))])

    # --- from etcd

    def _view_at(self, engine: EngineConnection, revision: int) -> protocol.ViewAt:
        return protocol.ViewAt(revision, _VIEW[self.watcher.state], engine.last_want, self.view.floor)

    def _on_new_lease(self, lease_id: int) -> None:
        self.announcer.new_lease(lease_id)

    def _on_snapshot(self, snapshot: Snapshot) -> None:
        log.info("listed revision=%d keys=%d", snapshot.revision, len(snapshot.kvs))
        if snapshot.void:
            log.error("etcd has another history: every token and epoch from before is void")
            self.announcer.history_lost()
            self._notify(self.view.void(snapshot.revision), self.view.revision)
        before = self.view.revision
        self._notify(self.view.snapshot(snapshot.revision, snapshot.kvs), before)
        # a decode group admits nothing before all of its agents came past this list: in a quiet cell they would not
        self.announcer.touch(self._keys.agent(self._settings.agent_id))
        self.registrar.kick()

    def _on_changes(self, changes: Changes) -> None:
        before = self.view.revision
        self._notify(self.view.changes(changes.revision, changes.events), before)

    def _on_state(self, state: WatchState) -> None:
        for engine in self.server.connections:
            self._ping(engine, b"")

    def _is_dead(self, instance: str, value: RoomValue, kv: KeyValue) -> bool | None:
        if self.watcher.state is not WatchState.SYNCED or self.view.revision < kv.create_revision:
            return None
        return self.view.epoch(instance, value.dp_rank) != value.epoch

    def _on_established(self, local: LocalRank) -> None:
        self._instances_changed([local.instance])

    def _on_refused(self, local: LocalRank, error: AnnounceError) -> None:
        for engine in self.server.connections:
            if engine.rank is local:
                engine.rank = None
                assert isinstance(error, InstanceConflict)
                message = {"error": "InstanceConflict", "instance": error.instance, "holder": error.holder}
                engine.send(protocol.encode_json(protocol.REFUSED, message))
        self._rank_ended(local)

    # --- to engines

    def _notify(self, news: Iterable[Notice], before: int) -> set[EngineConnection]:
        """Push what a change of the view from revision ``before`` means: instances first, as answers refer to them.

        An engine is told the new revision with the last that it brings, so that its own revision is never ahead of
        its answers. Returns the engines that were told.
        """
        notices = [*self._answers, *news]
        self._answers.clear()
        changed = list(dict.fromkeys(notice.id for notice in notices if isinstance(notice, InstanceChanged)))
        if changed:
            self._instances_changed(changed)
        resolved: dict[EngineConnection, list[protocol.ResolvedWant]] = {}
        for notice in notices:
            if isinstance(notice, Resolved):
                engine, want = self._resolved(notice)
                resolved.setdefault(engine, []).append(want)
        now = time.monotonic()
        self.stats.resolve_seconds.observe_each([now - n.wait.asked_at for n in notices if isinstance(n, Resolved)])
        more = {_engine(n.wait) for n in notices if isinstance(n, (WaitFailed, WaitLost))}
        if any(isinstance(n, AgentSpoke) for n in notices):
            more |= set(self.server.connections)
        more |= {engine for engine, wants in resolved.items() if len(wants) > protocol.RESOLVED_PER_PACKET}
        for engine, wants in resolved.items():
            at = self._view_at(engine, before if engine in more else self.view.revision)
            engine.push(protocol.encode_resolved(at, wants))
        for notice in notices:
            if isinstance(notice, (WaitFailed, WaitLost)):
                self._tell_end(notice)
        for engine in more:
            self._ping(engine, b"")
        return more | resolved.keys()

    def _resolved(self, notice: Resolved) -> tuple[EngineConnection, protocol.ResolvedWant]:
        found = notice.assignment
        engine = self._introduce(notice.wait, found)
        self.stats.resolved += 1
        if log.isEnabledFor(logging.DEBUG):
            log.debug(
                "resolved room=%d instance=%s dp_rank=%d revision=%d",
                found.room,
                found.instance,
                found.dp_rank,
                found.revision,
            )
        want = protocol.ResolvedWant(
            notice.wait.id, found.dp_rank, found.epoch, found.revision, found.lease_id, _SOURCE[found.source]
        )
        return engine, want

    def _introduce(self, wait: Wait, found: Assignment) -> EngineConnection:
        """The engine that waits, which knows by now what it called the instance."""
        engine = _engine(wait)
        names = engine.known.setdefault(found.instance, set())
        if wait.instance not in names:
            names.add(wait.instance)
            self._tell_instance(engine, found.instance)
        return engine

    def _tell_end(self, notice: WaitFailed | WaitLost) -> None:
        message: dict[str, object] = {"error": "RoomFailed", "revision": notice.revision}
        if isinstance(notice, WaitFailed):
            message["reason"] = notice.reason
        else:
            message |= {"error": "PrefillLost", "dp_rank": notice.dp_rank, "epoch": notice.epoch}
        found = notice.arrived
        if found:
            self._introduce(notice.wait, found)
            message["arrived"] = [found.dp_rank, found.epoch, found.revision, found.lease_id, _SOURCE[found.source]]
        self._end_wait(notice.wait, message)

    def _end_wait(self, wait: Wait, message: dict[str, object]) -> None:
        engine = _engine(wait)
        self.view.forget(wait)
        engine.wants.pop(wait.id, None)
        self.stats.ended[str(message["error"])] += 1
        log.debug("ended room=%d instance=%s %s", wait.room, wait.instance, message)
        engine.push([protocol.encode_json(protocol.ENDED, {"id": wait.id, **message})])

    def _instances_changed(self, ids: list[str]) -> None:
        for id in ids:
            self.announcer.instance_changed(id)
            for local in self.lingering.of(id):
                self._tell_epoch(None, local)
            for engine in self.server.connections:
                names = {name for name in engine.followed if self.view.find(name) == id}
                if names:
                    engine.known.setdefault(id, set()).update(names)
                if id in engine.known:
                    self._tell_instance(engine, id)
                if engine.rank and engine.rank.instance == id:
                    self._tell_epoch(engine, engine.rank)
        self.registrar.kick()

    def _tell_instance(self, engine: EngineConnection, id: str) -> None:
        found = self.view.instance(id)
        names = sorted(engine.known.get(id, set()) | {id})
        info = json.loads(found.info.to_json()) if found else None
        ranks = [[list(e.rank), e.ip, e.port, e.state, e.epoch] for e in found.ranks] if found else []
        message = {"id": id, "names": names, "info": info, "ranks": ranks}
        try:
            engine.send(protocol.encode_json(protocol.INSTANCE, message))
        except ProtocolError as exc:  # a thousand processes, or somebody else's idea of an instance
            log.error("instance=%s cannot be described to %r: %s", id, engine, exc)

    def _tell_epoch(self, engine: EngineConnection | None, local: LocalRank) -> None:
        """Tell a rank when its epoch ended or began, as the view shows it; None while nobody speaks for it."""
        if not local.lease_id or not self.view.revision:
            return
        instance = self.view.instances.get(local.instance)
        own = instance.endpoints.get(local.rank) if instance else None
        stands = own is not None and own.epoch == local.key_epoch
        epoch = self.view.epoch(*local.ref) if stands else 0
        if not stands and self.view.revision < local.key_epoch:
            return  # the view has not come as far as our own write
        if local.told_epoch not in (0, epoch):
            self._deliver(self.book.rank_ended(local.ref, gone=False))
            message = {"epoch": local.told_epoch, "reason": "the rank's key vanished from etcd"}
            if engine:
                engine.send(protocol.encode_json(protocol.RANK_ENDED, message))
            log.warning("epoch ended instance=%s rank=%s epoch=%d", local.instance, local.rank, local.told_epoch)
            local.told_epoch = 0
        if epoch and local.told_epoch != epoch:
            local.told_epoch = epoch
            message = {"epoch": epoch, "key_epoch": local.key_epoch, "incarnation": local.incarnation}
            if engine:
                engine.send(protocol.encode_json(protocol.ANNOUNCED, message))

    def _deliver(self, outcomes: list[Outcome]) -> None:
        registered: dict[EngineConnection, list[tuple[int, int, int]]] = {}
        for outcome in outcomes:
            engine = outcome.owner
            assert isinstance(engine, EngineConnection)
            if isinstance(outcome, Registered):
                registered.setdefault(engine, []).append(outcome[1:])
            else:
                self.stats.rejected[type(outcome.error).__name__] += 1
                log.debug("rejected room=%d: %s", outcome.room, outcome.error)
                engine.push([_rejection(outcome.room, outcome.error)])
        for engine, rooms in registered.items():
            self.stats.registered += len(rooms)
            engine.push(protocol.encode_registered(rooms))
        for engine in [e for e in self.server.connections if e.rank and e.rank.draining]:
            self._tell_drained(engine)

    def _tell_drained(self, engine: EngineConnection) -> None:
        if engine.rank and not self.book.live(engine.rank.ref) and not engine.rank.told_drained:
            engine.rank.told_drained = True
            engine.send(protocol.DRAINED)


def _rooms(packet: bytes) -> list[int]:
    rooms = protocol.decode_rooms(packet)
    if rooms and min(rooms) < 0:
        raise ProtocolError(f"room {min(rooms)} is out of range")
    return rooms


def _engine(wait: Wait) -> EngineConnection:
    """The engine that waits."""
    assert isinstance(wait.owner, EngineConnection)
    return wait.owner


def _refused(engine: EngineConnection, room: int) -> Rejected:
    if engine.rank is None:
        return Rejected(engine, room, EtcdPDError("the rank is not announced"))
    return Rejected(engine, room, RankDraining(room, "the rank is draining"))


def _rejection(room: int, error: EtcdPDError) -> bytes:
    message: dict[str, object] = {"room": room, "error": type(error).__name__, "text": str(error)}
    if isinstance(error, RoomConflict):
        message |= {"holder": error.holder, "owned": error.room}
    elif isinstance(error, RankLost):
        message["epoch"] = error.epoch
    elif isinstance(error, AgentBusy):
        message["limit"] = error.limit
    return protocol.encode_json(protocol.REJECTED, message)
