"""The agents whose sockets are here, asked again and again: what each says of itself, and how fast rooms are."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..telemetry.metrics import quantile
from .from_agent import Memory, ask_memory
from .printable import printable
from .verdict import GONE_RUNBOOK, WRONG, Problem

#: Over how long latencies are taken, seconds.
WINDOW_SECONDS = 10.0
#: What agents count the time of.
TIMED = ("register", "resolve")


@dataclass
class NodeAgent:
    """One socket, and what was said there.

    Attributes:
        name: its agent's, as it said last; empty before anything answered.
        answered_at: when it last did.
        last: what it says now, None where it does not answer.
    """

    socket: str
    name: str = ""
    answered_at: float = 0.0
    last: Memory | None = None
    _counts: dict[str, deque[tuple[float, Counter[float]]]] = field(
        default_factory=lambda: {what: deque() for what in TIMED}
    )

    def take(self, said: Memory | None, now: float) -> None:
        """What it answered just now."""
        self.last = said
        if said is None:
            return
        self.name, self.answered_at = said.agent, now
        for what, counts in self._counts.items():
            fresh = Counter(dict(getattr(said.looked, f"{what}_seconds")))
            if counts and not counts[-1][1] <= fresh:
                counts.clear()  # another process, which counts from nothing
            counts.append((now, fresh))
            while len(counts) > 2 and counts[1][0] <= now - WINDOW_SECONDS:
                counts.popleft()

    def counted(self, what: str) -> Counter[float]:
        """How many took at most so many seconds, of late."""
        counts = self._counts[what]
        return counts[-1][1] - counts[0][1] if self.last and counts else Counter()

    def problem(self, now: float) -> Problem:
        """That it does not answer any more."""
        text = printable(f"agent {self.name} does not answer on {self.socket}")
        return Problem(WRONG, text, GONE_RUNBOOK["agent"], now - self.answered_at)


class NodeAgents:
    """The agents on some sockets. Times are of the caller's own clock."""

    def __init__(self, sockets: Sequence[str], root: str) -> None:
        self._agents, self._root = [NodeAgent(one) for one in sockets], root

    async def ask(self, now: float) -> Memory | None:
        """Ask all of them; who is gone, as the one remembers that looked longest."""
        asked = (asyncio.to_thread(ask_memory, one.socket, self._root) for one in self._agents)
        memories = await asyncio.gather(*asked)
        for agent, memory in zip(self._agents, memories, strict=True):
            agent.take(memory, now)
        return max(filter(None, memories), key=lambda memory: memory.seconds, default=None)

    def problems(self, now: float, memory: Memory | None) -> list[Problem]:
        """Those that answered once and no longer do, but for those of whom the memory says that they are gone."""
        gone = {one["name"] for one in memory.gone if one["kind"] == "agent"} if memory else set()
        return [one.problem(now) for one in self._agents if one.name and not one.last and one.name not in gone]

    def rows(self, now: float) -> list[dict[str, Any]]:
        """What each says of itself; for how long it says nothing, 0 while it answers."""
        return [
            {
                "id": one.name,
                "silent_seconds": 0.0 if one.last else now - one.answered_at,
                "session": one.last.looked.session if one.last else "",
                "watch": one.last.looked.watch if one.last else "",
            }
            for one in self._agents
            if one.name
        ]

    def latencies(self) -> dict[str, dict[str, float] | None]:
        """50th and 99th percentiles of late, over all of them, seconds; None where nothing was counted."""
        return {what: _percentiles(sum((one.counted(what) for one in self._agents), Counter())) for what in TIMED}


def _percentiles(counts: Counter[float]) -> dict[str, float] | None:
    rising = sorted(counts.items())
    p50, p99 = quantile(rising, 0.5), quantile(rising, 0.99)
    return None if p50 is None or p99 is None else {"p50": p50, "p99": p99}
