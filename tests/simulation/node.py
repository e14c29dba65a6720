"""An agent, unmodified, that may be killed, ended and started again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from dataclasses import replace
from typing import Any

from etcd_pd.agent.agent import Agent
from etcd_pd.config import AgentSettings
from etcd_pd.core.keys import Keys
from etcd_pd.wire.values import Rank

from .etcd import Etcd, Store
from .loop import PROCESS, Sleeper

ROOT = "/cell"
KEYS = Keys(ROOT)
#: TTL of the agents' sessions, seconds.
TTL = 5


class Node:
    """One node's agent; it starts at once.

    Args:
        name: of the agent, and of its socket.
        etcd: the model.
        prefill_only: whether it watches no rooms.

    Attributes:
        runs: whether there is an agent at present.
    """

    def __init__(self, name: str, etcd: Etcd, prefill_only: bool) -> None:
        self.name, self.path = name, f"/sim/{name}"
        self._settings = AgentSettings(
            socket_path=self.path,
            root=ROOT,
            agent_id=name,
            session_ttl_seconds=TTL,
            prefill_only=prefill_only,
            metrics_listen="",
        )
        self._etcd = etcd
        self.start()

    def start(self) -> None:
        """Start an agent on the node's socket."""
        self._process = Sleeper()
        self._context = copy_context()
        self._context.run(PROCESS.set, self._process)
        self._context.run(self._start)
        self.runs = True

    def _start(self) -> None:
        self.store, self._stop = Store(self._etcd), asyncio.Event()
        self.agent = Agent(self._settings, self.store)
        self._running = asyncio.get_running_loop().create_task(self.agent.run(self._stop))

    def limit_queue(self, rooms: int) -> None:
        """How many rooms may wait at the agents that are started from now on."""
        self._settings = replace(self._settings, queue_max_rooms=rooms)

    def sleep(self, seconds: float) -> None:
        """As SIGSTOP does, and SIGCONT after it: nothing of it runs meanwhile."""
        self._process.until = max(self._process.until, asyncio.get_running_loop().time() + seconds)

    async def _wake(self) -> None:
        await asyncio.sleep(self._process.until - asyncio.get_running_loop().time())

    async def kill(self) -> None:
        """As SIGKILL does, when it is awake."""
        await self._wake()
        self.runs = False
        self.store.die()
        server: Any = self.agent.server
        server.die()
        self._running.cancel()
        with suppress(asyncio.CancelledError):
            await self._running

    async def terminate(self) -> None:
        """As SIGTERM does, when it is awake."""
        await self._wake()
        self.runs = False
        self._stop.set()
        await self._running
        self.store.leave()

    def cut_connection(self, luck: float, note: Callable[[Rank], None]) -> None:
        """Have the agent close one of a decode or of a rank that lingers, when it is awake; note which rank's."""
        if self.runs:
            asyncio.get_running_loop().call_soon(self._cut, luck, note, context=self._context)

    def _cut(self, luck: float, note: Callable[[Rank], None]) -> None:
        connections = [one for one in self.agent.server.connections if not one.rank or one.rank.linger]
        if connections:
            chosen = connections[int(luck * len(connections))]
            if chosen.rank:
                note(chosen.rank.rank)
            chosen.close("cut")

    def agrees(self) -> bool:
        """Whether its view has the rooms that etcd has; one that watches none agrees."""
        rooms = {key for key in self._etcd.keys if key.startswith(KEYS.rooms())}
        return self._settings.prefill_only or set(self.agent.view.rooms) == rooms

    def knows_all(self) -> bool:
        """Whether it knows of everybody in etcd, and of nobody else."""
        others = {key for key in self._etcd.keys if not key.startswith(KEYS.rooms())}
        return set(self.agent.roster.present) == others

    def missed(self) -> dict[bytes, bool]:
        """Who is gone as it remembers it, and whether they left."""
        return {one.key: one.left for one in self.agent.roster.gone(time.monotonic())}
