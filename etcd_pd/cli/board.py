"""How busy each prefill rank is, kept up to date from what happens in a cell."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..core.roster import MEMORY_SECONDS
from ..kubernetes.round_trip import PREFIX
from .changes import Change

#: Rates are taken over this long, seconds.
WINDOW_SECONDS = 5.0
#: From how many of its last rooms a rank's quantiles are taken.
LAST_ROOMS = 1000


@dataclass
class RankLoad:
    """One data-parallel rank, as seen since the board began."""

    state: str = "gone"
    gone_at: float = 0.0
    epoch: int = 0
    registered: int = 0
    failed: int = 0
    lost: int = 0
    rooms: dict[int, float] = field(default_factory=dict)  # with the time at which each was seen first
    held: deque[float] = field(default_factory=lambda: deque(maxlen=LAST_ROOMS))
    marks: deque[tuple[float, int]] = field(default_factory=deque)

    def rate(self, now: float) -> float:
        """Rooms registered a second, since the last mark older than the window or the oldest there is."""
        self.marks.append((now, self.registered))
        while len(self.marks) > 2 and self.marks[1][0] <= now - WINDOW_SECONDS:
            self.marks.popleft()
        since, before = self.marks[0]
        return (self.registered - before) / (now - since) if now > since else 0.0


class Board:
    """All ranks of a cell. Times are of the caller's own clock: etcd knows none."""

    def __init__(self) -> None:
        self._ranks: dict[tuple[str, int], RankLoad] = {}
        self.watch = "stale"

    def apply(self, changes: Iterable[Change], now: float, *, counts: bool = True) -> None:
        """Take in what happened; ``counts``: it happened just now, rather than before the board began."""
        for change in changes:
            if change.kind == "watch":
                self.watch = change.what
            elif change.dp_rank is not None:
                load = self._ranks.setdefault((change.name, change.dp_rank), RankLoad(gone_at=now))
                if change.kind == "rank":
                    _rank(load, change, now, counts)
                elif change.room is not None:
                    _room(load, change, change.room, now, counts)

    def rows(self, now: float) -> list[dict[str, Any]]:
        """A row for each rank; for how many seconds its last rooms were held, None where none has ended yet.

        One that is gone has its row for as long as agents remember it; a doctor's, which nobody misses, for no longer.
        """
        for key, load in list(self._ranks.items()):
            memory = 0.0 if key[0].startswith(PREFIX) else MEMORY_SECONDS
            if load.state == "gone" and now - load.gone_at >= memory:
                del self._ranks[key]
        busiest = max((len(load.rooms) for load in self._ranks.values()), default=0)
        return [
            {
                "instance": instance,
                "dp_rank": dp_rank,
                "state": load.state,
                "epoch": load.epoch,
                "rooms": len(load.rooms),
                "load": len(load.rooms) / busiest if busiest else 0.0,
                "rooms_per_second": load.rate(now),
                "held_seconds_p50": quantile(load.held, 0.5),
                "held_seconds_p99": quantile(load.held, 0.99),
                "registered": load.registered,
                "failed": load.failed,
                "lost": load.lost,
            }
            for (instance, dp_rank), load in sorted(self._ranks.items())
        ]


def quantile(values: Iterable[float], q: float) -> float | None:
    """The smallest value that at least this share of them does not exceed; None of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)] if ordered else None


def _rank(load: RankLoad, change: Change, now: float, counts: bool) -> None:
    if change.what == "gone":
        load.state, load.gone_at = "gone", now  # of any of its processes: the rank needs them all
        load.lost += len(load.rooms) if counts else 0
        load.rooms.clear()
        return
    load.epoch = max(load.epoch, change.epoch)
    load.state = "draining" if change.what == "draining" else "serving"


def _room(load: RankLoad, change: Change, room: int, now: float, counts: bool) -> None:
    if change.what == "registered":
        load.rooms[room] = now
        load.registered += counts
    elif change.what == "failed":
        load.rooms.pop(room, None)
        load.failed += counts
    elif change.what == "gone":
        since = load.rooms.pop(room, None)
        if since is not None:
            load.held.append(now - since)
