"""A cell's agents, spread over etcd's members: also after one was away, and without a moment of being stale."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from etcd_pd.agent.watcher import Watcher
from etcd_pd.config import EtcdSettings
from etcd_pd.core.records import Put
from etcd_pd.errors import StoreError
from etcd_pd.store.etcd import EtcdStore
from tests.support.etcd_server import EtcdCluster, EtcdServer

pytestmark = [pytest.mark.integration, pytest.mark.every_etcd, pytest.mark.asyncio]

#: How long agents may take to be where they should be, seconds; they ask four times a second here.
PATIENCE = 60.0


class Agents:
    """What is left of some agents: stores that settle, and watches."""

    def __init__(self, root: str, stores: Sequence[EtcdStore]) -> None:
        self.root, self.stores = root, stores
        self.states: list[list[str]] = [[] for _ in stores]
        self.revisions = [0 for _ in stores]
        self.watchers = [self._watcher(number) for number in range(len(stores))]

    def _watcher(self, number: int) -> Watcher:
        def see(found: object) -> None:
            self.revisions[number] = found.revision  # type: ignore[attr-defined]

        return Watcher(
            self.stores[number],
            f"{self.root}/".encode(),
            2.0,
            on_snapshot=see,
            on_changes=see,
            on_state=lambda state: self.states[number].append(state.value),
        )

    def key(self, number: int) -> bytes:
        return f"{self.root}/agents/{number}".encode()

    async def settle(self, number: int) -> None:
        """As the agent does it, but more often."""
        while True:
            try:
                await self.stores[number].settle(f"{self.root}/agents/".encode(), self.key(number))
            except StoreError:
                pass
            await asyncio.sleep(0.25)

    def loads(self) -> dict[str, int]:
        """How many use each endpoint."""
        return dict(Counter(store.endpoint for store in self.stores))


@asynccontextmanager
async def running(root: str, count: int, settings: EtcdSettings) -> AsyncIterator[Agents]:
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(EtcdStore(settings)) for _ in range(count)]
        agents = Agents(root, stores)
        for number, store in enumerate(stores):
            await store.txn([], [Put(agents.key(number), b"{}", 0)])
        tasks = [asyncio.create_task(agents.settle(number)) for number in range(count)]
        tasks += [asyncio.create_task(watcher.run()) for watcher in agents.watchers]
        try:
            yield agents
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def until(holds: Callable[[], bool], what: str) -> None:
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < PATIENCE, f"not within {PATIENCE} s: {what}"
        await asyncio.sleep(0.05)
    print(f"{what}: {time.monotonic() - began:.2f} s")


@pytest.mark.timeout(200)
async def test_six_agents_are_two_at_each_member_when_one_came_back(etcd_cluster: EtcdCluster, root: str) -> None:
    settings = EtcdSettings(endpoints=tuple(etcd_cluster.endpoints))
    async with running(root, 6, settings) as agents:
        even = dict.fromkeys(etcd_cluster.endpoints, 2)
        await until(lambda: agents.loads() == even, "spread at first")
        await until(lambda: all(states == ["synced"] for states in agents.states), "all synced")
        gone = etcd_cluster.followers()[0]
        await asyncio.to_thread(gone.kill)
        await until(lambda: gone.endpoint not in agents.loads(), "all elsewhere")
        await until(lambda: all(watcher.state.value == "synced" for watcher in agents.watchers), "all synced again")
        states = [list(found) for found in agents.states]
        await asyncio.to_thread(gone.start)
        await until(lambda: agents.loads() == even, "spread again")
        await agents.stores[0].txn([], [Put(f"{root}/last".encode(), b"", 0)])
        revision = etcd_cluster.leader().ctl.revision()
        await until(lambda: agents.revisions == [revision] * 6, "all have seen the last write")
        assert agents.states == states, "nothing was stale meanwhile"


@pytest.mark.timeout(120)
async def test_all_members_are_used_when_one_endpoint_is_given(etcd_cluster: EtcdCluster, root: str) -> None:
    settings = EtcdSettings(endpoints=(etcd_cluster.endpoints[0],))
    async with running(root, 3, settings) as agents:
        await until(lambda: sorted(agents.loads()) == sorted(etcd_cluster.endpoints), "one at each member")


@pytest.mark.timeout(120)
async def test_the_endpoints_given_alone_are_used_when_spreading_is_off(etcd_cluster: EtcdCluster, root: str) -> None:
    settings = EtcdSettings(endpoints=(etcd_cluster.endpoints[0],), spread=False)
    async with running(root, 3, settings) as agents:
        await until(lambda: all(states == ["synced"] for states in agents.states), "all synced")
        for store in agents.stores:
            await store.settle(f"{root}/agents/".encode(), agents.key(0))
        assert agents.loads() == {etcd_cluster.endpoints[0]: 3}


@pytest.mark.timeout(120)
async def test_another_etcd_is_not_used_when_a_member_advertises_its_address(
    _docker: None, etcd: EtcdServer, root: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As the default, http://localhost:2379, is wherever etcd is not."""
    with EtcdCluster() as cluster:
        node = cluster.nodes[2]
        node._args = (*node._args, f"--advertise-client-urls={etcd.endpoint}")
        await asyncio.to_thread(cluster.upgrade, node, "")
        async with running(root, 3, EtcdSettings(endpoints=(cluster.endpoints[0],))) as agents:
            await until(lambda: set(agents.loads()) == set(cluster.endpoints[:2]), "at those that are members")
            await until(lambda: f"{etcd.endpoint} is another etcd than this cell's" in caplog.text, "it was noticed")
            assert etcd.endpoint not in agents.loads()
            assert caplog.text.count("is another etcd") <= 3, "once an agent, not once a look"
