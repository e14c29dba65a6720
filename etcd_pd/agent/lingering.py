"""Ranks whose connection broke but whose engine may live on: kept for a while, for a successor to take over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from ..core.claims import LocalRank
from ..wire.values import Rank


class Lingering:
    """Ranks that were announced with ``linger`` and that nobody speaks for at present.

    Args:
        withdraw: takes a rank out of etcd; called when nobody came for it, or somebody else did.
    """

    def __init__(self, withdraw: Callable[[LocalRank], None]) -> None:
        self._withdraw = withdraw
        self._ranks: dict[tuple[str, Rank], tuple[LocalRank, asyncio.TimerHandle]] = {}

    def __bool__(self) -> bool:
        return bool(self._ranks)

    def __iter__(self) -> Iterator[LocalRank]:
        return iter([local for local, _ in self._ranks.values()])

    def add(self, local: LocalRank) -> None:
        """Keep a rank for as long as it was said to linger; an earlier process of it is withdrawn."""
        key = (local.instance, local.rank)
        if key in self._ranks:
            self._ranks[key][1].cancel()
            self._expire(key)
        timer = asyncio.get_running_loop().call_later(local.linger, self._expire, key)
        self._ranks[key] = (local, timer)

    def of(self, instance: str) -> list[LocalRank]:
        """The lingering ranks of an instance."""
        return [local for local, _ in self._ranks.values() if local.instance == instance]

    def take_over(self, announced: LocalRank) -> LocalRank | None:
        """The lingering rank that an announcement continues; one that it contradicts is withdrawn."""
        left, timer = self._ranks.pop((announced.instance, announced.rank), (None, None))
        if left is None or timer is None:
            return None
        timer.cancel()
        if _engine(left) == _engine(announced):
            return left
        self._withdraw(left)
        return None

    def close(self) -> None:
        """Forget the timers; the keys stay under the session's lease."""
        for _, timer in self._ranks.values():
            timer.cancel()

    def _expire(self, key: tuple[str, Rank]) -> None:
        local, _ = self._ranks.pop(key)
        self._withdraw(local)


def _engine(local: LocalRank) -> tuple[object, ...]:
    return local.info.launch_id, local.info.topology, local.endpoint.ip, local.endpoint.port
