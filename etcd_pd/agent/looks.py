"""For those who look at the cell where etcd does not answer: what this agent knows, page by page."""

from __future__ import annotations

from ..config import AgentSettings
from ..core.roster import Roster
from ..core.view import View
from ..wire import messages, to_client
from ..wire.listing import encode_keys
from .connection import EngineConnection
from .watcher import Watcher


class Looks:
    """Answers LOOK and LOOK_ON.

    Args:
        settings: of the agent.
        view: which rooms there are.
        roster: what else there is.
        watcher: how far both may be believed.
    """

    def __init__(self, settings: AgentSettings, view: View, roster: Roster, watcher: Watcher) -> None:
        self._settings, self._view, self._roster, self._watcher = settings, view, roster, watcher

    def begin(self, engine: EngineConnection, packet: bytes) -> None:
        """A LOOK packet: all pages will be of this moment, though each is made when it is asked for."""
        engine.pages = encode_keys([*self._roster.present.values(), *self._view.rooms.values()])
        settings, stale = self._settings, self._watcher.stale_seconds
        looked = to_client.Looked(settings.agent_id, settings.root, self._view.revision, stale, settings.prefill_only)
        engine.send(looked.encode())

    def go_on(self, engine: EngineConnection, packet: bytes) -> None:
        """A LOOK_ON packet: the next page, an empty one after the last."""
        engine.send(next(engine.pages, messages.KEYS))
