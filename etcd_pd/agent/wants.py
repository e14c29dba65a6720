"""What engines wait for and follow: each wait gets an answer from the view, or ends."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Collection

from ..config import AgentSettings
from ..core.notices import Known, Wait
from ..core.view import View
from ..core.watch import WatchState
from ..store.base import Store
from ..wire import messages
from ..wire.limits import check_name
from .connection import EngineConnection
from .doubts import Doubts
from .pushes import Pushes
from .stats import Stats
from .watcher import Watcher


class Wants:
    """The waits of all engines, and the instances that they follow.

    Args:
        settings: of the agent.
        store: etcd.
        view: what it is known to hold.
        watcher: whose word the view is.
        pushes: what is sent to engines.
        connections: every engine.
        stats: what is counted.
    """

    def __init__(
        self,
        settings: AgentSettings,
        store: Store,
        view: View,
        watcher: Watcher,
        pushes: Pushes,
        connections: Collection[EngineConnection],
        stats: Stats,
    ) -> None:
        self._settings, self._view, self._watcher = settings, view, watcher
        self._pushes, self._connections, self._stats = pushes, connections, stats
        self._doubts = Doubts(store, view, pushes, settings.instance_timeout_seconds, self._expect_instance)
        self._early: list[tuple[EngineConnection, str]] = []  # what was followed before anything was known

    # --- waits

    def want(self, engine: EngineConnection, packet: bytes) -> None:
        """A WANT packet."""
        asked = messages.decode_want(packet)
        earlier = engine.wants.pop(asked.id, None)
        if earlier:  # the engine lost pushes and asks again
            self._view.waits.forget(earlier)
        named = asked.named_rank if asked.named_rank >= 0 else None
        known = Known(asked.known_rank, asked.known_epoch, asked.known_revision) if asked.known_rank >= 0 else None
        wait = Wait(engine, asked.id, check_name("instance", asked.instance), asked.room, named, known)
        wait.asked_at = time.monotonic()
        wait.beyond = 0 if known else asked.known_revision
        engine.wants[asked.id], engine.last_want = wait, asked.id
        self._stats.wanted += 1
        if self._settings.prefill_only:
            self._pushes.end_wait(wait, "RoomsNotWatched")
            return
        self._pushes.answer(engine, self._view.waits.want(wait))
        if self._view.waits.is_unplaced(wait):
            self._expect_instance(wait, asked.seconds)

    def end(self, engine: EngineConnection, packet: bytes) -> None:
        """A DONE packet."""
        for id in messages.decode_done(packet):
            wait = engine.wants.pop(id, None)
            if wait:
                self._view.waits.forget(wait)

    def leave(self, engine: EngineConnection) -> None:
        """An engine is gone."""
        for wait in engine.wants.values():
            self._view.waits.forget(wait)
        engine.wants.clear()

    def expect_instances(self) -> None:
        """Waits of which the view has lost the instance: it must come back as soon as others must come."""
        for engine in self._connections:
            for wait in engine.wants.values():
                if self._view.waits.is_unplaced(wait):
                    self._expect_instance(wait, math.inf)

    def _expect_instance(self, wait: Wait, seconds: float) -> None:
        seconds = min(seconds, self._settings.instance_timeout_seconds)
        asyncio.get_running_loop().call_later(seconds, self._look_for_instance, wait)

    def _look_for_instance(self, wait: Wait) -> None:
        if wait.ended or not self._view.waits.is_unplaced(wait):
            return
        if self._watcher.state is WatchState.SYNCED:
            self._doubts.suspect_unknown(wait)
        else:  # cannot tell: the wait's own deadline still holds
            self._expect_instance(wait, math.inf)

    def pin(self) -> None:
        """Look which waits the view has come past, if it is not cut off; it may be this much behind and not know it."""
        if self._watcher.state is WatchState.SYNCED:
            self._view.waits.pin(time.monotonic() - 2 * self._settings.watch_silence_seconds)

    def judge_orphans(self) -> None:
        """Waits whose start has ended: etcd itself says whether there is another."""
        self._doubts.suspect_lost(self._view.waits.take_orphans())

    def close(self) -> None:
        """Give no wait up any more."""
        self._doubts.close()

    # --- instances

    def follow(self, engine: EngineConnection, packet: bytes) -> None:
        """A FOLLOW packet."""
        name = check_name("instance", messages.decode_follow(packet))
        engine.followed.add(name)
        if self._view.revision:
            self._describe(engine, name)
        else:
            self._early.append((engine, name))

    def answer_early(self) -> None:
        """The view is whole: say what was asked for before, of which nobody knew whether it exists."""
        early, self._early = self._early, []
        for engine, name in early:
            self._describe(engine, name)

    def _describe(self, engine: EngineConnection, name: str) -> None:
        id = self._view.find(name)
        if id is not None:
            engine.known.setdefault(id, set()).add(name)
        self._pushes.flush()  # the answers to earlier wants come first
        self._pushes.send_instance(engine, id if id is not None else name)
