"""Rounds of cases, interleaved: what drifts on the machine while a benchmark runs drifts for all of them."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from .harness import Row, percentiles, spread

#: What a run at a rate measures, a value each room.
FIGURES = ("late_ms", "wait_ms", "due_ms", "acknowledged_ms", "wall_us", "cpu_us", "clock_us", "look_us")
#: Whose interpreter spins: prefill's, decode's.
MODES = {"both idle": (False, False), "prefill spins": (True, False), "both spin": (True, True)}

Run = dict[str, Any]
Key = TypeVar("Key")


@dataclass(frozen=True)
class Plan:
    """How much of a benchmark is run.

    Attributes:
        rounds: how often each case is run.
        seconds: length of a run at a rate.
        quick: fewer cases as well.
    """

    rounds: int = 5
    seconds: float = 2.5
    quick: bool = False


QUICK = Plan(rounds=2, seconds=0.5, quick=True)
FULL = Plan()


def interleaved(keys: Sequence[Key], plan: Plan, run: Callable[[Key], Run], subject: str) -> dict[Key, list[Run]]:
    """Run every key once a round, each round beginning with another one; the runs by key."""
    found: dict[Key, list[Run]] = {key: [] for key in keys}
    began = time.monotonic()
    for number, key in _order(keys, plan.rounds):
        done = sum(map(len, found.values()))
        say(f"{subject}: {done}/{plan.rounds * len(keys)} runs, round {number + 1}/{plan.rounds}, {since(began)}")
        found[key].append(run(key))
    say("")
    return found


def _order(keys: Sequence[Key], rounds: int) -> Iterator[tuple[int, Key]]:
    for number in range(rounds):
        turn = number % len(keys)
        for key in (*keys[turn:], *keys[:turn]):
            yield number, key


def say(text: str) -> None:
    """Show progress, on one line of a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[2K{text[:100]}", end="", file=sys.stderr, flush=True)


def since(began: float) -> str:
    """Seconds since then."""
    return f"{time.monotonic() - began:.0f} s"


def cpu_by_part(count: int, written: Run, read: Run, service: dict[str, float]) -> dict[str, float]:
    """CPU microseconds a room of the engines, of what stands between them, and of ``all``."""
    engines = {"prefill engine": written["process_cpu_seconds"], "decode engine": read["process_cpu_seconds"]}
    parts = {**engines, **service}
    return {**{name: used / count * 1e6 for name, used in parts.items()}, "all": sum(parts.values()) / count * 1e6}


def measured(message: Run, written: Run, read: Run, service: dict[str, float]) -> Run:
    """What a run at a rate came to, as :meth:`.rig.Rig.at_rate` returns it.

    Args:
        message: what the engines were told.
        written: what the prefill engine answered.
        read: what the decode engine answered.
        service: CPU seconds of what stands between them, by name.
    """
    count, start, rate = message["count"], message["start"], message["rate"]
    due = [start + number / rate for number in range(count)]
    sent, found, told = written["sent_at"], read["resolved_at"], written["acknowledged_at"]
    return {
        "late_ms": [max(begun - at, 0.0) * 1e3 for begun, at in zip(sent, due, strict=True)],
        "wait_ms": [(at - begun) * 1e3 for begun, at in zip(sent, found, strict=True) if at is not None],
        "due_ms": [(at - begun) * 1e3 for begun, at in zip(due, found, strict=True) if at is not None],
        "acknowledged_ms": [(at - begun) * 1e3 for begun, at in zip(sent, told, strict=True) if at is not None],
        "wall_us": written["wall_us"],
        "cpu_us": written["cpu_us"],
        "clock_us": written["clock_us"],
        "look_us": read["look_us"],
        "missing": found.count(None),
        "reached": (count - 1) / (sent[-1] - start),
        "cpu_us_per_room": cpu_by_part(count, written, read, service),
    }


def at_rate_row(runs: Sequence[Run], **named: Any) -> Row:
    """One row of runs at a rate: pooled percentiles, and each round's own p50 and p99 for the ratios."""
    row: Row = {**named, "rounds": len(runs), "missing": sum(run["missing"] for run in runs)}
    row["reached_per_second"] = spread([run["reached"] for run in runs], 1)
    for figure in FIGURES:
        values = [run[figure] for run in runs]
        if all(values):
            row[figure] = percentiles([value for each in values for value in each]) | {
                "p50_by_round": [percentiles(each)["p50"] for each in values],
                "p99_by_round": [percentiles(each)["p99"] for each in values],
            }
    return row | cpu(runs)


def cpu(runs: Sequence[Run]) -> Row:
    """CPU per room of these runs, microseconds: by part (median), and of all parts by round."""
    parts = [run["cpu_us_per_room"] for run in runs]
    median = {name: round(statistics.median(part[name] for part in parts), 1) for name in parts[0]}
    return {"cpu_us_per_room": median, "cpu_us_by_round": [round(part["all"], 2) for part in parts]}
