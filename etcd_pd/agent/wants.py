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
from ..wire import messages, to_client
from ..wire.limits import check_name
from .connection import EngineConnection
from .pushes import Pushes
from .stats import Stats
from .watcher import Watcher


class Wants:
    """The waits of all engines, and the instances that they follow.

    Args:
        settings: of the agent.
        view: what etcd is known to hold.
        watcher: whose word the view is.
        pushes: what is sent to engines.
        connections: every engine.
        stats: what is counted.
    """

    def __init__(
        self,
        settings: AgentSettings,
        view: View,
        watcher: Watcher,
        pushes: Pushes,
        connections: Collection[EngineConnection],
        stats: Stats,
    ) -> None:
        self._settings, self._view, self._watcher = settings, view, watcher
        self._pushes, self._connections, self._stats = pushes, connections, stats
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
        engine.wants[asked.id], engine.last_want = wait, asked.id
        self._stats.wanted += 1
        if self._view.synced and self._watcher.state is not WatchState.SYNCED:
            self._view.sync(False)  # this process was stopped, and has not looked at the watch yet
        if self._settings.prefill_only:
            self._pushes.end_wait(wait, to_client.Ended(wait.id, "RoomsNotWatched"))
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
        asyncio.get_running_loop().call_later(seconds, self._give_up_unknown, wait)

    def _give_up_unknown(self, wait: Wait) -> None:
        if wait.ended or not self._view.waits.is_unplaced(wait):
            return
        if self._watcher.state is not WatchState.SYNCED or self._view.lacks_instances():
            # cannot tell: the wait's own deadline still holds
            asyncio.get_running_loop().call_later(self._settings.instance_timeout_seconds, self._give_up_unknown, wait)
            return
        self._pushes.end_wait(wait, to_client.Ended(wait.id, "InstanceUnknown"))

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
