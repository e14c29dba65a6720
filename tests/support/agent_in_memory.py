"""A whole agent on an in-memory store, beside the test on one event loop; engines reach it over its real socket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import etcd_pd
from etcd_pd.agent.agent import Agent
from etcd_pd.config import AgentSettings
from etcd_pd.core.keys import Keys
from etcd_pd.core.records import Listing
from etcd_pd.errors import StoreUnavailable
from etcd_pd.wire.values import RoomValue
from tests.support.events import next_event
from tests.support.memory_etcd import MemoryEtcd
from tests.support.memory_store import MemoryStore

T = TypeVar("T")

#: How long a test waits for what should happen within milliseconds, seconds.
PATIENCE = 10.0


class InMemory:
    """An agent, its store, and clients of it.

    Attributes:
        agent: the agent.
        store: its store.
        keys: the cell's keys.
        stop: set it to end the agent.
    """

    def __init__(self, directory: Path, store: MemoryStore | None = None, **settings: Any) -> None:
        self.settings = AgentSettings(
            socket_path=str(directory / "agent.sock"), root="/cell", **{"agent_id": "agent", **settings}
        )
        self.store = store or MemoryStore(MemoryEtcd(time.monotonic))
        self.agent = Agent(self.settings, self.store)
        self.keys = Keys("/cell")
        self.stop = asyncio.Event()
        self.clients: list[etcd_pd.Client] = []

    def client(self, **options: Any) -> etcd_pd.Client:
        """A client of the agent."""
        client = etcd_pd.connect(self.settings.socket_path, **options)
        self.clients.append(client)
        return client

    async def event(self, client: etcd_pd.Client, kind: type[T]) -> T:
        """The next event of a kind; others before it are dropped, those after it are kept."""
        return await until(lambda: next_event(client, kind), f"a {kind.__name__}")

    def announce(self, client: etcd_pd.Client, dp_rank: int = 0, instance: str = "p", **changes: Any) -> None:
        """Say what a rank says."""
        given: dict[str, Any] = {
            "rank": etcd_pd.Rank(dp_rank),
            "topology": etcd_pd.Topology(dp=4),
            "launch_id": "launch",
            "addresses": ["host:1"],
            "ip": "10.0.0.1",
            "port": 5000 + dp_rank,
        }
        client.prefill.announce(instance, **(given | changes))

    async def prefill(self, dp_rank: int = 0, instance: str = "p", **changes: Any) -> etcd_pd.Client:
        """A client whose rank stands."""
        client = self.client()
        self.announce(client, dp_rank, instance, **changes)
        await self.event(client, etcd_pd.Announced)
        return client

    async def registered(self, client: etcd_pd.Client, room: int) -> etcd_pd.Registered:
        """Register a room."""
        client.prefill.register(room)
        return await self.event(client, etcd_pd.Registered)

    def end(self, client: etcd_pd.Client) -> None:
        """A process ends."""
        self.clients.remove(client)
        client.close()

    async def linger(self, client: etcd_pd.Client) -> None:
        """A process is gone, and its rank stays for a while."""
        self.clients.remove(client)
        client.detach()
        await until(lambda: self.agent.ranks.lingering, "its rank lingers")

    def fail_reads(self, *of: bytes) -> list[bytes]:
        """Reads of any of these keys fail for as long as it is in the list."""
        real, failing = self.store.read, list(of)

        async def read(keys: Sequence[bytes]) -> Listing:
            if not set(failing).isdisjoint(keys):
                raise StoreUnavailable("read", "no leader")
            return await real(keys)

        self.store.read = read  # type: ignore[method-assign]
        return failing

    def room(self, room: int, instance: str = "p") -> RoomValue | None:
        """What etcd holds of a room."""
        kv = self.store.etcd.keys.get(self.keys.room(instance, room))
        return RoomValue.from_json(kv.value) if kv else None


async def until(condition: Callable[[], T | None], what: str) -> T:
    """The first true value of ``condition()``, while the event loop goes on."""
    end = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {PATIENCE} s: {what}"
        await asyncio.sleep(0.001)
    return value


@asynccontextmanager
async def running(directory: Path, store: MemoryStore | None = None, **settings: Any) -> AsyncIterator[InMemory]:
    """A running agent; it and its clients end with the block."""
    world = InMemory(directory, store, **settings)
    serving = asyncio.create_task(world.agent.run(world.stop))
    try:
        await until(lambda: serving.done() or world.agent.watcher.synced.is_set(), "the agent is synced")
        if serving.done():
            await serving  # it could not start
        yield world
    finally:
        for client in world.clients:
            client.close()
        world.stop.set()
        await serving
        await world.store.close()
