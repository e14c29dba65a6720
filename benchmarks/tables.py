"""The rows of the results as tables, for the page and for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .goals import MISSED, Goal, Results, digits, goals, row, shown, times
from .harness import Row, ratio
from .prose import CAUSES
from .rig import OURS, OURS_5MS
from .rounds import MODES
from .saturation import WATCHED


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: what it shows.
        columns: names of its columns; all but the first hold figures.
        rows: its cells.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def tables(name: str, results: Results) -> list[Table]:
    """The tables of one result file; none where it was not measured."""
    if name not in results:
        return []
    return [table for table in _TABLES[name](results) if table.rows]


def goal_table(results: Results) -> Table:
    """Every goal with what was found, and where it is missed, by what."""
    cells = [(goal.what, goal.wanted, goal.found or "-", _verdict(goal)) for goal in goals(results)]
    return Table("Goals", ("", "wanted", "found: median of the rounds (lowest to highest)", "verdict"), cells)


def _verdict(goal: Goal) -> str:
    cause = next((cause for word, cause in CAUSES.items() if word in goal.what), "")
    return f"{goal.verdict}: {cause}" if goal.verdict == MISSED and cause else goal.verdict


def _rows(results: Results, name: str, **wanted: Any) -> list[Row]:
    found = results.get(name, {}).get("rows", ())
    return [each for each in found if all(each.get(key) == value for key, value in wanted.items())]


def _three(found: Mapping[str, Any] | None) -> str:
    """p50 / p99 / p99.9."""
    return " / ".join(digits(found[part]) for part in ("p50", "p99", "p999")) if found else "-"


def _against(ours: Row | None, other: Row, figure: str, percentile: str = "p50") -> str:
    """How often the other's figure is ours."""
    if ours is None or figure not in other or figure not in ours:
        return "-"
    return "1" if ours["case"] == other["case"] else shown(times(other, ours, figure, percentile))


def _blocking(results: Results) -> Iterable[Table]:
    columns = (
        "",
        "n",
        "wall us",
        "thread CPU us",
        "of that, clocks",
        "acknowledged ms",
        "resolve_nowait() us",
        "wall p50, to etcd_pd's",
    )
    for mode, first in (("prefill spins", OURS_5MS), ("both spin", OURS)):
        ours = row(results, "blocking", mode=mode, case=first.name)
        cells = [
            (
                each["case"],
                f"{each['wall_us']['n']:,}",
                _three(each["wall_us"]),
                _three(each["cpu_us"]),
                digits(each["clock_us"]["p50"]) if "clock_us" in each else "-",
                _three(each.get("acknowledged_ms")),
                _three(each.get("look_us")),
                _against(ours, each, "wall_us"),
            )
            for each in _rows(results, "blocking", mode=mode)
        ]
        yield Table(f"register() at 300 rooms/s, {mode}: p50 / p99 / p99.9", columns, cells)


def _latency(results: Results) -> Iterable[Table]:
    columns = (
        "",
        "n",
        "rooms/s reached",
        "missing",
        "late ms",
        "register to resolved ms",
        "p50, to etcd_pd's",
        "due to resolved ms",
        "p50, to etcd_pd's",
        "p99, to etcd_pd's",
    )
    for mode in MODES:
        for rate in (300, 1000):
            ours = row(results, "latency", mode=mode, rate=rate, case=OURS.name)
            cells = [
                (
                    each["case"],
                    f"{each['late_ms']['n']:,}",
                    f"{each['reached_per_second']['median']:,.0f}",
                    str(each["missing"]),
                    _three(each["late_ms"]),
                    _three(each.get("wait_ms")),
                    _against(ours, each, "wait_ms"),
                    _three(each.get("due_ms")),
                    _against(ours, each, "due_ms"),
                    _against(ours, each, "due_ms", "p99"),
                )
                for each in _rows(results, "latency", mode=mode, rate=rate)
            ]
            yield Table(f"A room's wait at {rate:,} rooms/s, {mode}: p50 / p99 / p99.9", columns, cells)
    ours = row(results, "latency", mode="both idle", rate=300, case=OURS.name)
    measured = [each for each in _rows(results, "latency", mode="both idle", rate=300) if "cpu_us_by_round" in each]
    yield _cpu_table("CPU per room at 300 rooms/s, both idle, microseconds", measured, ours)


def _cpu_table(title: str, measured: list[Row], ours: Row | None) -> Table:
    cells = []
    for each in measured:
        parts = dict(each["cpu_us_per_room"])
        whole = parts.pop("all")
        divided = ", ".join(f"{name} {digits(used)}" for name, used in parts.items() if used)
        against = shown(ratio(each["cpu_us_by_round"], ours["cpu_us_by_round"])) if ours and each != ours else "1"
        cells.append((each["case"], digits(whole), divided, against))
    return Table(title, ("", "all processes", "of which", "to etcd_pd's"), cells)


def _saturation(results: Results) -> Iterable[Table]:
    measured = _rows(results, "saturation")
    ours = row(results, "saturation", case=WATCHED)
    cells = []
    for each in measured:
        name = "rooms_per_second_by_round"
        against = shown(ratio(ours[name], each[name])) if ours and each != ours else "1"
        cells.append((each["case"], f"{each['rooms']:,}", shown(each["rooms_per_second"], ""), against))
    yield Table("Rooms acknowledged a second", ("", "rooms", "rooms/s", "etcd_pd's, to this"), cells)
    yield _cpu_table("CPU per room at saturation, microseconds", measured, ours)


def _fanout(results: Results) -> Iterable[Table]:
    one = row(results, "fanout", agents=1)
    cells = [
        (
            str(each["agents"]),
            f"{each['wait_ms']['n']:,}",
            _three(each["wait_ms"]),
            _against(one, each, "wait_ms"),
            _three(each.get("due_ms")),
            _against(one, each, "due_ms"),
            f"{each['cpu_us_per_room']['all']:,.0f}",
            f"{each['machine_busy']['median']:.0%}" + (", saturated" if each["saturated"] else ""),
        )
        for each in _rows(results, "fanout")
    ]
    columns = (
        "watching agents",
        "n",
        "register to resolved ms",
        "p50, to one agent's",
        "due to resolved ms",
        "p50, to one agent's",
        "CPU us a room",
        "machine busy",
    )
    yield Table("A room's wait at 300 rooms/s: p50 / p99 / p99.9", columns, cells)


def _cluster(results: Results) -> Iterable[Table]:
    cells = []
    for each in _rows(results, "cluster"):
        floor = row(results, "cluster", etcd=each["etcd"], case="raw etcd")
        fast = each["saturated"]
        cells.append(
            (
                each["etcd"],
                each["case"],
                f"{each['wait_ms']['n']:,}",
                _three(each["wait_ms"]),
                _against(floor, each, "wait_ms"),
                _three(each.get("due_ms")),
                _against(floor, each, "due_ms"),
                shown(fast["rooms_per_second"], ""),
                digits(fast["cpu_us_per_room"]["all"]),
            )
        )
    waits = ("register to resolved ms", "p50, to raw etcd's", "due to resolved ms", "p50, to raw etcd's")
    columns = ("etcd", "", "n", *waits, "rooms/s", "CPU us a room then")
    yield Table("300 rooms/s, both idle: p50 / p99 / p99.9; and at saturation", columns, cells)


def _restart(results: Results) -> Iterable[Table]:
    cells = [
        (
            f"{each['rooms']:,}",
            str(each["rounds"]),
            shown(each["seconds"], ""),
            shown(each["cpu_seconds"], ""),
            shown(each["agent_bytes_per_room"], ""),
            f"{each['etcd_bytes_per_room']:,}",
        )
        for each in _rows(results, "restart")
    ]
    columns = ("live rooms", "restarts", "seconds to the first answer", "CPU seconds", "bytes a room, agent", "etcd")
    yield Table("From starting an agent to its first answer", columns, cells)


def _profile(results: Results) -> Iterable[Table]:
    measured = _rows(results, "profile")
    for each in (each for each in measured if "functions" in each):
        whole = sum(function["own_us_per_room"] for function in each["functions"])
        cells = [
            (
                f"`{function['function']}`",
                digits(function["calls_per_room"]),
                f"{function['own_us_per_room'] / whole:.1%}",
                digits(function["with_callees_us_per_room"]),
            )
            for function in each["functions"]
            if whole
        ]
        columns = ("function", "calls a room", "its own share", "us a room with callees")
        yield Table(f"The heaviest functions of the {each['case']}, profiled", columns, cells)
    by_thread = [each for each in measured if "threads_us_per_room" in each]
    kinds = list(dict.fromkeys(kind for each in by_thread for kind in each["threads_us_per_room"]))
    rows = [(each["case"], *(digits(each["threads_us_per_room"].get(kind, 0)) for kind in kinds)) for each in by_thread]
    yield Table("CPU of the agents' threads at 300 rooms/s, microseconds a room", ("", *kinds), rows)


_TABLES: Mapping[str, Callable[[Results], Iterable[Table]]] = {
    "blocking": _blocking,
    "latency": _latency,
    "saturation": _saturation,
    "fanout": _fanout,
    "cluster": _cluster,
    "restart": _restart,
    "profile": _profile,
}
