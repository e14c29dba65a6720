"""Who is in a cell: the keys of instances, ranks, decodes and agents, as etcd sends them."""

from __future__ import annotations

from collections.abc import Iterable

from .keys import Keys
from .records import Event, KeyValue


class Roster:
    """All keys of a cell but its rooms'.

    Attributes:
        present: by key, what stands in etcd as far as the watch has shown.
    """

    def __init__(self, keys: Keys) -> None:
        self._rooms = keys.rooms()
        self.present: dict[bytes, KeyValue] = {}

    def replace(self, kvs: Iterable[KeyValue]) -> None:
        """A list of everything."""
        self.present = {kv.key: kv for kv in kvs if not kv.key.startswith(self._rooms)}

    def apply(self, events: Iterable[Event]) -> None:
        """What was written and deleted, in order."""
        for event in events:
            if event.key.startswith(self._rooms):
                continue
            if event.kv:
                self.present[event.key] = event.kv
            else:
                self.present.pop(event.key, None)
