"""What this node's agent knows of the cell: read as etcd is read, for when that does not answer; and who is gone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ..client.visit import Visit, visit
from ..core.keys import AgentKey, DecodeKey, Keys, PrefillKey, RankKey
from ..core.records import Header, KeyValue, Listing
from ..errors import AgentUnavailable, ConfigError, ProtocolError
from ..wire import messages, to_agent, to_client
from ..wire.listing import GoneKey, ListedKey, decode_keys, read_gone
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


class Memory(NamedTuple):
    """Who is gone, as an agent remembers it.

    Attributes:
        agent: its id.
        socket: where it was asked.
        seconds: for how long it would know of somebody who is gone.
        gone: each with its kind, its name, the rank where it is one, how long ago it went, and whether it left.
        looked: what the agent says of itself.
    """

    agent: str
    socket: str
    seconds: float
    gone: list[dict[str, Any]]
    looked: to_client.Looked

    def as_json(self, gone: list[dict[str, Any]]) -> dict[str, Any]:
        """As an object, with those of the gone who are missed or left."""
        itself = {"session": self.looked.session, "watch": self.looked.watch}
        return {"agent": self.agent, "socket": self.socket, "seconds": self.seconds, **itself, "gone": gone}


def ask_agent(socket_path: str, root: str) -> AgentCell | None:
    """What the agent on a socket knows; None where there is none, or it knows nothing of this cell."""
    found = _look(socket_path, root, to_agent.Look())
    return AgentCell(socket_path, *found) if found else None


def ask_memory(socket_path: str, root: str) -> Memory | None:
    """Whom the agent on a socket remembers; None where there is none, or it knows nothing of this cell."""
    found = _look(socket_path, root, to_agent.Look(gone=True))
    if not found:
        return None
    looked, keys = found
    try:
        gone = [_describe(Keys(root), read_gone(key)) for key in keys]
    except ProtocolError:
        return None
    return Memory(looked.agent, socket_path, looked.memory_seconds, [one for one in gone if one], looked)


def _look(socket_path: str, root: str, what: to_agent.Look) -> tuple[to_client.Looked, list[ListedKey]] | None:
    try:
        check_way("socket", socket_path)
        with visit(socket_path, PATIENCE_SECONDS) as agent:
            agent.greet()
            agent.send(what.encode())
            looked = to_client.Looked.decode(agent.receive(messages.LOOKED))
            if looked.root != root or not looked.revision:
                return None
            return looked, list(_all_keys(agent))
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


def _describe(keys: Keys, gone: GoneKey) -> dict[str, Any] | None:
    match keys.parse(gone.key):
        case PrefillKey(name):
            kind, rank = "prefill", None
        case RankKey(name, place):
            kind, rank = "rank", str(place)
        case DecodeKey(name):
            kind, rank = "decode", None
        case AgentKey(name):
            kind, rank = "agent", None
        case _:
            return None
    return {"kind": kind, "name": name, "rank": rank, "seconds": round(gone.seconds, 1), "left": gone.left}
