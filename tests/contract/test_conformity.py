"""etcd's model against etcd: random histories, and every answer, the content and all events are the same."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from etcd_pd.config import EtcdSettings
from etcd_pd.core.records import Compare, Condition, Delete, Event, OnLease, Operation, Put
from etcd_pd.errors import LeaseNotFound, StoreError
from etcd_pd.store.base import Store, Watch
from etcd_pd.store.etcd import EtcdStore
from tests.support.etcd_server import EtcdServer
from tests.support.memory_etcd import MemoryEtcd

pytestmark = [pytest.mark.asyncio, pytest.mark.integration, pytest.mark.every_etcd]

STEPS = 150
#: How long the last event may take, seconds.
PATIENCE = 10.0


@dataclass
class Pair:
    """The same history in both. Revisions and leases are other numbers there, so they are translated.

    Attributes:
        revisions: etcd's, by the model's.
        leases: etcd's and the model's, also of leases that are gone.
    """

    store: Store
    prefix: bytes
    draw: random.Random
    model: MemoryEtcd = field(default_factory=lambda: MemoryEtcd(lambda: 0.0))
    revisions: dict[int, int] = field(default_factory=lambda: {0: 0})
    leases: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)])

    def key(self) -> bytes:
        return self.prefix + self.draw.choice([b"1", b"2", b"3", b"a/1", b"a/2"])

    async def step(self) -> None:
        """Anything at all, in both."""
        luck = self.draw.random()
        if luck < 0.08:
            granted = await self.store.grant(600)
            self.leases.append((granted.lease_id, self.model.grant(600).lease_id))
        elif luck < 0.14 and len(self.leases) > 1:
            real, modelled = self.leases[self.draw.randrange(1, len(self.leases))]
            before = self.model.revision
            await self.store.revoke(real)
            if modelled in self.model.leases():
                self.model.revoke(modelled)
            if self.model.revision != before:
                self.revisions[self.model.revision] = (await self.store.list(self.prefix)).header.revision
        else:
            await self.transact()

    async def transact(self) -> None:
        draw, conditions = self.draw, [self.condition() for _ in range(self.draw.choice((0, 1, 1, 2, 3)))]
        operations = [self.operation() for _ in range(draw.choice((0, 1, 1, 2, 3, 4)))]
        real = await outcome(lambda: self.store.txn([c for c, _ in conditions], [o for o, _ in operations]))

        async def modelled() -> Any:
            return self.model.txn([c for _, c in conditions], [o for _, o in operations])

        expected = await outcome(modelled)
        assert real[0] == expected[0], (conditions, operations)
        if expected[0] is True and self.model.revision not in self.revisions:
            self.revisions[self.model.revision] = real[1]

    def condition(self) -> tuple[Condition, Condition]:
        luck, key = self.draw.random(), self.key()
        if luck < 0.2:
            real, modelled = self.draw.choice(self.leases)
            return OnLease(key, real), OnLease(key, modelled)
        created = self.draw.choice([0, *(kv.create_revision for kv in self.model.keys.values())])
        if luck < 0.35:
            under = self.prefix + b"a/"
            return Compare(under, self.revisions[created], prefix=True), Compare(under, created, prefix=True)
        return Compare(key, self.revisions[created]), Compare(key, created)

    def operation(self) -> tuple[Operation, Operation]:
        key, value = self.key(), b"%d" % self.draw.getrandbits(16)
        if self.draw.random() < 0.3:
            return Delete(key), Delete(key)
        if self.draw.random() < 0.2:
            return Put(key, value, None), Put(key, value, None)
        real, modelled = self.draw.choice(self.leases)
        return Put(key, value, real), Put(key, value, modelled)


async def outcome(act: Callable[[], Awaitable[Any]]) -> tuple[Any, int]:
    """Whether a transaction's compares held, or which error it was; and its revision."""
    try:
        result = await act()
    except LeaseNotFound:
        return LeaseNotFound, 0
    except StoreError as exc:
        return type(exc), 0
    return result.succeeded, result.header.revision


async def read(watch: Watch, count: int) -> list[Event]:
    """So many events of a watch, and those that come in the same messages."""
    events: list[Event] = []
    async for response in watch:
        events += response.events
        if len(events) >= count:
            break
    return events


@pytest.mark.parametrize("seed", range(8))
async def test_the_model_says_what_etcd_says_when_anything_happens(etcd: EtcdServer, root: str, seed: int) -> None:
    async with EtcdStore(EtcdSettings(endpoints=(etcd.endpoint,))) as store:
        pair = Pair(store, f"{root}/".encode(), random.Random(seed))
        start = (await store.list(pair.prefix)).header.revision + 1
        watch = await store.watch(pair.prefix, start)
        for _ in range(STEPS):
            await pair.step()
        leases = {modelled: real for real, modelled in pair.leases}
        expected = [
            kv._replace(
                create_revision=pair.revisions[kv.create_revision],
                mod_revision=pair.revisions[kv.mod_revision],
                lease=leases[kv.lease],
            )
            for kv in sorted(pair.model.keys.values())
        ]
        assert (await store.list(pair.prefix)).kvs == expected
        events = await asyncio.wait_for(read(watch, len(pair.model.history)), PATIENCE)
        seen = [(event.key, event.mod_revision, event.kv is None) for event in events]
        assert seen == [
            (event.key, pair.revisions[event.mod_revision], event.kv is None) for event in pair.model.history
        ]
        await watch.close()
        for real, modelled in pair.leases[1:]:
            if modelled in pair.model.leases():
                await store.revoke(real)
