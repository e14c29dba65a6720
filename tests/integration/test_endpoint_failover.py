"""The store turns from an endpoint that fails it: once, whoever notices; also where it has only lost its leader."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from etcd_pd.config import EtcdSettings
from etcd_pd.core.records import Put
from etcd_pd.errors import StoreUnavailable
from etcd_pd.store.etcd import EtcdStore
from tests.support.etcd_server import EtcdCluster, EtcdServer

pytestmark = [pytest.mark.integration, pytest.mark.every_etcd]


@pytest.fixture
def silent() -> Iterator[str]:
    """An endpoint that takes connections and never says a word, as a frozen process does."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


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
