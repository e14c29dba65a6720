"""What the goals make of results."""

from __future__ import annotations

from collections import Counter

from benchmarks import rig, saturation
from benchmarks.goals import MISSED, REACHED, STRETCH, UNKNOWN, digits, goals
from tests.unit.benchmarks.results import changed, flat_out, made_up, rated


def verdicts(results: object) -> Counter[str]:
    assert isinstance(results, dict)
    return Counter(goal.verdict for goal in goals(results))


def test_nothing_is_claimed_of_what_was_not_measured() -> None:
    found = goals({})
    assert {goal.verdict for goal in found} == {UNKNOWN}
    assert all(not goal.found for goal in found) and len(found) == 13


def test_what_reaches_everything_reaches_everything() -> None:
    found = {goal.what: goal.verdict for goal in goals(made_up())}
    without_stretch = {what for what, verdict in found.items() if verdict == REACHED}
    assert set(found.values()) == {REACHED, STRETCH}
    assert len(without_stretch) == 3, without_stretch  # both p99 and the cluster


def test_a_ratio_is_taken_round_by_round() -> None:
    goal = goals(made_up())[0]
    assert goal.found == "200x (200 to 200) shorter: 10.0 us, 9.0 us of CPU without the clocks"


def test_enough_for_the_goal_is_not_enough_for_the_stretch() -> None:
    results = made_up()
    slower = rated(rig.OURS_5MS.name, mode="prefill spins", wall=15.0)
    assert goals(changed("blocking", rig.OURS_5MS.name, results, **slower))[0].verdict == REACHED


def test_a_goal_with_two_conditions_needs_both() -> None:
    few = flat_out(saturation.WATCHED, 39_000, 25.0)  # 48 times SGLang's, but fewer than 40,000
    found = verdicts(changed("saturation", saturation.WATCHED, made_up(), **few))
    assert found[MISSED] == 1


def test_slow_is_not_reached() -> None:
    slow = rated(rig.OURS.name, wait=5.0, look=9.0, wall=900.0, cpu_us=500.0)
    kept = {name: slow[name] for name in ("wait_ms", "look_us", "wall_us", "cpu_us_by_round")}
    results = changed("latency", rig.OURS.name, changed("blocking", rig.OURS.name, made_up(), **kept), **kept)
    assert verdicts(results)[MISSED] == 6  # both spinning, looking, four waits


def test_figures_have_three_digits() -> None:
    assert [digits(value) for value in (0, 0.01234, 1.234, 12.34, 123.4, 12345.6)] == [
        "0",
        "0.0123",
        "1.23",
        "12.3",
        "123",
        "12,346",
    ]
