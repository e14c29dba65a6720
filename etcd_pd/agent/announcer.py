"""Puts ranks, instances and this agent itself into etcd, keeps them there, and takes them out.

etcd decides who owns an instance's name: the first announcer creates its key; others join, wait or are refused.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

from ..core.batch import Guard
from ..core.claims import Blocked, Claims, LocalRank, Write, guard_of, has_vanished, is_empty
from ..core.keys import Keys
from ..core.own_room import RankRef
from ..core.patience import Patience
from ..core.records import Delete, KeyValue, OnLease, Put
from ..core.view import View
from ..errors import InstanceConflict, StoreError, StoreRejected
from ..store.base import Store
from ..wire.values import DRAINING, SERVING, leaving
from .background import Background
from .session import Session

log = logging.getLogger(__name__)

#: Longest pause between looks at a predecessor's keys, seconds.
LOOK_AGAIN = 0.1


class Announcer:
    """Keeps the keys of local ranks, and other keys of this agent's session, in etcd.

    Args:
        store: where to.
        keys: the key layout.
        session: whose lease they hang on.
        view: what etcd is known to hold.
        on_established: called when a rank's key stands under the session's lease.
        on_refused: called when an announcement is refused for good.

    Attributes:
        background: what it writes.
        closed: it writes nothing more.
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
        self._claims = Claims(keys, lambda: str(uuid.uuid4()))
        self._ranks: list[LocalRank] = []
        self._withdrawn: dict[str, LocalRank] = {}  # the last of each instance, which others may have outlived
        self._claiming: dict[LocalRank, asyncio.Task[None]] = {}
        self._others: dict[bytes, bytes] = {}
        self.background, self.closed = Background(), False
        self._rank_may_stand = False  # one that was withdrawn: its key may be another lease's

    @property
    def ranks(self) -> list[LocalRank]:
        """The rank processes that this agent serves at present."""
        return list(self._ranks)

    def guard_of(self, ref: RankRef) -> Guard | None:
        """What every registration of a local rank is compared with; None while the rank is not live."""
        return guard_of(ref, self._ranks, self._view)

    # --- ranks

    def announce(self, local: LocalRank) -> None:
        """Begin to keep a rank in etcd."""
        self._ranks.append(local)
        self._establish(local)

    def withdraw(self, local: LocalRank) -> None:
        """The engine process is gone: take its rank out of etcd at once."""
        if local in self._ranks:
            self._ranks.remove(local)
        self.background.start(self._remove(local, self._claiming.pop(local, None)))

    def drain(self, local: LocalRank) -> None:
        """Say in etcd that the rank takes no new rooms."""
        local.draining = True
        local.endpoint = replace(local.endpoint, state=DRAINING)
        self._establish(local)

    def resume(self, local: LocalRank) -> None:
        """Say in etcd that the rank takes rooms again."""
        local.draining = local.drained = False
        local.endpoint = replace(local.endpoint, state=SERVING)
        self._establish(local)

    def keep(self, key: bytes, value: bytes) -> None:
        """Keep any other key under the session's lease."""
        self._others[key] = value
        if self._session.lease_id:
            self.background.start(self._put_other(key, value))

    def touch(self, key: bytes) -> None:
        """Write such a key once more, for the sake of the revision."""
        value = self._others.get(key)
        if value is not None:
            self.keep(key, value)

    def drop(self, key: bytes, *, left: bool) -> None:
        """Stop keeping such a key, and delete it; ``left``: its process ended as it was asked to."""
        if key in self._others:
            self.background.start(self._drop(key, self._others.pop(key), left))

    def leave(self, key: bytes) -> None:
        """Say under such a key that its process ends as it was asked to."""
        self.background.start(self._say_left(key, self._others.pop(key)))

    def new_lease(self, lease_id: int) -> None:
        """The session has a new lease: everything must be written again under it."""
        for local in self._ranks:
            self._establish(local)
        for key, value in self._others.items():
            self.background.start(self._put_other(key, value))

    def history_lost(self) -> None:
        """etcd has another history: revisions known from before prove nothing, so every rank starts anew."""
        for local in self._ranks:
            local.renounce()
            self._establish(local)

    def instance_changed(self, id: str) -> None:
        """The view of an instance changed: write again what vanished from under a living rank, end what is empty."""
        if id not in self._view.instances:
            self._withdrawn.pop(id, None)
        self._end_later(id)
        for local in self._ranks:
            claiming = self._claiming.get(local)
            if local.instance != id or not local.key_epoch or (claiming and not claiming.done()):
                continue
            if has_vanished(local, self._view):
                self._establish(local)

    async def close(self) -> bool:
        """Stop writing, once what was begun is finished; whether all ranks that were withdrawn are gone from etcd."""
        for claiming in self._claiming.values():
            claiming.cancel()
        all_done, self.closed = await self.background.close(), True
        self._withdrawn.clear()
        return all_done and not self._rank_may_stand

    # --- the writing

    def _establish(self, local: LocalRank) -> None:
        if local in self._claiming:
            self._claiming[local].cancel()
        task = self._claiming[local] = asyncio.create_task(self._claim_until_done(local))
        task.add_done_callback(partial(self._note_done, local))

    def _note_done(self, local: LocalRank, task: asyncio.Task[None]) -> None:
        if self._claiming.get(local) is task:
            del self._claiming[local]

    async def _claim_until_done(self, local: LocalRank) -> None:
        """Claim the rank's key; wait for a predecessor's to vanish, for as long as its session may last."""
        patience, refusal = Patience(), ""
        while True:
            await self._session.lease()
            try:
                blocked = await self._claim(local)
                if blocked and blocked.lease and patience.wants_look(time.monotonic()):
                    patience.note(await self._store.lease_times(blocked.lease))
            except InstanceConflict as exc:
                self._refuse(local, exc)
                return
            except StoreError as exc:
                if isinstance(exc, StoreRejected) and str(exc) != refusal:  # once, not once an attempt
                    log.warning("etcd refuses to announce instance=%s rank=%s: %s", local.instance, local.name, exc)
                    refusal = str(exc)
                log.debug("rank %s/%s not announced yet: %s", local.instance, local.name, exc)
                patience.reset()
            else:
                if blocked is None:
                    self._on_established(local)
                    return
                if patience.has_ended(time.monotonic(), self._session.granted_ttl):
                    self._refuse(local, InstanceConflict(local.instance, blocked.obstacle))
                    return
            await asyncio.sleep(random.uniform(LOOK_AGAIN / 2, LOOK_AGAIN))

    def _refuse(self, local: LocalRank, error: InstanceConflict) -> None:
        log.error("announcement refused instance=%s rank=%s: %s", local.instance, local.name, error)
        if local in self._ranks:
            self._ranks.remove(local)
        self._end_later(local.instance)
        self._on_refused(local, error)

    async def _claim(self, local: LocalRank) -> Blocked | None:
        """One attempt. None: the key stands under our lease. Else what stands in the way.

        Raises:
            InstanceConflict: waiting would not help.
        """
        listing = await self._store.list(self._keys.prefill(local.instance))
        lease_id = await self._session.lease()
        step = self._claims.next_step(local, listing, lease_id)
        if isinstance(step, Blocked):
            return step
        blocked = await self._write(local, step, lease_id)
        if blocked is None:
            log.info(
                "rank announced instance=%s rank=%s incarnation=%s epoch=%d lease=%x",
                *(local.instance, local.name, local.incarnation, local.key_epoch, lease_id),
            )
        return blocked

    async def _write(self, local: LocalRank, step: Write, lease_id: int) -> Blocked | None:
        result = await self._store.txn(step.conditions, step.operations)
        return self._claims.finish(local, step, result.header.revision if result.succeeded else 0, lease_id)

    async def _remove(self, local: LocalRank, claiming: asyncio.Task[None] | None) -> None:
        """Delete the rank's key, and its instance's when it was the last."""
        if claiming and not claiming.done():
            claiming.cancel()
            await asyncio.wait([claiming])
            await self.background.until_done(lambda: self._recover(local))
        if local.key_epoch:
            await self.background.until_done(lambda: self._delete_rank(local))
            log.info("rank withdrawn instance=%s rank=%s epoch=%d", local.instance, local.name, local.key_epoch)
        else:
            self._rank_may_stand = True
        if local.incarnation:
            self._withdrawn[local.instance] = local
            await self.background.until_done(lambda: self._end_instance(local))
            if local.instance not in self._view.instances and self._view.revision >= local.key_epoch:
                self._withdrawn.pop(local.instance, None)
        self._end_later(local.instance)

    async def _delete_rank(self, local: LocalRank) -> None:
        deleted = await self._store.txn(*self._claims.withdraw(local))
        self._rank_may_stand = self._rank_may_stand or not deleted.succeeded

    async def _recover(self, local: LocalRank) -> None:
        """A claim was cut off: see whether it had written the key."""
        lease_id = self._session.lease_id
        listing = await self._store.read([self._keys.rank(local.instance, local.rank)])
        self._claims.recover(local, listing, lease_id)

    def _end_later(self, id: str) -> None:
        """End an instance that is left empty for longer than an agent whose session has ended needs to come back."""
        if self._is_left(id):
            asyncio.get_running_loop().call_later(2 * self._session.granted_ttl + 1, self._end_if_left, id)

    def _end_if_left(self, id: str) -> None:
        if self._is_left(id):
            self.background.start(self.background.until_done(partial(self._end_instance, self._withdrawn[id])))

    def _is_left(self, id: str) -> bool:
        """Whether an instance that we withdrew a rank of stands without any, and none is being announced here."""
        return id in self._withdrawn and is_empty(id, self._view) and all(one.instance != id for one in self._ranks)

    async def _end_instance(self, local: LocalRank) -> None:
        for transaction in self._claims.end_instance(local, await self._read(self._keys.prefill(local.instance))):
            await self._store.txn(*transaction)

    async def _read(self, key: bytes) -> KeyValue | None:
        found = (await self._store.read([key])).kvs
        return found[0] if found else None

    async def _put_other(self, key: bytes, value: bytes) -> None:
        async def put() -> None:
            lease_id = await self._session.lease()  # of now: the one before may have expired since
            if self._others.get(key) == value:
                await self._store.txn([], [Put(key, value, lease_id)])

        await self.background.until_done(put)

    async def _drop(self, key: bytes, value: bytes, left: bool) -> None:
        if left:
            await self._say_left(key, value)
        if key not in self._others:  # else somebody keeps it again
            ours = OnLease(key, self._session.lease_id)  # else another agent keeps it now
            await self.background.until_done(lambda: self._store.txn([ours], [Delete(key)]))

    async def _say_left(self, key: bytes, value: bytes) -> None:
        with suppress(StoreError):  # said once: who misses it takes this end for a death
            await self._store.txn([OnLease(key, self._session.lease_id)], [Put(key, leaving(value), None)])
