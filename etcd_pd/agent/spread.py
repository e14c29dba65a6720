"""The agents of a cell, spread evenly over etcd's members: also again after a rolling restart of these."""

from __future__ import annotations

import asyncio
import logging
import random

from ..core.keys import Keys
from ..errors import StoreError
from ..store.base import Store

log = logging.getLogger(__name__)

#: How often an agent asks whether it is where it should be, seconds; jittered. A member that returns has its agents
#: again after as long as this at most, and the time of its first answer.
SETTLE_SECONDS = 20.0


class Spread:
    """Goes to this agent's member whenever it is elsewhere.

    Args:
        store: etcd.
        keys: the key layout.
        agent_id: this agent's name.
    """

    def __init__(self, store: Store, keys: Keys, agent_id: str) -> None:
        self._store, self._prefix, self._key = store, keys.agent(""), keys.agent(agent_id)
        self._draw = random.Random(agent_id)

    async def run(self, reached: asyncio.Event) -> None:
        """Look once etcd was reached, and then now and then, until cancelled."""
        await reached.wait()
        while True:
            await asyncio.sleep(self._draw.uniform(SETTLE_SECONDS / 2, SETTLE_SECONDS))
            try:
                await self._store.settle(self._prefix, self._key)
            except StoreError as exc:
                log.debug("cannot ask for etcd's members: %s", exc)
