"""The store turns from an endpoint that fails it: once, whoever notices; also to another address of the same one."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator

import pytest

from etcd_pd.agent.watcher import Watcher
from etcd_pd.config import EtcdSettings
from etcd_pd.core.records import Put
from etcd_pd.errors import StoreUnavailable
from etcd_pd.store.etcd import EtcdStore
from etcd_pd.store.names import Names
from tests.support.etcd_server import EtcdCluster, EtcdServer
from tests.support.proxy import Proxies

pytestmark = [pytest.mark.integration, pytest.mark.every_etcd]


@pytest.mark.asyncio
async def test_all_that_fail_on_one_endpoint_turn_from_it_once(silent: str, etcd: EtcdServer, root: str) -> None:
    settings = EtcdSettings(endpoints=(silent, etcd.endpoint, silent), request_timeout_seconds=0.5)
    async with EtcdStore(settings) as store:
        watch = await store.watch(root.encode(), 1)

        async def frozen_watch() -> None:
            await asyncio.sleep(0.6)  # its silence is noticed a little after the others fail
            await watch.close()
            async for _ in watch:
                pass

        async def keep_alive() -> None:
            await asyncio.sleep(0.05)
            await store.keep_alive(1)

        calls = (store.txn([], [Put(root.encode(), b"v", 0)]), keep_alive(), frozen_watch())
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes), outcomes
        assert store.endpoint == etcd.endpoint


@pytest.mark.asyncio
async def test_a_watch_ends_on_a_member_that_has_lost_its_leader(etcd_cluster: EtcdCluster, root: str) -> None:
    leader = etcd_cluster.leader()
    async with EtcdStore(EtcdSettings(endpoints=(leader.endpoint,))) as store:
        watch = await store.watch(root.encode(), 1)
        responses = aiter(watch)
        assert (await anext(responses)).created
        etcd_cluster.partition(leader)

        async def ask_for_signs_of_life() -> None:
            while True:
                watch.request_progress()  # such a member would go on answering these
                await anext(responses)
                await asyncio.sleep(0.1)

        with pytest.raises(StoreUnavailable, match="no leader"):
            await asyncio.wait_for(ask_for_signs_of_life(), 20.0)


@pytest.fixture
def proxies() -> Iterator[Proxies]:
    with Proxies() as proxies:
        yield proxies


class Followed:
    """A watch that is followed as the agent follows it: the keys that it has seen, and its states."""

    def __init__(self, store: EtcdStore, prefix: bytes) -> None:
        self.keys: set[bytes] = set()
        self.states: list[str] = []
        self.watcher = Watcher(
            store,
            prefix,
            2.0,
            on_snapshot=lambda snapshot: self.keys.update(kv.key for kv in snapshot.kvs),
            on_changes=lambda changes: self.keys.update(event.key for event in changes.events),
            on_state=lambda state: self.states.append(state.value),
        )

    async def see(self, key: bytes, since: float = 0.0) -> None:
        """Wait until a key is seen, and print how long that took."""
        while key not in self.keys:
            await asyncio.sleep(0.01)
        if since:
            print(f"{key!r} seen after {time.monotonic() - since:.2f} s")


async def write(store: EtcdStore, key: bytes) -> None:
    """Write a key, however often that must be tried."""
    while True:
        try:
            await store.txn([], [Put(key, b"", 0)])
            return
        except StoreUnavailable:
            await asyncio.sleep(0.05)


@pytest.mark.asyncio
@pytest.mark.timeout(90)
async def test_calls_and_watch_go_on_when_a_name_leads_to_another_address(
    etcd: EtcdServer, root: str, proxies: Proxies
) -> None:
    """As a pod of etcd's that comes back under its name with another address."""
    port = int(etcd.endpoint.rpartition(":")[2])
    first = proxies.add(etcd.endpoint, "127.0.0.3", port)
    addresses = ["127.0.0.3"]

    async def resolve(host: str) -> list[str]:
        assert host == "etcd.test"
        return addresses

    names = Names(resolve)
    async with EtcdStore(EtcdSettings(endpoints=(f"http://etcd.test:{port}",)), names) as store:
        followed = Followed(store, root.encode())
        following = asyncio.create_task(followed.watcher.run())
        await write(store, f"{root}/before".encode())
        await asyncio.wait_for(followed.see(f"{root}/before".encode()), 20)
        addresses[:] = ["127.0.0.1"]
        await asyncio.to_thread(first.vanish)
        since = time.monotonic()
        await asyncio.wait_for(write(store, f"{root}/after".encode()), 30)
        await asyncio.wait_for(followed.see(f"{root}/after".encode(), since), 30)
        assert names.lookups < 10
        following.cancel()
        await asyncio.wait([following])


@pytest.mark.asyncio
@pytest.mark.timeout(90)
async def test_calls_and_watch_go_on_when_a_member_freezes_behind_the_only_address(
    etcd_cluster: EtcdCluster, root: str, proxies: Proxies
) -> None:
    """As a Service or a balancer: new connections lead elsewhere, those that stand stay with the frozen member."""
    frozen = etcd_cluster.followers()[0]
    balancer = proxies.add(frozen.endpoint)
    async with EtcdStore(EtcdSettings(endpoints=(balancer.endpoint,))) as store:
        followed = Followed(store, root.encode())
        following = asyncio.create_task(followed.watcher.run())
        await write(store, f"{root}/before".encode())
        await asyncio.wait_for(followed.see(f"{root}/before".encode()), 20)
        await asyncio.to_thread(frozen.pause)
        balancer.target = etcd_cluster.leader(etcd_cluster.others(frozen)).endpoint
        since = time.monotonic()
        await asyncio.wait_for(write(store, f"{root}/after".encode()), 30)
        await asyncio.wait_for(followed.see(f"{root}/after".encode(), since), 30)
        # whether it is stale at all depends on who notices first: a call that times out moves the watch without a gap
        assert followed.states in (["synced"], ["synced", "stale", "synced"])
        following.cancel()
        await asyncio.wait([following])


@pytest.mark.asyncio
async def test_a_host_with_several_addresses_is_tried_at_each_when_one_is_silent(etcd: EtcdServer, root: str) -> None:
    """As the name of a headless Service, of which one pod is frozen."""
    port = int(etcd.endpoint.rpartition(":")[2])
    with socket.socket() as listener:
        listener.bind(("127.0.0.4", port))
        listener.listen()

        async def resolve(host: str) -> list[str]:
            return ["127.0.0.4", "127.0.0.1"]

        settings = EtcdSettings(endpoints=(f"http://etcd.test:{port}",), request_timeout_seconds=0.5)
        async with EtcdStore(settings, Names(resolve)) as store:
            assert (await store.read([root.encode()])).kvs == []
