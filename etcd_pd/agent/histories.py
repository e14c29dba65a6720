"""Engines that know more of etcd than it has: it was restored while no agent looked, and what they hold is void."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from ..core.records import Header
from ..errors import StoreError
from ..store.base import Store
from .connection import EngineConnection

log = logging.getLogger(__name__)

#: Pause before etcd is asked again after it did not answer, seconds; drawn at random below it.
RETRY_PAUSE = 0.5


class Histories:
    """Compares what engines have seen of etcd with what it is now.

    Args:
        store: etcd.
        key: any key: a read's header is what counts.
        on_lost: called for an engine that has seen another history.
    """

    def __init__(self, store: Store, key: bytes, on_lost: Callable[[EngineConnection], None]) -> None:
        self._store, self._key, self._on_lost = store, key, on_lost
        self._tasks: set[asyncio.Task[None]] = set()

    def check(self, engine: EngineConnection, seen: Header) -> None:
        """An engine says which etcd it has seen, and how far; ``on_lost`` follows where this one is not that."""
        task = asyncio.create_task(self._check(engine, seen))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def lose(self, engine: EngineConnection) -> None:
        """An engine has seen another history, if it was not notified of that yet."""
        if engine.seen is not None:
            engine.seen = None
            self._on_lost(engine)

    def close(self) -> None:
        """Ask no more."""
        for task in self._tasks:
            task.cancel()

    async def _check(self, engine: EngineConnection, seen: Header) -> None:
        while not engine.closed:
            try:
                header = (await self._store.read([self._key])).header
            except StoreError as exc:
                log.debug("cannot compare histories yet: %s", exc)
                await asyncio.sleep(random.uniform(RETRY_PAUSE / 2, RETRY_PAUSE))
                continue
            if engine.seen is not None and not header.continues(seen) and not engine.closed:
                log.error(
                    "etcd has another history than %r saw: revision=%d cluster=%x, now revision=%d cluster=%x",
                    *(engine, seen.revision, seen.cluster_id, header.revision, header.cluster_id),
                )
                self.lose(engine)
            return
