"""What the goals make of results."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from benchmarks import latency, rig, saturation
from benchmarks.goals import CELLS, KEEPS_UP, MISSED, REACHED, STRETCH, UNKNOWN, Goal, digits, goals
from benchmarks.prose import CAUSES, TRIED
from benchmarks.tables import goal_table
from tests.unit.benchmarks.results import ROUNDS, changed, flat_out, made_up, rated

#: One cell of the comparison from when a room was due, and the other rate.
CELL = "due to resolved at 1,000 rooms/s, both spin, to SGLang, polls each 1 ms"


def verdicts(results: object) -> Counter[str]:
    assert isinstance(results, dict)
    return Counter(goal.verdict for goal in goals(results))


def goal_of(what: str, results: dict[str, Any]) -> Goal:
    (found,) = (goal for goal in goals(results) if goal.what == what)
    return found


def with_cell(case: str, **values: Any) -> dict[str, Any]:
    """Results that reach everything, but for one case's row at 1,000 rooms/s with both spinning."""
    results = made_up()
    for row in results["latency"]["rows"]:
        if (row["case"], row["mode"], row["rate"]) == (case, "both spin", 1000):
            row |= rated(case, mode="both spin", rate=1000, **values)
    return results


def test_nothing_is_claimed_when_nothing_was_measured() -> None:
    found = goals({})
    assert {goal.verdict for goal in found} == {UNKNOWN}
    assert all(not goal.found for goal in found) and len({goal.what for goal in found}) == len(found)


def test_every_cell_has_a_goal_of_its_own_when_rooms_are_counted_from_when_they_were_due() -> None:
    due = [goal.what for goal in goals({}) if goal.what.startswith("due to resolved")]
    assert len(CELLS) == 8 and len(due) == len(set(due)) == 2 * len(CELLS)
    for peer in (rig.SGLANG_1MS, rig.SGLANG_SESSION):
        assert sum(f"to {peer.name}:" in what for what in due) == len(CELLS)


def test_all_that_a_cell_compares_is_measured_when_everything_is_run() -> None:
    measured = {(mode, rate): set(cases) for mode, rate, cases in latency.FULL}
    for mode, rate, peer in CELLS:
        assert {rig.OURS, rig.FLOOR, peer} <= measured[mode, rate], (mode, rate)


def test_stretches_are_reached_when_results_reach_everything() -> None:
    found = {goal.what: goal.verdict for goal in goals(made_up())}
    without_stretch = {what for what, verdict in found.items() if verdict == REACHED}
    assert set(found.values()) == {REACHED, STRETCH}
    assert len(without_stretch) == 3, without_stretch  # both spinning, and two that have no stretch


@pytest.mark.parametrize(
    ("wait", "reached", "verdict"),
    [
        (0.9, 1000.0, MISSED),  # the peer is ahead
        (1.9, 1000.0, REACHED),
        (2.0, 1000.0 * KEEPS_UP, STRETCH),
        (9.0, 1000.0 * KEEPS_UP - 1, REACHED),
        (10.0, 1000.0 * KEEPS_UP - 1, STRETCH),
    ],
)
def test_more_is_wanted_when_the_peer_does_not_keep_up(wait: float, reached: float, verdict: str) -> None:
    found = goal_of(f"{CELL}: p50", with_cell(rig.SGLANG_1MS.name, wait=wait, reached=reached))
    assert found.verdict == verdict
    assert ("does not keep up: 979/s" in found.found) == (reached < 1000.0 * KEEPS_UP)


@pytest.mark.parametrize(("ours", "verdict"), [(1.3, STRETCH), (1.4, MISSED)])
def test_a_tail_is_judged_by_raw_etcd_s_when_the_peer_s_is_longer(ours: float, verdict: str) -> None:
    assert goal_of(f"{CELL}: p99", with_cell(rig.OURS.name, wait=ours)).verdict == verdict


def test_a_goal_is_missed_when_a_system_lost_a_room() -> None:
    for case in (rig.OURS, rig.SGLANG_1MS):
        results = made_up()
        for row in results["latency"]["rows"]:
            row["missing"] = 3 if row["case"] == case.name else 0
        found = goal_of(f"{CELL}: p50", results)
        assert (found.verdict, found.found) == (MISSED, f"{case.name}: 3 rooms missing")


def test_nothing_is_claimed_when_rows_were_kept_from_before_rooms_counted_from_when_they_were_due() -> None:
    results = made_up()
    for row in results["latency"]["rows"]:
        del row["due_ms"]
    due = [goal for goal in goals(results) if goal.what.startswith("due to resolved")]
    assert {(goal.verdict, goal.found) for goal in due} == {(UNKNOWN, "")}


def test_the_median_of_the_rounds_counts_when_rounds_differ() -> None:
    results = made_up()
    for row in results["latency"]["rows"]:
        if row["case"] == rig.SGLANG_1MS.name:
            row["due_ms"] = {**row["due_ms"], "p50_by_round": [0.5, 1.5, 40.0]}
    assert ROUNDS == 3
    assert goal_of(f"{CELL}: p50", results).found == "1.5x (0.5 to 40) shorter; it keeps up"


def test_the_stretch_is_missed_when_results_are_enough_for_the_goal_alone() -> None:
    slower = rated(rig.OURS_5MS.name, mode="prefill spins", wall=20.0)
    results = changed("blocking", rig.OURS_5MS.name, made_up(), **slower)
    what = "register() blocks the scheduler, spinning interpreter, one core free: p50"
    assert goal_of(what, results).verdict == REACHED


def test_a_goal_is_missed_when_one_of_its_conditions_is() -> None:
    few = flat_out(saturation.WATCHED, 35_000, 25.0)  # 43 times SGLang's, but less than 0.6 of raw etcd's
    assert verdicts(changed("saturation", saturation.WATCHED, made_up(), **few))[MISSED] == 1


def test_goals_are_missed_when_everything_is_slow() -> None:
    slow = rated(rig.OURS.name, wait=5.0, look=9.0, wall=900.0, cpu_us=500.0)
    kept = {name: slow[name] for name in ("wait_ms", "due_ms", "look_us", "wall_us", "cpu_us_by_round")}
    results = changed("latency", rig.OURS.name, changed("blocking", rig.OURS.name, made_up(), **kept), **kept)
    assert verdicts(results)[MISSED] == 2 * len(CELLS) + 2 + 2  # and twice above raw etcd; both spinning, looking
    shown = {verdict for *_, verdict in goal_table(results).rows}
    assert {f"{MISSED}: wake-ups", f"{MISSED}: taken cores"} <= shown


def test_every_cause_is_explained_when_a_goal_is_missed() -> None:
    assert all(f"*{cause}*" in TRIED for cause in CAUSES.values())
    assert all(any(word in goal.what for goal in goals({})) for word in CAUSES)


def test_the_simulated_cell_is_missed_when_no_relay_was_tried_with_64_agents() -> None:
    results = made_up()
    what = "simulated cell of 1,000 watching agents"
    assert goal_of(what, results).found.endswith("at 100 rooms/s etcd takes 6 cores, 2 behind relays")
    results["scaling"]["rows"].pop()
    assert goal_of(what, results).verdict == MISSED


def test_figures_have_three_digits_when_they_are_shown() -> None:
    assert [digits(value) for value in (0, 0.01234, 1.234, 12.34, 123.4, 12345.6)] == [
        "0",
        "0.0123",
        "1.23",
        "12.3",
        "123",
        "12,346",
    ]
