"""Puts ranks, instances and this agent itself into etcd, keeps them there, and takes them out.

Who owns an instance's name is decided by etcd: the first announcer creates its key, others of the same launch join,
and everybody else waits for it to vanish or is refused.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field, replace
from functools import partial

from ..core.batch import Guard, RankRef
from ..core.keys import Keys, PrefillKey
from ..core.records import Compare, Condition, Delete, KeyValue, OnLease, Operation, Put
from ..core.view import View
from ..errors import InstanceConflict, StoreError, StoreRejected
from ..store.base import Store
from ..wire.to_agent import Announce
from ..wire.values import DRAINING, ENDED, SERVING, InstanceInfo, Rank, RankEndpoint
from .session import Session

log = logging.getLogger(__name__)

#: Most keys of a rank that a transaction compares, of etcd's 128: what is left is for rooms.
MOST_COMPARES = 64

#: Pause between looks at a predecessor's keys, and the longest after a write that failed again and again, seconds.
LOOK_AGAIN, LONGEST_PAUSE = 0.1, 2.0


@dataclass(eq=False)
class LocalRank:
    """A rank process that this agent serves.

    Attributes:
        instance: the instance's id.
        rank: its place in the topology.
        info: what it says of its instance; the incarnation is etcd's to decide.
        endpoint: where it hands over KV caches.
        key_epoch: create_revision of its key, 0 while the key is not known to stand.
        lease_id: the lease that the key hangs on.
        told_epoch: the DP rank's epoch that the engine was told last, 0 for none.
        linger: seconds that it stays after its connection broke.
        unsure_since: revision of etcd before a claim whose outcome is not known, 0 where there is none.
        renounced: a key of its own that is found in etcd belongs to a life that is over.
    """

    instance: str
    rank: Rank
    info: InstanceInfo
    endpoint: RankEndpoint
    key_epoch: int = 0
    lease_id: int = 0
    told_epoch: int = 0
    linger: float = 0.0
    unsure_since: int = 0
    renounced: bool = False
    draining: bool = False
    told_drained: bool = False
    gone: bool = False
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    @classmethod
    def announced(cls, said: Announce) -> LocalRank:
        """As an engine announces it."""
        local = cls(said.instance, said.rank, said.info, said.endpoint, said.key_epoch, linger=said.linger)
        local.told_epoch = said.epoch
        return local

    def __post_init__(self) -> None:
        #: The DP rank that it is part of.
        self.ref = RankRef(self.instance, self.rank.dp)

    @property
    def incarnation(self) -> str:
        """The start of the instance that it belongs to, empty before etcd decided."""
        return self.endpoint.incarnation


class Announcer:
    """Keeps the keys of local ranks, and other keys of this agent's session, in etcd.

    Args:
        store: where to.
        keys: the key layout.
        session: whose lease they hang on.
        view: what etcd is known to hold.
        on_established: called when a rank's key stands under the session's lease.
        on_refused: called when an announcement is refused for good.
    """

    def __init__(
        self,
        store: Store,
        keys: Keys,
        session: Session,
        view: View,
        on_established: Callable[[LocalRank], None],
        on_refused: Callable[[LocalRank, InstanceConflict], None],
    ) -> None:
        self._store, self._keys, self._session, self._view = store, keys, session, view
        self._on_established, self._on_refused = on_established, on_refused
        self._ranks: list[LocalRank] = []
        self._others: dict[bytes, bytes] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def ranks(self) -> list[LocalRank]:
        """The rank processes that this agent serves at present."""
        return list(self._ranks)

    def guard_of(self, ref: RankRef) -> Guard | None:
        """What every registration of a local rank is compared with; None while the rank is not live."""
        epoch = self._view.epoch(*ref)
        local = next((r for r in self._ranks if r.ref == ref and r.key_epoch and r.told_epoch == epoch), None)
        if not epoch or local is None:
            return None
        endpoints, incarnation = self._view.instances[ref.instance].endpoints, local.endpoint.incarnation
        own = endpoints.get(local.rank)
        if own is None or own.epoch != local.key_epoch:
            return None  # written anew, which the view does not know yet: its epoch is over
        # the epoch ends with any of the rank's keys, so all are compared; the youngest first, which is the epoch
        keys = [
            (endpoint.epoch, rank)
            for rank, endpoint in endpoints.items()
            if rank.dp == ref.dp_rank and endpoint.incarnation == incarnation
        ]
        keys = sorted(keys, reverse=True)[:MOST_COMPARES]
        return Guard(epoch, tuple(Compare(self._keys.rank(ref.instance, rank), created) for created, rank in keys))

    # --- ranks

    def announce(self, local: LocalRank) -> None:
        """Begin to keep a rank in etcd."""
        self._ranks.append(local)
        self._establish(local)

    def withdraw(self, local: LocalRank) -> None:
        """The engine process is gone: take its rank out of etcd at once."""
        if local in self._ranks:
            self._ranks.remove(local)
        local.gone = True
        predecessor, local.task = local.task, None
        self._spawn(self._remove(local, predecessor))

    def drain(self, local: LocalRank) -> None:
        """Say in etcd that the rank takes no new rooms."""
        local.draining = True
        local.endpoint = replace(local.endpoint, state=DRAINING)
        self._establish(local)

    def resume(self, local: LocalRank) -> None:
        """Say in etcd that the rank takes rooms again."""
        local.draining = local.told_drained = False
        local.endpoint = replace(local.endpoint, state=SERVING)
        self._establish(local)

    def keep(self, key: bytes, value: bytes) -> None:
        """Keep any other key under the session's lease."""
        self._others[key] = value
        if self._session.lease_id:
            self._spawn(self._put_other(key, value))

    def touch(self, key: bytes) -> None:
        """Write such a key once more, for the sake of the revision."""
        value = self._others.get(key)
        if value is not None:
            self.keep(key, value)

    def drop(self, key: bytes) -> None:
        """Stop keeping such a key, and delete it."""
        if self._others.pop(key, None) is not None:
            self._spawn(self._until_done(lambda: self._store.txn([], [Delete(key)])))

    def new_lease(self, lease_id: int) -> None:
        """The session has a new lease: everything must be written again under it."""
        for local in self._ranks:
            self._establish(local)
        for key, value in self._others.items():
            self._spawn(self._put_other(key, value))

    def history_lost(self) -> None:
        """etcd has another history: revisions known from before prove nothing, so every rank starts anew."""
        for local in self._ranks:
            self.renounce(local)

    def sweep(self, kvs: Iterable[KeyValue]) -> None:
        """Delete what hangs on the session's lease and is nobody's here: a restored etcd has brought it back."""
        ours = {self._keys.rank(local.instance, local.rank) for local in self._ranks} | self._others.keys()
        ours |= {self._keys.prefill(local.instance) for local in self._ranks}
        lease_id = self._session.lease_id
        left = [kv for kv in kvs if lease_id and kv.lease == lease_id and kv.key not in ours]
        if left:
            log.warning("deleting %d keys whose processes are gone: a restore brought them back", len(left))
            self._spawn(self._delete_all(left))

    async def _delete_all(self, kvs: list[KeyValue]) -> None:
        """Ranks first: an instance's key goes when no rank is left, of other agents either."""
        for kv in sorted(kvs, key=lambda kv: isinstance(self._keys.parse(kv.key), PrefillKey)):
            conditions: list[Condition] = [OnLease(kv.key, kv.lease), *self._abandoned(kv)]
            await self._until_done(partial(self._store.txn, conditions, [Delete(kv.key)]))

    def renounce(self, local: LocalRank) -> None:
        """What an engine knows of its rank is of another history: it starts anew."""
        local.key_epoch, local.renounced = 0, True
        self._establish(local)

    def instance_changed(self, id: str) -> None:
        """The view of an instance changed: write again what vanished from under a living rank."""
        instance = self._view.instances.get(id)
        for local in self._ranks:
            if local.instance != id or not local.key_epoch or (local.task and not local.task.done()):
                continue
            endpoint = instance.endpoints.get(local.rank) if instance else None
            # the view may be older than our own write; it is never older than what it once showed
            vanished = self._view.revision >= local.key_epoch and (
                endpoint is None or endpoint.epoch != local.key_epoch
            )
            if vanished or (instance and not instance.info_key_exists):
                self._establish(local)

    async def close(self) -> None:
        """Stop writing, once what was begun is finished."""
        for local in self._ranks:
            if local.task:
                local.task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2.0)
        for task in self._tasks:
            task.cancel()

    # --- the writing

    def _establish(self, local: LocalRank) -> None:
        if local.task:
            local.task.cancel()
        local.task = asyncio.create_task(self._claim_until_done(local))

    async def _claim_until_done(self, local: LocalRank) -> None:
        """Claim the rank's key; wait for a predecessor's to vanish, for as long as its session may last."""
        deadline, refusal = 0.0, ""
        while True:
            lease_id = await self._session.lease()
            try:
                obstacle = await self._claim(local, lease_id)
            except InstanceConflict as exc:
                self._refuse(local, exc)
                return
            except StoreError as exc:
                if isinstance(exc, StoreRejected) and str(exc) != refusal:  # once, not once an attempt
                    log.warning("etcd refuses to announce instance=%s rank=%s: %s", local.instance, local.rank, exc)
                    refusal = str(exc)
                log.debug("rank %s/%s not announced yet: %s", local.instance, local.rank, exc)
                obstacle, deadline = None, 0.0
            else:
                if obstacle is None:
                    self._on_established(local)
                    return
            now = time.monotonic()
            deadline = deadline or now + 2 * self._session.granted_ttl + 1
            if obstacle and now >= deadline:
                self._refuse(local, InstanceConflict(local.instance, obstacle))
                return
            await asyncio.sleep(random.uniform(LOOK_AGAIN / 2, LOOK_AGAIN))

    def _refuse(self, local: LocalRank, error: InstanceConflict) -> None:
        log.error("announcement refused instance=%s rank=%s: %s", local.instance, local.rank, error)
        if local in self._ranks:
            self._ranks.remove(local)
        self._on_refused(local, error)

    async def _claim(self, local: LocalRank, lease_id: int) -> str | None:
        """One attempt. None: the key stands under our lease. Else what stands in the way.

        Raises:
            InstanceConflict: waiting would not help.
        """
        info_key, rank_key = self._keys.prefill(local.instance), self._keys.rank(local.instance, local.rank)
        listing = await self._store.list(info_key)
        found = {kv.key: kv for kv in listing.kvs}
        info_kv, rank_kv = found.get(info_key), found.get(rank_key)
        if local.renounced:
            return await self._renounce(local, rank_kv)
        self._recognise(local, rank_kv)
        info, obstacle = self._decide(local, info_kv, found)
        if obstacle == "":  # a predecessor's leftover, with no rank of its own
            assert info_kv is not None
            await self._remove_abandoned(info_kv)
            return "an instance that has just ended"
        if info is None:
            return obstacle
        if rank_kv is not None and not self._is_ours(local, rank_kv):
            return f"another process as rank {local.rank}"
        local.unsure_since = local.unsure_since or listing.header.revision
        return await self._write_claim(local, lease_id, info, info_kv, rank_kv)

    async def _write_claim(
        self, local: LocalRank, lease_id: int, info: InstanceInfo, info_kv: KeyValue | None, rank_kv: KeyValue | None
    ) -> str | None:
        """Write both keys, if they are still what was read; None, or what stands in the way."""
        info_key, rank_key = self._keys.prefill(local.instance), self._keys.rank(local.instance, local.rank)
        endpoint = replace(local.endpoint, incarnation=info.incarnation)
        compares: list[Condition] = [
            Compare(info_key, info_kv.create_revision if info_kv else 0),
            Compare(rank_key, rank_kv.create_revision if rank_kv else 0),
            OnLease(rank_key, rank_kv.lease if rank_kv else 0),
        ]
        operations: list[Operation] = [
            Put(info_key, info.to_json(), lease_id),
            Put(rank_key, endpoint.to_json(), lease_id),
        ]
        result = await self._store.txn(compares, operations)
        local.unsure_since = 0
        if not result.succeeded:
            return "a start that raced with this one"
        local.endpoint, local.lease_id = endpoint, lease_id
        local.key_epoch = local.key_epoch if rank_kv else result.header.revision  # one that stands is ours already
        log.info(
            "rank announced instance=%s rank=%s incarnation=%s epoch=%d lease=%x",
            local.instance,
            local.rank,
            info.incarnation,
            local.key_epoch,
            lease_id,
        )
        return None

    def _decide(
        self, local: LocalRank, info_kv: KeyValue | None, found: dict[bytes, KeyValue]
    ) -> tuple[InstanceInfo | None, str | None]:
        """The InstanceInfo to stand under, or the obstacle (empty: a leftover that may be deleted)."""
        prefix = self._keys.prefill(local.instance) + b"/ranks/"
        endpoints = [RankEndpoint.from_json(local.rank, kv.value, 0) for k, kv in found.items() if k.startswith(prefix)]
        if info_kv is None:
            incarnation = local.incarnation or str(uuid.uuid4())
            if any(endpoint and endpoint.incarnation != incarnation for endpoint in endpoints):
                return None, "ranks of an earlier start"
            return replace(local.info, incarnation=incarnation), None
        info = InstanceInfo.from_json(info_kv.value)
        if info is None or info.launch_id != local.info.launch_id or info.state == ENDED:
            holder = f"launch {info.launch_id}" if info else "a key that is not ours"
            return None, holder if endpoints else ""
        if info.topology != local.info.topology:
            raise InstanceConflict(local.instance, f"the same launch with another topology, {info.topology}")
        return info, None

    async def _remove(self, local: LocalRank, establishing: asyncio.Task[None] | None) -> None:
        """Delete the rank's key, and its instance's when it was the last."""
        if establishing and not establishing.done():
            establishing.cancel()
            await asyncio.wait([establishing])
            await self._until_done(lambda: self._find_own_key(local))
        if local.key_epoch:
            rank_key = self._keys.rank(local.instance, local.rank)
            ours: list[Condition] = [Compare(rank_key, local.key_epoch), OnLease(rank_key, local.lease_id)]
            await self._until_done(lambda: self._store.txn(ours, [Delete(rank_key)]))
            log.info("rank withdrawn instance=%s rank=%s epoch=%d", local.instance, local.rank, local.key_epoch)
        if local.incarnation:
            await self._until_done(lambda: self._remove_instance(local))

    async def _find_own_key(self, local: LocalRank) -> None:
        """A claim was cut off: see whether it had written the key."""
        listing = await self._store.read([self._keys.rank(local.instance, local.rank)])
        rank_kv = listing.kvs[0] if listing.kvs else None
        if local.renounced:
            await self._renounce(local, rank_kv)
        self._recognise(local, rank_kv)
        if rank_kv is not None and self._is_ours(local, rank_kv):
            local.lease_id = rank_kv.lease

    def _is_ours(self, local: LocalRank, rank_kv: KeyValue) -> bool:
        """Whether a rank's key is the one that we wrote, or that our engine's earlier agent left to us.

        Another agent that has taken the key over since then keeps its create_revision, under its own lease.
        """
        taken_over = local.lease_id and rank_kv.lease not in (local.lease_id, self._session.lease_id)
        return rank_kv.create_revision == local.key_epoch and not taken_over

    def _recognise(self, local: LocalRank, rank_kv: KeyValue | None) -> None:
        """A claim may have happened without an answer: its key came later, under our lease, and leads to our engine."""
        if rank_kv is None or not local.unsure_since or rank_kv.create_revision <= local.unsure_since:
            return
        endpoint = self._own_endpoint(local, rank_kv)
        if endpoint and rank_kv.lease == self._session.lease_id:
            local.key_epoch = rank_kv.create_revision
            local.endpoint = replace(local.endpoint, incarnation=endpoint.incarnation)

    async def _renounce(self, local: LocalRank, rank_kv: KeyValue | None) -> str | None:
        """Take our own key away, so that the next claim makes a new epoch; nobody else's."""
        own_lease = rank_kv is not None and rank_kv.lease in (self._session.lease_id, local.lease_id)
        if rank_kv is not None and own_lease and self._own_endpoint(local, rank_kv):
            await self._store.txn([Compare(rank_kv.key, rank_kv.create_revision)], [Delete(rank_kv.key)])
        local.renounced, local.unsure_since = False, 0
        return "its own key from before"

    def _own_endpoint(self, local: LocalRank, rank_kv: KeyValue) -> RankEndpoint | None:
        """What a rank's key holds, where that leads to our engine."""
        endpoint = RankEndpoint.from_json(local.rank, rank_kv.value, 0)
        same = endpoint and (endpoint.ip, endpoint.port) == (local.endpoint.ip, local.endpoint.port)
        return endpoint if same else None

    async def _remove_instance(self, local: LocalRank) -> None:
        info_key = self._keys.prefill(local.instance)
        found = (await self._store.read([info_key])).kvs
        info = InstanceInfo.from_json(found[0].value) if found else None
        if not info or info.incarnation != local.incarnation:
            return
        if info.state != ENDED:  # said first: a key that only vanishes may come back with the session of its agent
            ended = Put(info_key, replace(info, state=ENDED).to_json(), None)
            await self._store.txn(self._abandoned(found[0]), [ended])
        await self._remove_abandoned(found[0])

    async def _remove_abandoned(self, info_kv: KeyValue) -> None:
        """Delete an instance's key, unless a rank of it exists."""
        await self._store.txn(self._abandoned(info_kv), [Delete(info_kv.key)])

    @staticmethod
    def _abandoned(info_kv: KeyValue) -> list[Compare]:
        """That an instance's key is the one that was read, and that no rank of it exists."""
        return [Compare(info_kv.key, info_kv.create_revision), Compare(info_kv.key + b"/ranks/", 0, prefix=True)]

    async def _put_other(self, key: bytes, value: bytes) -> None:
        async def put() -> None:
            lease_id = await self._session.lease()  # of now: the one before may have expired since
            if self._others.get(key) == value:
                await self._store.txn([], [Put(key, value, lease_id)])

        await self._until_done(put)

    async def _until_done(self, act: Callable[[], Awaitable[object]]) -> None:
        pause = LOOK_AGAIN
        while True:
            try:
                await act()
                return
            except StoreError as exc:
                log.debug("again in a moment: %s", exc)
                await asyncio.sleep(random.uniform(pause, 2 * pause))
                pause = min(2 * pause, LONGEST_PAUSE)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
