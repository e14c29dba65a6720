"""Before a wait is given up because of an instance, etcd itself is asked: the view may be a moment behind."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ..core.keys import PrefillKey, RankKey
from ..core.notices import Wait
from ..core.view import View
from ..errors import StoreError
from ..store.base import Store
from ..wire.values import ENDED, InstanceInfo
from .pushes import Pushes

log = logging.getLogger(__name__)

#: How soon a wait is looked at again of which etcd knows the instance and the view does not yet, seconds.
LOOK_AGAIN = 1.0


class Doubts:
    """Waits that may have to end, and what etcd says of their instances: one list at a time for all of them.

    Args:
        store: etcd.
        view: what it is known to hold.
        pushes: what is sent to engines.
        timeout: how long a room may take whose instance has begun anew meanwhile, seconds.
        look_again: called, with a pause in seconds, for a wait whose instance may be known here soon.
    """

    def __init__(
        self, store: Store, view: View, pushes: Pushes, timeout: float, look_again: Callable[[Wait, float], None]
    ) -> None:
        self._store, self._view, self._pushes, self._timeout = store, view, pushes, timeout
        self._look_again = look_again
        self._unknown: list[Wait] = []
        self._orphaned: list[tuple[Wait, str]] = []
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def suspect_unknown(self, wait: Wait) -> None:
        """Nobody has announced its instance for long."""
        self._unknown.append(wait)
        self._ask()

    def suspect_lost(self, waits: list[tuple[Wait, str]]) -> None:
        """Their start of an instance, by its id, has ended, perhaps before they were asked."""
        self._orphaned += waits
        if waits:
            self._ask()

    def close(self) -> None:
        """Ask no more, and give no wait up: the next agent may answer it."""
        self._closed = True
        if self._task:
            self._task.cancel()

    def _ask(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._ask_all())

    async def _ask_all(self) -> None:
        while self._unknown or self._orphaned:
            (unknown, self._unknown), (orphaned, self._orphaned) = (self._unknown, []), (self._orphaned, [])
            try:
                ids, names = await self._list_instances()
            except StoreError as exc:
                log.debug("cannot tell which instances there are: %s", exc)
                ids, names = set(), None
            for wait in unknown:
                self._judge_unknown(wait, names)
            for wait, id in orphaned:
                self._judge_orphan(wait, names is None or id in ids or wait.instance in names)

    async def _list_instances(self) -> tuple[set[str], set[str] | None]:
        """The ids of the instances that stand, and all their names: None while one's own key is missing."""
        keys = self._view.keys
        ids: set[str] = set()
        names: set[str] = set()
        with_ranks: set[str] = set()
        for kv in (await self._store.list(keys.prefills())).kvs:
            key = keys.parse(kv.key)
            if isinstance(key, RankKey):
                with_ranks.add(key.instance)
            info = InstanceInfo.from_json(kv.value) if isinstance(key, PrefillKey) else None
            if isinstance(key, PrefillKey) and info and info.state != ENDED:
                ids.add(key.instance)
                names |= {key.instance, *info.addresses}
        return ids | with_ranks, names if with_ranks <= ids else None

    def _judge_unknown(self, wait: Wait, names: set[str] | None) -> None:
        if wait.ended or not self._view.waits.is_unplaced(wait):
            return
        if names is None or wait.instance in names:
            self._look_again(wait, LOOK_AGAIN)
        else:
            self._pushes.end_wait(wait, "InstanceUnknown")

    def _judge_orphan(self, wait: Wait, stands: bool) -> None:
        if stands:  # its room must come soon, or never will
            asyncio.get_running_loop().call_later(self._timeout, self._lose, wait)
        else:
            self._lose(wait)

    def _lose(self, wait: Wait) -> None:
        if not self._closed and not wait.ended and wait.assignment is None:
            self._pushes.end_wait(wait, "PrefillLost")
