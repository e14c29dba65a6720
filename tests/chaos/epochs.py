"""Which epochs of DP ranks live, from the keys of their processes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable


class Epochs:
    """Of a DP rank with several processes the epoch is its youngest key's, and lives while all of them are there.

    Args:
        processes: of each DP rank.
    """

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._created: dict[tuple[str, int], dict[Hashable, int]] = defaultdict(dict)

    def change(self, instance: str, dp_rank: int, key: Hashable, created: int) -> list[tuple[int, bool]]:
        """A process's key was created at this revision, or is gone (0): which epochs that ends and begins."""
        keys = self._created[instance, dp_rank]
        before = self._epoch(keys)
        keys.pop(key, None)
        if created:
            keys[key] = created
        after = self._epoch(keys)
        if before == after:
            return []
        return [(epoch, lives) for epoch, lives in ((before, False), (after, True)) if epoch]

    def live(self) -> dict[tuple[str, int], int]:
        """The epochs that live, by instance and DP rank."""
        return {rank: epoch for rank, keys in self._created.items() if (epoch := self._epoch(keys))}

    def _epoch(self, keys: dict[Hashable, int]) -> int:
        return max(keys.values()) if len(keys) == self._processes else 0
