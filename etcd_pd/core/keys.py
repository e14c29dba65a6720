"""The key layout, version 1: the one place that knows how keys are spelled.

::

    {root}/v1/prefill/{id}                          InstanceInfo   (session lease)
    {root}/v1/prefill/{id}/ranks/{dp}.{cp}.{tp}.{pp}  RankEndpoint (session lease)
    {root}/v1/rooms/{id}/{room}                     RoomValue      (bucket lease)
    {root}/v1/decode/{id}                           DecodeInfo     (session lease)
    {root}/v1/agents/{id}                           AgentInfo      (session lease)

Rooms sort last: one range holds all that is no room, which is all that an agent for prefill engines alone follows.
"""

from __future__ import annotations

from typing import NamedTuple

from ..wire.limits import MAX_PARALLEL, MAX_ROOM
from ..wire.values import Rank


class PrefillKey(NamedTuple):
    """Key of a prefill instance."""

    instance: str


class RankKey(NamedTuple):
    """Key of one process of a prefill instance."""

    instance: str
    rank: Rank


class RoomKey(NamedTuple):
    """Key of a bootstrap room."""

    instance: str
    room: int


class DecodeKey(NamedTuple):
    """Key of a decode instance."""

    instance: str


class AgentKey(NamedTuple):
    """Key of an agent."""

    agent: str


ParsedKey = PrefillKey | RankKey | RoomKey | DecodeKey | AgentKey


class Keys:
    """The keys of one cell.

    Args:
        root: the cell's prefix, without a slash at its end.
    """

    def __init__(self, root: str) -> None:
        self.prefix = f"{root}/v1/".encode()
        self._rooms = self.prefix + b"rooms/"

    def prefill(self, instance: str) -> bytes:
        """Key of a prefill instance."""
        return self.prefix + f"prefill/{instance}".encode()

    def prefills(self) -> bytes:
        """Prefix of all instances and their ranks."""
        return self.prefix + b"prefill/"

    def rank(self, instance: str, rank: Rank) -> bytes:
        """Key of one process of a prefill instance."""
        return self.prefix + f"prefill/{instance}/ranks/{rank}".encode()

    def room(self, instance: str, room: int) -> bytes:
        """Key of a bootstrap room."""
        return b"%b%b/%d" % (self._rooms, instance.encode(), room)

    def rooms(self, instance: str = "") -> bytes:
        """Prefix of all rooms, or of one instance's."""
        return self._rooms + (f"{instance}/".encode() if instance else b"")

    def decode(self, instance: str) -> bytes:
        """Key of a decode instance."""
        return self.prefix + f"decode/{instance}".encode()

    def agent(self, agent: str) -> bytes:
        """Key of an agent."""
        return self.prefix + f"agents/{agent}".encode()

    def parse(self, key: bytes) -> ParsedKey | None:
        """What a key stands for; None where it is not of this layout (somebody else's key is no error)."""
        if not key.startswith(self.prefix):
            return None
        try:
            kind, *parts = key[len(self.prefix) :].decode().split("/")
        except UnicodeDecodeError:
            return None
        if not parts or not all(parts):
            return None
        if kind == "rooms" and len(parts) == 2:
            room = _natural(parts[1], MAX_ROOM)
            return RoomKey(parts[0], room) if room is not None else None
        if kind == "prefill" and len(parts) == 3 and parts[1] == "ranks":
            rank = _rank(parts[2])
            return RankKey(parts[0], rank) if rank else None
        if len(parts) != 1:
            return None
        if kind == "prefill":
            return PrefillKey(parts[0])
        if kind == "decode":
            return DecodeKey(parts[0])
        return AgentKey(parts[0]) if kind == "agents" else None


def root_of(key: bytes) -> str | None:
    """The root of the cell that a key belongs to; None where it is of no cell."""
    try:
        root = key.partition(b"/v1/")[0].decode()
    except UnicodeDecodeError:
        return None
    return root if Keys(root).parse(key) else None


def prefix_end(prefix: bytes) -> bytes:
    """End of the range that holds every key starting with ``prefix`` (etcd's own rule; 0xff bytes carry over)."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else b"\0"


def _natural(text: str, highest: int) -> int | None:
    # one spelling per number: "07" and "+7" are not ours; and int() refuses what has thousands of digits
    if not (text.isascii() and text.isdigit()) or len(text) > len(str(highest)) or (text[0] == "0" and text != "0"):
        return None
    number = int(text)
    return number if number <= highest else None


def _rank(text: str) -> Rank | None:
    numbers = [_natural(part, MAX_PARALLEL - 1) for part in text.split(".")]
    if len(numbers) != 4 or None in numbers:
        return None
    return Rank(*(number for number in numbers if number is not None))
