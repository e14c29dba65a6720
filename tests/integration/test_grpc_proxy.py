"""A watch through ``etcd grpc-proxy`` that joins one which stands: the proxy answers it in etcd's place."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.growth.rig import proxy
from etcd_pd.config import EtcdSettings
from etcd_pd.core.records import Put
from etcd_pd.core.watch import Changes, Resume, Snapshot, WatchMachine, WatchState
from etcd_pd.reference.local.embedded import EmbeddedEtcd
from etcd_pd.store.etcd import EtcdStore

pytestmark = pytest.mark.integration


def store(endpoint: str) -> EtcdStore:
    return EtcdStore(EtcdSettings(endpoints=(endpoint,)))


def test_a_watch_goes_on_when_a_proxy_lets_it_join_another_and_names_no_cluster() -> None:
    async def follow(direct: str, behind: str) -> None:
        async with store(direct) as writer, store(behind) as one, store(behind) as other:
            first = (await writer.txn([], [Put(b"/cell/a", b"1", 0)])).header.revision
            standing = await one.watch(b"/cell/", first)
            assert (await anext(aiter(standing))).created
            for _ in range(10):  # one that begins near the cell's last event may get a stream of its own
                await writer.txn([], [Put(b"/elsewhere", b"1", 0)])
                machine = WatchMachine()
                assert isinstance(machine.listed(await other.list(b"/cell/")), Snapshot)
                step = machine.next()
                assert isinstance(step, Resume)
                joined = await other.watch(b"/cell/", step.start_revision)
                responses = aiter(joined)
                created = await anext(responses)
                if created.header.cluster_id == 0:
                    break
                await joined.close()
            assert created.created and created.header.cluster_id == 0, "the proxy has answered"
            assert machine.received(created) is None
            assert machine.state is WatchState.SYNCED

            written = (await writer.txn([], [Put(b"/cell/a", b"2", 0)])).header.revision
            changes = machine.received(await anext(responses))
            assert isinstance(changes, Changes) and changes.revision == written
            for watch in (standing, joined):
                await watch.close()

    with EmbeddedEtcd.start() as etcd, proxy(etcd.endpoint) as (behind, _):
        asyncio.run(asyncio.wait_for(follow(etcd.endpoint, behind), 30.0))
