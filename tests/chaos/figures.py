"""How fast: ``python -m tests.chaos.figures DIRECTORY...`` prints, for every fault in these histories, what it cost.

The directories are those that a run of the suite left behind: ``CHAOS_HISTORIES=DIRECTORY make test-chaos`` keeps them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .history import Event, read


@dataclass
class Cost:
    """What one kind of fault cost, one number for each time that it was injected.

    Attributes:
        stall: longest time for which no registration was acknowledged, seconds.
        wait: longest time that one registration took.
        news: from the fault until the last decode that held a room of a rank that it killed was told; none where no
            rank died. Decodes whose own agent the fault cut off are left out: they cannot be told, and know it.
        heal: from its end until each agent's view was equal to etcd, one number for each agent.
    """

    stall: list[float] = field(default_factory=list)
    wait: list[float] = field(default_factory=list)
    news: list[float] = field(default_factory=list)
    heal: list[float] = field(default_factory=list)


def costs(history: Sequence[Event]) -> dict[str, Cost]:
    """By the fault's name."""
    found: dict[str, Cost] = defaultdict(Cost)
    begun: dict[str, float] = {}
    names: dict[int, str] = {}
    for event in history:
        if event.what == "fault":
            begun[event.name] = event.t
        elif event.what == "healed":
            names[event.number] = event.name
            _add(found[event.name], history, begun[event.name], event.t)
        elif event.what == "caught_up":
            found[names[event.healed]].heal.append(event.seconds)
    return found


def _add(cost: Cost, history: Sequence[Event], start: float, end: float) -> None:
    asked = {(e.dp_rank, e.room): e.t for e in history if e.what == "register"}
    acked = [e for e in history if e.what == "registered" and start <= e.t <= end + 3.0]
    times = [start, *(e.t for e in acked), end]
    cost.stall.append(max(b - a for a, b in zip(sorted(times), sorted(times)[1:], strict=False)))
    cost.wait.append(max((e.t - asked[e.dp_rank, e.room] for e in acked), default=0.0))
    cut_off = {e.who for e in history if e.what == "view" and e.view != "synced" and start <= e.t <= end}
    holding = {(e.who, e.room) for e in history if e.what == "resolved" and e.t < start and e.who not in cut_off}
    told: dict[tuple[str, int], float] = {}  # the first word counts: the decodes ask again, to see that lost is final
    for e in history:
        if e.what == "ended" and e.error == "PrefillLost" and start <= e.t <= end + 1.0:
            told.setdefault((e.who, e.room), e.t)
    news = [t for who_and_room, t in told.items() if who_and_room in holding]
    if news:
        cost.news.append(max(news) - start)


def table(all_costs: Iterable[dict[str, Cost]]) -> str:
    """A Markdown table: median / worst of each figure, in seconds."""
    merged: dict[str, Cost] = defaultdict(Cost)
    for each in all_costs:
        for name, cost in each.items():
            for figure in vars(cost):
                getattr(merged[name], figure).extend(getattr(cost, figure))
    lines = [
        "| fault | times | none acknowledged for | one took | holders notified after | views equal after |",
        "|---|---|---|---|---|---|",
    ]
    for name, cost in sorted(merged.items()):
        cells = [_spell(cost.stall), _spell(cost.wait), _spell(cost.news), _spell(cost.heal)]
        lines.append(f"| {name} | {len(cost.stall)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spell(figures: Sequence[float]) -> str:
    return f"{statistics.median(figures):.2f} / {max(figures):.2f}" if figures else "-"


def main() -> int:
    """Print the table, median / worst."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="+", type=Path)
    directories = parser.parse_args().directories
    print(table(costs(read(sorted(directory.glob("*.jsonl")))) for directory in directories))
    return 0


if __name__ == "__main__":
    sys.exit(main())
