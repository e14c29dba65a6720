"""What was aimed at, and what the results say of it.

Ratios are to SGLang in the same run unless a goal says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from . import cluster, saturation
from .harness import Row, ratio
from .rig import FLOOR, OURS, OURS_1MS, OURS_5MS, SGLANG_1MS, SGLANG_5MS, SGLANG_SESSION, Case

#: Content of the result files, by name.
Results = Mapping[str, Mapping[str, Any]]

#: A system keeps up that registers this share of the rate.
KEEPS_UP = 0.98
#: Where rooms are counted from when they were due: whose interpreters spin, rooms a second, the other system.
CELLS = tuple(
    (mode, rate, peer)
    for mode in ("both idle", "both spin")
    for rate in (300, 1000)
    for peer in (SGLANG_1MS, SGLANG_SESSION)
)

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
    for judge in (_due, _due_tail, _above_floor, _cpu, _saturation, _fanout, _blocking, _restart, _cell, _cluster):
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


def keeps_up(found: Row) -> bool:
    """Whether a system registers rooms as fast as they come."""
    return bool(found["reached_per_second"]["median"] >= KEEPS_UP * found["rate"])


def _judge(
    goal: Goal, rows: tuple[Row | None, ...], judge: Callable[..., tuple[str, bool, bool]], figure: str = "case"
) -> Goal:
    """The goal with what was found, where the figure was measured in all of its rows; a lost room misses any goal."""
    measured = [each for each in rows if each is not None]
    lost = [f"{each['case']}: {each['missing']} rooms missing" for each in measured if each.get("missing")]
    if lost:
        return Goal(goal.subject, goal.what, goal.wanted, "; ".join(lost), MISSED)
    if not all(each is not None and figure in each for each in rows):
        return goal
    found, enough, more = judge(*rows)
    return Goal(goal.subject, goal.what, goal.wanted, found, _verdict(enough, more))


def _latency(results: Results, mode: str, rate: int, *cases: Case) -> tuple[Row | None, ...]:
    return tuple(row(results, "latency", mode=mode, rate=rate, case=case.name) for case in cases)


def _due(results: Results) -> Iterator[Goal]:
    for mode, rate, peer in CELLS:

        def shorter(ours: Row, theirs: Row) -> tuple[str, bool, bool]:
            found, kept = times(theirs, ours, "due_ms"), keeps_up(theirs)
            pace = "keeps up" if kept else f"does not keep up: {theirs['reached_per_second']['median']:,.0f}/s"
            return f"{shown(found)} shorter; it {pace}", found["median"] > 1, found["median"] >= (2 if kept else 10)

        what = f"due to resolved at {rate:,} rooms/s, {mode}, to {peer.name}: p50"
        goal = Goal("latency", what, "ahead; stretch >= 2x, >= 10x where it does not keep up")
        yield _judge(goal, _latency(results, mode, rate, OURS, peer), shorter, "due_ms")


def _due_tail(results: Results) -> Iterator[Goal]:
    for mode, rate, peer in CELLS:

        def tail(ours: Row, floor: Row, theirs: Row) -> tuple[str, bool, bool]:
            above, found = times(ours, floor, "due_ms", "p99"), times(theirs, ours, "due_ms", "p99")
            text = f"{shown(above)} raw etcd; {shown(found)} shorter than the peer"
            return text, above["median"] <= 1.5, found["median"] > 1

        what = f"due to resolved at {rate:,} rooms/s, {mode}, to {peer.name}: p99"
        goal = Goal("latency", what, "<= 1.5x raw etcd; stretch ahead of the peer")
        yield _judge(goal, _latency(results, mode, rate, OURS, FLOOR, peer), tail, "due_ms")


def _above_floor(results: Results) -> Iterator[Goal]:
    for rate in (300, 1000):

        def above(ours: Row, floor: Row) -> tuple[str, bool, bool]:
            found = times(ours, floor, "wait_ms")
            return f"{shown(found)} raw etcd", found["median"] <= 1.4, found["median"] <= 1.25

        what = f"register to resolved at {rate:,} rooms/s, both idle: p50"
        goal = Goal("latency", what, "<= 1.4x raw etcd; stretch <= 1.25x")
        yield _judge(goal, _latency(results, "both idle", rate, OURS, FLOOR), above)


def _cpu(results: Results) -> Iterator[Goal]:
    # the same loop on both sides: one that naps a millisecond between its looks
    slow = _latency(results, "both idle", 300, OURS_1MS, SGLANG_1MS, FLOOR)

    def cheaper(ours: Row, sglang: Row, floor: Row) -> tuple[str, bool, bool]:
        found, least = (ratio(each["cpu_us_by_round"], sglang["cpu_us_by_round"]) for each in (ours, floor))
        text = f"{shown(found)}: {ours['cpu_us_per_room']['all']:,.0f} us a room; raw etcd alone {shown(least)}"
        return text, found["median"] <= 0.55, found["median"] <= 0.48

    what = "CPU per room at 300 rooms/s, all processes, to SGLang's, both look each 1 ms"
    yield _judge(Goal("cpu", what, "<= 0.55x; stretch <= 0.48x"), slow, cheaper)
    fast = tuple(row(results, "saturation", case=name) for name in (saturation.WATCHED, SGLANG_1MS.name))

    def cheap(ours: Row, sglang: Row) -> tuple[str, bool, bool]:
        found = ratio(sglang["cpu_us_by_round"], ours["cpu_us_by_round"])
        text = f"{shown(found)} less: {ours['cpu_us_per_room']['all']:,.0f} us a room"
        return text, found["median"] >= 20, found["median"] >= 40

    what = "CPU per room at saturation, all processes, to SGLang's"
    yield _judge(Goal("cpu", what, ">= 20x less; stretch >= 40x"), fast, cheap)


def _saturation(results: Results) -> Iterator[Goal]:
    names = (saturation.WATCHED, SGLANG_1MS.name, saturation.FLOOR_WATCHED)

    def faster(ours: Row, sglang: Row, floor: Row) -> tuple[str, bool, bool]:
        by_round = "rooms_per_second_by_round"
        found, share = ratio(ours[by_round], sglang[by_round]), ratio(ours[by_round], floor[by_round])
        text = f"{shown(share)} raw etcd, {shown(found)} SGLang: {shown(ours['rooms_per_second'], '/s')}"
        return text, share["median"] >= 0.6 and found["median"] >= 40, share["median"] >= 0.8

    what = "rooms acknowledged a second, one prefill agent, one watching agent"
    goal = Goal("saturation", what, ">= 0.6x raw etcd and >= 40x SGLang; stretch >= 0.8x raw etcd")
    yield _judge(goal, tuple(row(results, "saturation", case=name) for name in names), faster)


def _fanout(results: Results) -> Iterator[Goal]:
    one, eight, most = (row(results, "fanout", agents=agents) for agents in (1, 8, 32))

    def wider(one: Row, eight: Row) -> tuple[str, bool, bool]:
        found = times(eight, one, "wait_ms")
        further = f"; 32 agents {shown(times(most, one, 'wait_ms'))}" if most else ""
        marked = " (the machine is saturated)" if most and most["saturated"] else ""
        return shown(found) + further + marked, found["median"] < 2, found["median"] <= 1.5

    what = "register to resolved, 8 watching agents against 1: p50"
    yield _judge(Goal("fanout", what, "< 2x; stretch <= 1.5x"), (one, eight), wider)


def _blocking(results: Results) -> Iterator[Goal]:
    alone = row(results, "blocking", mode="prefill spins", case=OURS_5MS.name)
    theirs = row(results, "blocking", mode="prefill spins", case=SGLANG_5MS.name)
    both = row(results, "blocking", mode="both spin", case=OURS.name)

    def shorter(ours: Row, sglang: Row) -> tuple[str, bool, bool]:
        found = times(sglang, ours, "wall_us")
        text = f"{shown(found)} shorter: {ours['wall_us']['p50']:.1f} us"
        return text, found["median"] >= 80, found["median"] >= 120

    what = "register() blocks the scheduler, spinning interpreter, one core free: p50"
    yield _judge(Goal("blocking", what, ">= 80x shorter; stretch >= 120x"), (alone, theirs), shorter)

    def short(ours: Row) -> tuple[str, bool, bool]:
        found = ours["wall_us"]["p50"]
        return f"{found:.1f} us", found <= 50, False

    what = "the same with both interpreters spinning on two cores: p50"
    yield _judge(Goal("blocking", what, "<= 50 us"), (both,), short)

    def look(ours: Row) -> tuple[str, bool, bool]:
        found = ours["look_us"]["p50"]
        return f"{found:.2f} us", found <= 3, found <= 1.5

    yield _judge(Goal("blocking", "resolve_nowait(), p50", "<= 3 us; stretch <= 1.5 us"), (both,), look)


def _restart(results: Results) -> Iterator[Goal]:
    measured = row(results, "restart", rooms=1_000_000)

    def fast(found: Row) -> tuple[str, bool, bool]:
        memory = f"{found['agent_bytes_per_room']['median']:,.0f} bytes a room"
        seconds = found["seconds"]["median"]
        return f"{shown(found['seconds'], ' s')}; {memory}", seconds <= 4, seconds <= 3

    what = "1,000,000 live rooms: a restarted agent serves again"
    yield _judge(Goal("restart", what, "<= 4 s; stretch <= 3 s"), (measured,), fast)


def _cell(results: Results) -> Iterator[Goal]:
    rows = results.get("scaling", {}).get("rows", ())
    simulated = {(found["rooms"], found["relayed"]): found for found in rows if found["sweep"] == "cell"}
    tried = {found["decodes"] for found in rows if found["sweep"] == "relays" and found["proxies"]}
    goal = Goal(
        "scaling", "simulated cell of 1,000 watching agents", "messages and CPU by part; 32 and 64 behind a relay"
    )
    if not simulated:
        yield goal
        return
    rates = sorted({rate for rate, _ in simulated})
    rate = rates[len(rates) // 2]
    cores = [digits(simulated[rate, relayed]["parts"]["etcd"]["cores"]) for relayed in (False, True)]
    found = f"[scaling.md](scaling.md): at {rate:,.0f} rooms/s etcd takes {cores[0]} cores, {cores[1]} behind relays"
    yield Goal(goal.subject, goal.what, goal.wanted, found, _verdict({32, 64} <= tried, False))


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
