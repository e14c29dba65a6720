"""What the dashboard shows, kept up to date: one feed for all who look."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import json
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..errors import StoreError
from ..store.deadline import within
from .board import Board
from .changes import Change, follow
from .node_agents import NodeAgents
from .verdict import WRONG, Problem, describe_counts
from .views import describe_cell

if TYPE_CHECKING:
    from ..store.admin import EtcdAdmin
    from .look import CellSettings

#: How often numbers are brought up to date, and etcd itself is asked, seconds.
TICK_SECONDS, ASK_SECONDS = 0.5, 2.0
#: Changes that are kept for those who come later, of rooms and of all else; who falls behind by more misses some.
KEPT = 200
#: How long a browser waits before it connects again, milliseconds.
RETRY_MILLISECONDS = 1000


class Feed:
    """Follows a cell, and sends its changes to everybody who listens.

    Args:
        settings: which cell.
        sockets: of the agents here, which remember who is gone and say how they are.
    """

    def __init__(self, settings: CellSettings, sockets: Sequence[str]) -> None:
        self._settings, self._agents = settings, NodeAgents(sockets, settings.root)
        self._board = Board()
        self._numbers = itertools.count(1)
        self._of_rooms: deque[tuple[int, float, Change]] = deque(maxlen=KEPT)
        self._others: deque[tuple[int, float, Change]] = deque(maxlen=KEPT)
        self._found: dict[str, Any] = {
            "etcd": {},
            "problems": None,
            "counts": {},
            "memory": None,
            "agents": [],
            "decode": [],
        }
        self._answered_at = time.monotonic()
        self._synced_at = time.monotonic()
        self._state = "{}"
        self._tick = asyncio.Condition()

    async def run(self) -> None:
        """Follow until cancelled.

        Raises:
            StoreError: etcd did not answer at the start; later it is waited for.
        """
        from ..store.admin import EtcdAdmin

        async with (
            follow(self._settings.etcd, self._settings.root) as queue,
            EtcdAdmin(self._settings.etcd) as store,
        ):
            self._board.apply(await queue.get(), time.monotonic(), counts=False)
            asking = asyncio.create_task(self._ask(store))
            try:
                while True:
                    await self._listen(queue)
                    await self._publish()
            finally:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)

    async def stream(self, writer: asyncio.StreamWriter) -> None:
        """Write server-sent events to one listener until it has gone."""
        writer.write(f"retry: {RETRY_MILLISECONDS}\n\n".encode())
        seen = 0
        while True:
            async with self._tick:
                kept = heapq.merge(self._of_rooms, self._others)
                fresh = [(number, at, change) for number, at, change in kept if number > seen]
                state = self._state
                if fresh:
                    seen = fresh[-1][0]
            shown = [{"number": number, "at": at, **change.as_json()} for number, at, change in fresh]
            writer.write(f'data: {{"state": {state}, "changes": {json.dumps(shown)}}}\n\n'.encode())
            await writer.drain()
            async with self._tick:
                await self._tick.wait()

    async def _listen(self, queue: asyncio.Queue[list[Change]]) -> None:
        """Take in what happens until the next tick."""
        ends = time.monotonic() + TICK_SECONDS
        while (left := ends - time.monotonic()) > 0:
            with suppress(asyncio.TimeoutError):
                changes = await within(queue.get(), left)
                self._board.apply(changes, time.monotonic())
                for change in changes:
                    kept = self._of_rooms if change.kind == "room" and change.what != "failed" else self._others
                    kept.append((next(self._numbers), time.time(), change))  # wall time is for the reader alone

    async def _publish(self) -> None:
        now = time.monotonic()
        ranks = self._board.rows(now)
        if self._board.watch == "synced":
            self._synced_at = now
        self._state = json.dumps(
            {
                "root": self._settings.root,
                "watch": self._board.watch,
                "age_seconds": now - self._synced_at,
                "problems": self._found["problems"],
                "there": describe_counts(self._found["counts"]),
                "memory": _about(self._found["memory"]),
                "etcd": self._found["etcd"],
                "leases": _leases(self._found),
                "agents": self._agents.rows(now),
                "latencies": self._agents.latencies(),
                "ranks": ranks,
            }
        )
        async with self._tick:
            self._tick.notify_all()

    async def _ask(self, store: EtcdAdmin) -> None:
        """What no watch shows: what is wrong, members, alarms, leases, and how the agents here are."""
        while True:
            memory = await self._agents.ask(time.monotonic())
            silent = self._agents.problems(time.monotonic(), memory)
            try:
                self._found = await describe_cell(store, self._settings.etcd, self._settings.root, memory, rooms=False)
                self._answered_at, problems = time.monotonic(), self._found["problems"]
            except StoreError as exc:
                since = time.monotonic() - self._answered_at
                problems = [Problem(WRONG, f"etcd does not answer: {exc}", "EtcdPdQuorumLost", since)._asdict()]
            problems = [*problems, *(one._asdict() for one in silent)]
            self._found = {**self._found, "problems": sorted(problems, key=lambda one: one["severity"] != WRONG)}
            await asyncio.sleep(ASK_SECONDS)


def _about(memory: dict[str, Any] | None) -> dict[str, Any] | None:
    """Who remembers who is gone, and for how long."""
    return memory and {name: memory[name] for name in ("agent", "seconds")}


def _leases(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The session leases of agents and decodes."""
    return [
        {name: entry[name] for name in ("id", "seconds_left", "ttl_seconds")} | {"kind": kind}
        for kind, entries in (("agent", found["agents"]), ("decode", found["decode"]))
        for entry in entries
    ]
