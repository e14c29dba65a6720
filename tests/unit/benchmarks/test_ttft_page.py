"""docs/ttft.md follows from the results, says what is emulated, and says which goals are not reached."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest

from benchmarks import harness
from benchmarks.ttft.cost import PATH, load_cost_model
from benchmarks.ttft.figures import published_run_rows, simulated_rows
from benchmarks.ttft.page import page, plot
from benchmarks.ttft.run import DRAWS, NAME, SEEDS
from benchmarks.ttft.tables import BELOW_FOLLOW, Results, full_stack, full_stack_reductions, goals, not_predicted

STACK_ROW = {
    "kind": "stack",
    "compute": "emulated",
    "workload": "equal",
    "rate": 3.2,
    "seed": 1,
    "p99_ttft_ms": 2000.0,
    "simulated_p99_ttft_ms": 1900.0,
}


def stack_row(policy: str, mean: float, simulated: float) -> dict[str, Any]:
    return {**STACK_ROW, "policy": policy, "mean_ttft_ms": mean, "simulated_mean_ttft_ms": simulated}


@pytest.fixture(scope="module")
def results() -> Results:
    model = load_cost_model()
    rows = simulated_rows(model, range(1, 3)) + published_run_rows(model, 2)
    rows += [stack_row("follow_bootstrap_room", 1100.0, 1000.0), stack_row("round_robin", 550.0, 500.0)]
    found = {"machine": {"cpu": "a CPU", "cores": 2}, "versions": {"etcd_pd": "1"}, "rows": rows}
    return Results(json.loads(json.dumps(found)))


def test_the_page_says_that_compute_is_emulated_where_figures_are(results: Results) -> None:
    text = page(results, json.loads(PATH.read_text()))
    for section in re.split(r"^## ", text, flags=re.MULTILINE):
        assert "|" not in section or "emulated" in section or section.startswith("Goals"), section[:80]
    assert "{" not in text


@pytest.mark.parametrize(("percent", "verdict"), [(19.9, "**not reached**"), (20.0, "reached")])
def test_goals_are_judged_by_the_results(results: Results, percent: float, verdict: str) -> None:
    changed = Results(copy.deepcopy(results.facts))
    for rate in (2.6, 3.2, 4.0):
        changed.simulated("mixed", rate, "shortest_wait")["mean_below_round_robin_percent"]["mean"] = percent
    (line,) = (line for line in goals(changed).splitlines() if "20 % below" in line)
    assert f"| {verdict} |" in line


def test_the_full_stack_stands_beside_its_simulation(results: Results) -> None:
    assert full_stack(results).count("+10.0 % (+10.0 to +10.0)") == 2
    assert "`round_robin` is 50.0 % below `follow_bootstrap_room`" in full_stack_reductions(results)


def test_the_fit_stands_beside_the_published_table_when_the_page_is_opened(results: Results) -> None:
    opening = page(results, json.loads(PATH.read_text())).partition("## Goals")[0]
    assert "3 req/s where saturated, 0.825 s for a\nprompt alone, a root mean square of 0.11" in opening
    assert "23.0 %" in opening and "53.9 %" in opening


@pytest.mark.parametrize(("low", "high", "said"), [(0.0, 100.0, "at 6 of the 6"), (99.0, 100.0, "at none of the 6")])
def test_published_reductions_are_counted_when_the_interval_has_them(
    results: Results, low: float, high: float, said: str
) -> None:
    changed = Results(copy.deepcopy(results.facts))
    for rate in (1.0, 2.0, 2.6, 3.2, 4.0, "inf"):
        changed.simulated("equal", rate, "round_robin")[BELOW_FOLLOW] |= {"low": low, "high": high}
    assert said in not_predicted(changed)


def test_intervals_are_over_twenty_seeds_or_more_when_everything_is_run() -> None:
    assert len(SEEDS) >= 20 and DRAWS >= 20


def test_the_plot_draws(results: Results) -> None:
    left, right = plot(results).axes
    assert "emulated" in left.get_title() and "emulated" in right.get_title()


def test_the_committed_page_is_what_the_committed_results_say() -> None:
    found = harness.load(NAME)
    if found is None:
        pytest.skip("not measured yet")
    assert (harness.ROOT / "docs" / "ttft.md").read_text() == page(Results(found), json.loads(PATH.read_text()))
