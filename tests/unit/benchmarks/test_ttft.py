"""The simulation behind the TTFT table: an example worked by hand, and what holds for any workload."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from benchmarks.ttft import published
from benchmarks.ttft.cost import CostModel, load_cost_model, save_cost_model
from benchmarks.ttft.figures import below, interval, published_run_rows, simulated_rows
from benchmarks.ttft.simulation import Outcome, simulate, simulate_late_binding
from benchmarks.ttft.stack import engine_environ
from benchmarks.ttft.workload import Workload, make_workload
from etcd_pd.reference.balance import POLICIES, Load, Policy, Request, create
from etcd_pd.reference.engine.lock_step import PassCost

COST = PassCost(longest=0.5, shared=0.25)

workloads = st.lists(
    st.tuples(st.floats(0, 50, allow_nan=False), st.integers(1, 3500), st.integers(0, 2**63 - 1)),
    min_size=1,
    max_size=40,
).map(
    lambda rows: Workload(
        tuple(sorted(row[0] for row in rows)), tuple(row[1] for row in rows), tuple(row[2] for row in rows)
    )
)
costs = st.builds(PassCost, longest=st.floats(0, 1e-3), shared=st.floats(1e-6, 1e-3))


def test_by_hand() -> None:
    """Two ranks; a pass takes prompts below 8 tokens together, and 0.5 s a token of the longest + 0.25 s of each."""
    workload = Workload((0.0, 1.0, 1.5, 2.0, 2.5), (4, 2, 6, 1, 1), (0, 1, 2, 4, 6))
    outcome = simulate(workload, create("follow_bootstrap_room"), COST, pass_tokens=8, dp_size=2)
    assert outcome.ranks == (0, 1, 0, 0, 0)
    assert outcome.passes == (
        ((4, 0), 0.0, 3.0),  # alone; who comes meanwhile waits, on the idle rank too
        ((7, 2), 3.0, 8.75),  # 7 * 0.5 + 9 * 0.25; the fifth prompt would be the eighth token
        ((1, 0), 8.75, 9.5),
    )
    assert outcome.ttfts == (3.0, 7.75, 7.25, 6.75, 7.0)
    assert outcome.seconds == 9.5


def test_a_prompt_that_comes_when_a_pass_ends_is_in_the_next() -> None:
    workload = Workload((0.0, 3.0), (4, 4), (0, 2))
    assert simulate(workload, create("round_robin"), COST, dp_size=2).ttfts == (3.0, 3.0)


@given(workload=workloads, cost=costs, name=st.sampled_from(sorted(POLICIES)), dp_size=st.integers(1, 5))
def test_every_prompt_is_computed_once_and_ranks_keep_step(
    workload: Workload, cost: PassCost, name: str, dp_size: int
) -> None:
    outcome = simulate(workload, create(name), cost, pass_tokens=5000, dp_size=dp_size)
    _check(outcome, workload, dp_size)
    for tokens, start, end in outcome.passes:
        assert end == start + cost.seconds(tokens)
        assert all(part <= 5000 for part in tokens)
    by_rank = [0] * dp_size
    for dp_rank, length in zip(outcome.ranks, workload.lengths, strict=True):
        by_rank[dp_rank] += length
    assert by_rank == [sum(tokens[dp_rank] for tokens, _, _ in outcome.passes) for dp_rank in range(dp_size)]


@given(workload=workloads, cost=costs, even=st.booleans())
def test_late_binding_loses_no_prompt(workload: Workload, cost: PassCost, even: bool) -> None:
    _check(simulate_late_binding(workload, cost, pass_tokens=5000, even=even), workload, published.DP_SIZE)


def _check(outcome: Outcome, workload: Workload, dp_size: int) -> None:
    assert len(outcome.ttfts) == len(outcome.ranks) == len(workload.arrivals)
    assert sum(sum(tokens) for tokens, _, _ in outcome.passes) == sum(workload.lengths)
    ends = [end for _, _, end in outcome.passes]
    assert all(start >= end for (_, start, _), end in zip(outcome.passes[1:], ends, strict=False))
    assert all(len(tokens) == dp_size and sum(tokens) > 0 for tokens, _, _ in outcome.passes)
    for arrival, ttft in zip(workload.arrivals, outcome.ttfts, strict=True):
        assert any(math.isclose(arrival + ttft, end, abs_tol=1e-9) for end in ends)


def test_policies_see_the_dispatcher_s_loads() -> None:
    seen: list[list[Load]] = []

    def rule(request: Request, loads: object, serving: object) -> int:
        assert isinstance(loads, list)
        seen.append(loads)
        return request.sequence % 2

    simulate(Workload((0.0, 1.0, 1.0), (4, 5, 6), (0, 0, 0)), Policy("test", rule), COST, dp_size=2)
    assert seen == [
        [Load(), Load()],
        [Load(1, 4, waiting_tokens=0), Load()],  # it is being computed
        [Load(1, 4, waiting_tokens=0), Load(1, 5, waiting_tokens=5)],
    ]


@given(seed=st.integers(0, 50), rate=st.sampled_from([2.0, 3.2, math.inf]))
def test_shortest_wait_is_round_robin_where_prompts_are_equal(seed: int, rate: float) -> None:
    workload, cost = make_workload(seed, rate, count=60), load_cost_model().pass_cost()
    mine, theirs = (sum(simulate(workload, create(name), cost).ttfts) for name in ("shortest_wait", "round_robin"))
    assert mine <= theirs * (1 + 1e-9)


def test_no_policy_comes_below_the_shortest_passes() -> None:
    cost = load_cost_model().pass_cost()
    for seed in range(3):
        workload = make_workload(seed, 4.0, 0.1, count=100)
        shortest = sum(simulate_late_binding(workload, cost, even=True).ttfts)
        assert all(shortest <= sum(simulate(workload, policy, cost).ttfts) for policy in POLICIES.values())


def test_workloads_are_the_generator_s() -> None:
    """numpy's global generator, asked in the order of SGLang's load generator."""
    np = pytest.importorskip("numpy")
    np.random.seed(7)
    lengths = np.random.randint(350, 3501, size=20).tolist()
    np.random.randint(1, 6, size=20)
    gaps = [np.random.exponential(1.0 / 2.6) for _ in range(20)]
    made = make_workload(7, 2.6, 0.1, count=20)
    assert made.lengths == tuple(lengths)
    assert made.arrivals == pytest.approx([sum(gaps[:index]) for index in range(20)])
    assert make_workload(7, 2.6, 0.1, rooms_seed=8, count=20).arrivals == made.arrivals
    assert make_workload(7, 2.6, 0.1, rooms_seed=8, count=20).rooms != made.rooms
    everything = make_workload(7, math.inf, count=5)
    assert (everything.arrivals, everything.lengths) == ((0.0,) * 5, (3500,) * 5)


def test_the_parameters_are_what_a_pass_makes_of_them(tmp_path: Path) -> None:
    model = CostModel(saturated_requests_per_second=3.0, unloaded_prefill_seconds=0.8)
    cost = model.pass_cost()
    assert cost.seconds((3500, 0, 0, 0)) == pytest.approx(0.8)
    assert cost.seconds((3500 * 4,) * 4) == pytest.approx(16 / 3.0)
    with pytest.raises(ValueError, match="negative"):
        CostModel(3.0, 1.5).pass_cost()
    with pytest.raises(ValueError, match="negative"):
        CostModel(3.0, 0.2).pass_cost()
    save_cost_model(model, {"source": "a test"}, tmp_path / "model.json")
    assert load_cost_model(tmp_path / "model.json") == model
    assert json.loads((tmp_path / "model.json").read_text())["source"] == "a test"


def test_the_engine_gets_scaled_costs_when_time_is_scaled() -> None:
    model = CostModel(3.0, 0.8)
    environ = engine_environ(model, time_scale=4.0)
    rates = [float(environ[f"ETCD_PD_EMULATED_{name}_TOKENS_PER_SECOND"]) for name in ("PREFILL", "SHARED")]
    assert sum(3500 / rate for rate in rates) == pytest.approx(0.8 / 4)


def test_figures_pair_seeds() -> None:
    assert below([1.0, 2.0], [2.0, 4.0]) == {"mean": 50.0, "low": 50.0, "high": 50.0, "seeds_not_above": 2}
    assert below([3.0, 3.0], [2.0, 4.0])["seeds_not_above"] == 1
    found = interval([1.0, 2.0, 3.0])
    assert found["low"] <= found["mean"] == 2.0 <= found["high"]


def test_rows_are_complete_and_say_that_compute_is_emulated() -> None:
    model = load_cost_model()
    rows = simulated_rows(model, range(1, 3)) + published_run_rows(model, 2)
    assert {row["compute"] for row in rows} == {"emulated"}
    assert {row["rate"] for row in rows} == {1.0, 2.0, 2.6, 3.2, 4.0, "inf"}
    assert {row["policy"] for row in rows if row["kind"] == "published arrivals"} == set(POLICIES)
    for row in rows:
        if row["policy"] == "round_robin":
            assert row["mean_below_round_robin_percent"]["mean"] == 0.0
