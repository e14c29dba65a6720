"""What this node's agent knows of the cell, read as etcd is read: for when etcd does not answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..client.visit import Visit, visit
from ..core.records import Header, KeyValue, Listing
from ..errors import AgentUnavailable, ConfigError
from ..wire import messages, to_client
from ..wire.listing import ListedKey, decode_keys
from ..wire.private import check_way

#: What an agent may take to show all that it knows, seconds.
PATIENCE_SECONDS = 5.0


class AgentCell:
    """The cell at one moment, as an agent's view has it.

    Attributes:
        agent: the agent's id.
        socket_path: where it was asked.
        stale_seconds: for how long changes may be missing.
        follows_rooms: whether it knows of rooms at all: one of prefill engines alone does not.
    """

    def __init__(self, socket_path: str, looked: to_client.Looked, keys: Iterable[ListedKey]) -> None:
        self.socket_path, self.agent = socket_path, looked.agent
        self.stale_seconds, self.follows_rooms = looked.stale_seconds, not looked.prefill_only
        self._header = Header(0, looked.revision)
        self._kvs = {one.key: KeyValue._make(one) for one in keys}

    async def list(self, prefix: bytes) -> Listing:
        """All keys under a prefix, in order."""
        return Listing(self._header, sorted(kv for kv in self._kvs.values() if kv.key.startswith(prefix)))

    async def read(self, keys: Sequence[bytes]) -> Listing:
        """Those of the keys that exist."""
        return Listing(self._header, [self._kvs[key] for key in keys if key in self._kvs])

    async def lease_times(self, lease_id: int) -> None:
        """Not known: only etcd counts a lease's time."""

    def as_json(self, error: str) -> dict[str, Any]:
        """Where what is shown came from, and why not from etcd."""
        return {
            "agent": self.agent,
            "socket": self.socket_path,
            "age_seconds": round(self.stale_seconds, 3),
            "error": error,
        }


def ask_agent(socket_path: str, root: str) -> AgentCell | None:
    """What the agent on a socket knows; None where there is none, or it knows nothing of this cell."""
    try:
        check_way("socket", socket_path)
        with visit(socket_path, PATIENCE_SECONDS) as agent:
            agent.greet()
            agent.send(messages.LOOK)
            looked = to_client.Looked.decode(agent.receive(messages.LOOKED))
            if looked.root != root or not looked.revision:
                return None
            return AgentCell(socket_path, looked, _all_keys(agent))
    except (AgentUnavailable, ConfigError):
        return None


def _all_keys(agent: Visit) -> Iterable[ListedKey]:
    """Page by page, until one is empty."""
    while True:
        agent.send(messages.LOOK_ON)
        page = decode_keys(agent.receive(messages.KEYS))
        if not page:
            return
        yield from page
