"""Who is in a cell, and who was there in the last hour and is gone: instances, ranks, decodes and agents."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import NamedTuple, TypeVar

from ..wire.values import has_left
from .keys import AgentKey, Keys, PrefillKey, RankKey
from .records import Event, KeyValue

K = TypeVar("K")
V = TypeVar("V")

#: For how long who is gone is remembered, seconds, and how many of them.
MEMORY_SECONDS = 3600.0
MOST_GONE = 1000


class Gone(NamedTuple):
    """A key that was there.

    Attributes:
        key: as etcd had it.
        at: when it went.
        left: its last word was that it would: it was drained, or its process ended as it was asked to.
    """

    key: bytes
    at: float
    left: bool


class Roster:
    """All keys of a cell but its rooms'. Times are of the caller's own clock.

    Attributes:
        present: by key, what stands in etcd as far as the watch has shown.
        since: when the first list came: nothing is known of who went before; None before it.
    """

    def __init__(self, keys: Keys) -> None:
        self._keys, self._rooms = keys, keys.rooms()
        self.present: dict[bytes, KeyValue] = {}
        self.since: float | None = None
        self._gone: dict[bytes, Gone] = {}  # the latest last
        self._at: dict[str, bytes] = {}  # by where it listens, the latest agent there
        self._leaving: dict[int, None] = {}  # leases of agents that left: what else hangs on them goes with them

    def replace(self, kvs: Iterable[KeyValue], now: float) -> None:
        """A list of everything: who is missing in it went just now, for all that is known."""
        self.since = now if self.since is None else self.since
        listed = {kv.key: kv for kv in kvs if not kv.key.startswith(self._rooms)}
        for key in sorted(self.present.keys() - listed.keys()):
            self._delete(key, now)
        for kv in listed.values():
            self._put(kv)

    def apply(self, events: Iterable[Event], now: float) -> None:
        """What was written and deleted, in order."""
        for event in events:
            if event.key.startswith(self._rooms):
                continue
            if event.kv:
                self._put(event.kv)
            else:
                self._delete(event.key, now)

    def gone(self, now: float) -> list[Gone]:
        """Who went within the last hour and has not come back, the first to go first."""
        self._gone = {key: one for key, one in self._gone.items() if now - one.at <= MEMORY_SECONDS}
        return list(self._gone.values())

    def _put(self, kv: KeyValue) -> None:
        self.present[kv.key] = kv
        self._gone.pop(kv.key, None)
        if not isinstance(self._keys.parse(kv.key), AgentKey):
            return
        if has_left(kv.value):
            _remember(self._leaving, kv.lease, None)
        elif place := _place(kv.value):  # by default an agent that is started again has another name
            self._gone.pop(self._at.get(place, b""), None)
            _remember(self._at, place, kv.key)

    def _delete(self, key: bytes, now: float) -> None:
        kv, what = self.present.pop(key, None), self._keys.parse(key)
        if kv is None or what is None:
            return
        if isinstance(what, AgentKey) and self._at.get(_place(kv.value), key) != key:
            return  # another one has taken its place
        if isinstance(what, RankKey) and self._keys.prefill(what.instance) not in self.present:
            return  # its instance stands for it
        if isinstance(what, PrefillKey):
            ranks = key + b"/ranks/"
            self._gone = {other: one for other, one in self._gone.items() if not other.startswith(ranks)}
        _remember(self._gone, key, Gone(key, now, has_left(kv.value) or kv.lease in self._leaving))


def _remember(names: dict[K, V], name: K, value: V) -> None:
    """Add a name as the latest; the oldest gives way where there are too many."""
    names.pop(name, None)
    names[name] = value
    if len(names) > MOST_GONE:
        del names[next(iter(names))]


def _place(value: bytes) -> str:
    """Where an agent listens, empty where it does not say."""
    try:
        place = json.loads(value)["socket"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return place if isinstance(place, str) else ""
