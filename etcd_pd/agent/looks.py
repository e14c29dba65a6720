"""For those who look at the cell where etcd does not answer: what this agent knows, page by page."""

from __future__ import annotations

import time

from ..config import AgentSettings
from ..core.roster import MEMORY_SECONDS, Roster
from ..core.view import View
from ..wire import messages, to_agent, to_client
from ..wire.listing import GoneKey, encode_gone, encode_keys
from .connection import EngineConnection
from .session import Session
from .stats import Stats
from .watcher import Watcher


class Looks:
    """Answers LOOK and LOOK_ON.

    Args:
        settings: of the agent.
        view: which rooms there are.
        roster: what else there is.
        watcher: how far both may be believed.
        session: the agent's own.
        stats: what it has counted.
    """

    def __init__(
        self, settings: AgentSettings, view: View, roster: Roster, watcher: Watcher, session: Session, stats: Stats
    ) -> None:
        self._settings, self._view, self._roster, self._watcher = settings, view, roster, watcher
        self._session, self._stats = session, stats

    def begin(self, engine: EngineConnection, packet: bytes) -> None:
        """A LOOK packet: all pages will be of this moment, though each is made when it is asked for."""
        now, roster, settings = time.monotonic(), self._roster, self._settings
        if to_agent.Look.decode(packet).gone:
            engine.pages = encode_gone([GoneKey(one.key, now - one.at, one.left) for one in roster.gone(now)])
        else:
            engine.pages = encode_keys([*roster.present.values(), *self._view.rooms.values()])
        remembers = 0.0 if roster.since is None else min(now - roster.since, MEMORY_SECONDS)
        looked = to_client.Looked(
            settings.agent_id,
            settings.root,
            self._view.revision,
            self._watcher.stale_seconds,
            settings.prefill_only,
            remembers,
            self._session.state.value,
            self._watcher.state.value,
            self._stats.register_seconds.counts(),
            self._stats.resolve_seconds.counts(),
        )
        engine.send(looked.encode())

    def go_on(self, engine: EngineConnection, packet: bytes) -> None:
        """A LOOK_ON packet: the next page, an empty one after the last."""
        engine.send(next(engine.pages, messages.KEYS))
