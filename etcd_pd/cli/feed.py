"""What the dashboard shows, kept up to date: one feed for all who look."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..errors import StoreError
from ..store.deadline import within
from .board import Board
from .changes import Change, follow
from .etcd_view import describe_etcd
from .views import list_instances

if TYPE_CHECKING:
    from ..store.admin import EtcdAdmin
    from .look import CellSettings

#: How often numbers are brought up to date, and etcd itself is asked, seconds.
TICK_SECONDS, ASK_SECONDS = 0.5, 2.0
#: Changes that are kept for those who come later; who falls behind by more misses some.
KEPT = 200
#: How long a browser waits before it connects again, milliseconds.
RETRY_MILLISECONDS = 1000


class Feed:
    """Follows a cell, and sends its changes to everybody who listens.

    Args:
        settings: which cell.
    """

    def __init__(self, settings: CellSettings) -> None:
        self._settings = settings
        self._board = Board()
        self._numbers = itertools.count(1)
        self._happened: deque[tuple[int, float, Change]] = deque(maxlen=KEPT)
        self._etcd: dict[str, Any] = {}
        self._leases: list[dict[str, Any]] = []
        self._problem = ""
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
                fresh = [(number, at, change) for number, at, change in self._happened if number > seen]
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
                # wall time is for the reader alone
                self._happened.extend((next(self._numbers), time.time(), change) for change in changes)

    async def _publish(self) -> None:
        ranks = self._board.rows(time.monotonic())
        self._state = json.dumps(
            {
                "root": self._settings.root,
                "watch": self._board.watch,
                "problem": self._problem,
                "etcd": self._etcd,
                "leases": self._leases,
                "ranks": ranks,
            }
        )
        async with self._tick:
            self._tick.notify_all()

    async def _ask(self, store: EtcdAdmin) -> None:
        """What no watch shows: members, alarms, and how long leases have left."""
        while True:
            try:
                self._etcd, cell = await asyncio.gather(
                    describe_etcd(store, self._settings.etcd), list_instances(store, self._settings.root)
                )
                self._leases = [
                    {name: entry[name] for name in ("id", "seconds_left", "ttl_seconds")} | {"kind": kind}
                    for kind, entries in (("agent", cell["agents"]), ("decode", cell["decode"]))
                    for entry in entries
                ]
                self._problem = ""
            except StoreError as exc:
                self._problem = str(exc)
            await asyncio.sleep(ASK_SECONDS)
