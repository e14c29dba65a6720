"""What was aimed at, and what the results say of it.

Ratios are to SGLang in the same run unless a goal says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from . import cluster, saturation
from .harness import Row, ratio
from .rig import FLOOR, OURS, OURS_1MS, OURS_5MS, SGLANG_1MS, SGLANG_5MS

#: Content of the result files, by name.
Results = Mapping[str, Mapping[str, Any]]

STRETCH, REACHED, MISSED, UNKNOWN = "stretch reached", "reached", "not reached", "not measured"


@dataclass(frozen=True)
class Goal:
    """One goal.

    Attributes:
        subject: which results it is about.
        what: what is measured.
        wanted: what is enough, and what would be more.
        found: what was measured, with its spread over the rounds.
        verdict: ``stretch reached``, ``reached``, ``not reached`` or ``not measured``.
    """

    subject: str
    what: str
    wanted: str
    found: str = ""
    verdict: str = UNKNOWN


def goals(results: Results) -> list[Goal]:
    """All goals, in the order of the page."""
    found: list[Goal] = []
    for judge in (_blocking, _latency, _saturation, _cpu, _fanout, _cluster, _restart):
        found += judge(results)
    return found


def row(results: Results, name: str, **wanted: Any) -> Row | None:
    """The row of a result file that has these values, None where it was not measured."""
    for found in results.get(name, {}).get("rows", ()):
        if all(found.get(key) == value for key, value in wanted.items()):
            return dict(found)
    return None


def times(above: Row, below: Row, figure: str, percentile: str = "p50") -> dict[str, float]:
    """How often the one's figure is the other's, by round."""
    by_round = f"{percentile}_by_round"
    return ratio(above[figure][by_round], below[figure][by_round])


def digits(value: float) -> str:
    """A figure with three digits that say something, or whole."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value else "0"


def shown(found: Mapping[str, float], unit: str = "x") -> str:
    """A median with its spread."""
    return f"{digits(found['median'])}{unit} ({digits(found['min'])} to {digits(found['max'])})"


def _verdict(enough: bool, more: bool) -> str:
    return STRETCH if enough and more else REACHED if enough else MISSED


def _judge(goal: Goal, rows: tuple[Row | None, ...], judge: Callable[..., tuple[str, bool, bool]]) -> Goal:
    """The goal with what was found, where all of its rows were measured."""
    if any(each is None for each in rows):
        return goal
    found, enough, more = judge(*rows)
    return Goal(goal.subject, goal.what, goal.wanted, found, _verdict(enough, more))


def _blocking(results: Results) -> Iterator[Goal]:
    alone = row(results, "blocking", mode="prefill spins", case=OURS_5MS.name)
    theirs = row(results, "blocking", mode="prefill spins", case=SGLANG_5MS.name)
    both = row(results, "blocking", mode="both spin", case=OURS.name)

    def shorter(ours: Row, sglang: Row) -> tuple[str, bool, bool]:
        found, cpu = times(sglang, ours, "wall_us"), ours["cpu_us"]["p50"] - ours["clock_us"]["p50"]
        text = f"{shown(found)} shorter: {ours['wall_us']['p50']:.1f} us, {cpu:.1f} us of CPU without the clocks"
        return text, found["median"] >= 80 and cpu <= 15, found["median"] >= 150

    what = "register() blocks the scheduler, spinning interpreter, one core free: p50"
    wanted = ">= 80x shorter, <= 15 us of CPU; stretch >= 150x"
    yield _judge(Goal("blocking", what, wanted), (alone, theirs), shorter)

    def short(ours: Row) -> tuple[str, bool, bool]:
        found = ours["wall_us"]["p50"]
        return f"{found:.1f} us", found <= 50, found <= 50

    both_what = "the same with both interpreters spinning on two cores: p50"
    yield _judge(Goal("blocking", both_what, "stretch <= 50 us"), (both,), short)

    def look(ours: Row) -> tuple[str, bool, bool]:
        found = ours["look_us"]["p50"]
        return f"{found:.2f} us", found <= 3, found <= 1.5

    yield _judge(Goal("blocking", "resolve_nowait(), p50", "<= 3 us; stretch <= 1.5 us"), (both,), look)


def _latency(results: Results) -> Iterator[Goal]:
    for rate in (300, 1000):
        rows = tuple(
            row(results, "latency", mode="both spin", rate=rate, case=case.name) for case in (OURS, SGLANG_1MS, FLOOR)
        )

        def middle(ours: Row, sglang: Row, floor: Row) -> tuple[str, bool, bool]:
            found, above = times(sglang, ours, "wait_ms"), times(ours, floor, "wait_ms")
            text = f"{shown(found)} shorter; {shown(above)} raw etcd"
            return text, found["median"] >= 2 and above["median"] <= 1.5, found["median"] >= 3

        def tail(ours: Row, sglang: Row, _: Row) -> tuple[str, bool, bool]:
            found = times(sglang, ours, "wait_ms", "p99")
            return f"{shown(found)} shorter", found["median"] >= 2, False

        what = f"register to resolved at {rate:,} rooms/s, both spinning"
        wanted = ">= 2x shorter than a 1 ms poller, <= 1.5x raw etcd; stretch >= 3x"
        yield _judge(Goal("latency", f"{what}: p50", wanted), rows, middle)
        yield _judge(Goal("latency", f"{what}: p99", ">= 2x shorter than a 1 ms poller"), rows, tail)


def _saturation(results: Results) -> Iterator[Goal]:
    ours = row(results, "saturation", case=saturation.WATCHED)
    theirs = row(results, "saturation", case=SGLANG_1MS.name)
    two = row(results, "saturation", case=saturation.TWO_AGENTS)

    def faster(ours: Row, sglang: Row, two: Row) -> tuple[str, bool, bool]:
        name = "rooms_per_second"
        found = ratio(ours[f"{name}_by_round"], sglang[f"{name}_by_round"])
        text = f"{shown(found)}: {shown(ours[name], '/s')}; two agents {shown(two[name], '/s')}"
        return text, found["median"] >= 40 and ours[name]["median"] >= 40_000, two[name]["median"] >= 60_000

    what = "rooms acknowledged a second, one watching agent, one prefill agent"
    wanted = ">= 40x and >= 40,000/s; stretch >= 60,000/s of two agents"
    yield _judge(Goal("saturation", what, wanted), (ours, theirs, two), faster)


def _cpu(results: Results) -> Iterator[Goal]:
    # the same loop on both sides: one that naps a millisecond between its looks
    slow = tuple(row(results, "latency", mode="both idle", rate=300, case=case.name) for case in (OURS_1MS, SGLANG_1MS))
    fast = tuple(row(results, "saturation", case=name) for name in (saturation.WATCHED, SGLANG_1MS.name))
    limits = ((slow, "at 300 rooms/s", 2, 4), (fast, "at saturation", 20, 40))
    for rows, where, enough, more in limits:

        def cheaper(ours: Row, sglang: Row, enough: int = enough, more: int = more) -> tuple[str, bool, bool]:
            found = ratio(ours["cpu_us_by_round"], sglang["cpu_us_by_round"])
            text = f"{shown(found)}: {ours['cpu_us_per_room']['all']:,.0f} us a room"
            return text, found["median"] <= 1 / enough, found["median"] <= 1 / more

        what = f"CPU per room {where}, all processes"
        yield _judge(Goal("cpu", what, f"<= 1/{enough}; stretch <= 1/{more}"), rows, cheaper)


def _fanout(results: Results) -> Iterator[Goal]:
    one, eight, most = (row(results, "fanout", agents=agents) for agents in (1, 8, 32))
    goal = Goal("fanout", "register to resolved, 8 watching agents against 1: p50", "< 2x; stretch 32 agents < 4x")

    def wider(one: Row, eight: Row) -> tuple[str, bool, bool]:
        found = times(eight, one, "wait_ms")
        further = times(most, one, "wait_ms") if most else None
        marked = " (the machine is saturated)" if most and most["saturated"] else ""
        text = shown(found) + (f"; 32 agents {shown(further)}{marked}" if further else "")
        return text, found["median"] < 2, bool(further and further["median"] < 4)

    yield _judge(goal, (one, eight), wider)


def _cluster(results: Results) -> Iterator[Goal]:
    rows = tuple(
        row(results, "cluster", etcd=etcd, case=case.name)
        for etcd in (cluster.SINGLE, cluster.SECURED)
        for case in (OURS, FLOOR)
    )

    def alike(ours: Row, floor: Row, our_three: Row, floor_three: Row) -> tuple[str, bool, bool]:
        single, three = times(ours, floor, "wait_ms"), times(our_three, floor_three, "wait_ms")
        return f"{shown(three)} its floor; one member {shown(single)}", three["median"] <= single["max"], False

    what = "register to resolved, three members with TLS and authentication: p50"
    yield _judge(Goal("cluster", what, "the same ratio to its own floor as one member"), rows, alike)


def _restart(results: Results) -> Iterator[Goal]:
    measured = row(results, "restart", rooms=1_000_000)

    def fast(found: Row) -> tuple[str, bool, bool]:
        memory = f"{found['agent_bytes_per_room']['median']:,.0f} bytes a room"
        seconds = found["seconds"]["median"]
        return f"{shown(found['seconds'], ' s')}; {memory}", seconds <= 8, seconds <= 4

    what = "1,000,000 live rooms: a restarted agent serves again"
    yield _judge(Goal("restart", what, "<= 8 s, memory per room stated; stretch <= 4 s"), (measured,), fast)
