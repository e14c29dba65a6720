"""From seeds to figures: every policy serves the same requests of each seed, so policies are compared seed by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from etcd_pd.reference.balance import POLICIES

from . import published
from .cost import CostModel
from .simulation import Outcome, simulate, simulate_late_binding
from .workload import Workload, make_workload

#: ``--random-range-ratio`` of the two workloads: the published one, and prompts of 350 to 3500 tokens.
RANGE_RATIOS = {"equal": 1.0, "mixed": 0.1}
#: What is compared with: what the published table compares with, and what it reached.
BASELINES = ("follow_bootstrap_room", "round_robin")
#: No policies: what more information would give.
LATE_BINDING, SHORTEST_PASSES = "late binding", "shortest passes"

Row = dict[str, Any]


def simulated_rows(model: CostModel, seeds: Sequence[int]) -> list[Row]:
    """One row for each workload, rate and policy or bound."""
    rows = []
    for name, ratio in RANGE_RATIOS.items():
        for rate in published.RATES:
            served = [_serve_all(model, make_workload(seed, rate, ratio)) for seed in seeds]
            rows += [_row(name, rate, who, served) for who in served[0]]
    return rows


def published_run_rows(model: CostModel, draws: int) -> list[Row]:
    """The arrivals of the published run: only the rooms, which are not known, differ from draw to draw."""
    rows = []
    for rate in published.RATES:
        served = [_serve_all(model, make_workload(published.SEED, rate, rooms_seed=draw)) for draw in range(draws)]
        rows += [{**_row("equal", rate, who, served), "kind": "published arrivals"} for who in POLICIES]
    return rows


def _serve_all(model: CostModel, workload: Workload) -> Mapping[str, Outcome]:
    cost = model.pass_cost()
    outcomes = {name: simulate(workload, policy, cost) for name, policy in POLICIES.items()}
    outcomes[LATE_BINDING] = simulate_late_binding(workload, cost)
    outcomes[SHORTEST_PASSES] = simulate_late_binding(workload, cost, even=True)
    return outcomes


def _row(workload: str, rate: float, who: str, served: Sequence[Mapping[str, Outcome]]) -> Row:
    means, p99s = ({name: figures(name, served, of) for name in (who, *BASELINES)} for of in (mean_ms, p99_ms))
    row: Row = {
        "kind": "simulated",
        "compute": "emulated",
        "workload": workload,
        "rate": spell(rate),
        "policy": who,
        "seeds": len(served),
        "mean_ttft_ms": interval(means[who]),
        "p99_ttft_ms": interval(p99s[who]),
        "requests_per_second": interval([len(each[who].ttfts) / each[who].seconds for each in served], 3),
    }
    for baseline in BASELINES:
        row[f"mean_below_{baseline}_percent"] = below(means[who], means[baseline])
        row[f"p99_below_{baseline}_percent"] = below(p99s[who], p99s[baseline])
    return row


def figures(name: str, served: Sequence[Mapping[str, Outcome]], of: Any) -> list[float]:
    """One figure a seed."""
    return [of(each[name].ttfts) for each in served]


def mean_ms(ttfts: Sequence[float]) -> float:
    """Mean in milliseconds."""
    return float(np.mean(ttfts)) * 1e3


def p99_ms(ttfts: Sequence[float]) -> float:
    """99th percentile in milliseconds, interpolated as the load generator does."""
    return float(np.percentile(ttfts, 99)) * 1e3


def interval(values: Sequence[float], digits: int = 1) -> dict[str, float]:
    """Mean over the seeds and its 95 % confidence interval (bootstrap)."""
    low, high = _bootstrap(np.array(values)[:, None], lambda sums: sums[:, 0] / len(values))
    return {"mean": _round(np.mean(values), digits), "low": _round(low, digits), "high": _round(high, digits)}


def below(values: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    """By how many percent the mean is below the other's, seed by seed; and in how many seeds it is not above."""
    pairs = np.array([values, others]).T
    low, high = _bootstrap(pairs, lambda sums: 100 * (1 - sums[:, 0] / sums[:, 1]))
    whole = 100 * (1 - np.sum(values) / np.sum(others))
    # a millionth apart is the same: floating point adds up in another order
    not_above = sum(value <= other * (1 + 1e-6) for value, other in zip(values, others, strict=True))
    return {"mean": _round(whole, 2), "low": _round(low, 2), "high": _round(high, 2), "seeds_not_above": not_above}


def spell(rate: float) -> float | str:
    """A rate in JSON."""
    return "inf" if math.isinf(rate) else rate


def _bootstrap(values: Any, of_sums: Any) -> tuple[float, float]:
    """95 % interval of a function of column sums, over 4000 draws of the rows; always the same draws."""
    drawn = np.random.default_rng(0).integers(0, len(values), size=(4000, len(values)))
    low, high = np.percentile(of_sums(values[drawn].sum(axis=1)), [2.5, 97.5])
    return float(low), float(high)


def _round(value: Any, digits: int) -> float:
    # adding 0.0 makes 0.0 of -0.0
    return round(float(value), digits) + 0.0
