"""Fit the cost model: ``python -m benchmarks.ttft.fit`` prints what it finds and writes ``cost_model.json``.

Only the published column in which the rank follows the room is looked at. Arrivals are those of the published run (the
load generator's seed), the rooms of that run are unknown: the model's column is the mean over many draws of them. The
two parameters minimise the root mean square of the six logarithmic errors.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from etcd_pd.reference.balance import create
from etcd_pd.reference.engine.lock_step import PassCost

from . import published
from .cost import PATH, CostModel, save_cost_model
from .simulation import Cost, simulate
from .workload import Workload, make_workload

#: Draws of the rooms while searching, and for the last step and the residuals.
_COARSE_DRAWS, DRAWS = 6, 40
#: What is searched: saturated requests per second, unloaded prefill seconds.
_THROUGHPUTS = tuple(2.4 + 0.2 * step for step in range(15))
_UNLOADED = tuple(0.4 + 0.1 * step for step in range(12))


@dataclass(frozen=True)
class Structure:
    """A way in which two parameters can decide what a pass costs; the first one is used, the others are for comparison.

    Attributes:
        name: what it is called.
        cost: the cost of a pass; ValueError where the parameters do not go together.
        pass_tokens: bound of a rank's part of a pass.
    """

    name: str
    cost: Callable[[CostModel], Cost]
    pass_tokens: int


@dataclass(frozen=True)
class _FixedPassCost:
    fixed: float
    longest: float

    def seconds(self, tokens: Sequence[int]) -> float:
        return self.fixed + self.longest * max(tokens)


def _fixed(pass_tokens: int) -> Callable[[CostModel], Cost]:
    """Nothing is shared, and each pass takes a fixed time besides."""

    def cost(model: CostModel) -> Cost:
        prompts = math.ceil(pass_tokens / published.PROMPT_TOKENS) - 1
        full = prompts * published.DP_SIZE / model.saturated_requests_per_second
        longest = (full - model.unloaded_prefill_seconds) / (prompts - 1) / published.PROMPT_TOKENS
        fixed = model.unloaded_prefill_seconds - longest * published.PROMPT_TOKENS
        if fixed < 0 or longest < 0:
            raise ValueError(f"{model} would take negative time")
        return _FixedPassCost(fixed, longest)

    return cost


def _shared(model: CostModel) -> PassCost:
    return model.pass_cost()


#: ``--chunked-prefill-size`` over the ranks; see :data:`.published.PASS_TOKENS` for the other bound.
_CHUNK = 160_000 // published.DP_SIZE
STRUCTURES = (
    Structure("longest rank + shared", _shared, published.PASS_TOKENS),
    Structure("longest rank + fixed", _fixed(published.PASS_TOKENS), published.PASS_TOKENS),
    Structure("longest rank + shared", _shared, _CHUNK),
    Structure("longest rank + fixed", _fixed(_CHUNK), _CHUNK),
)


def column(structure: Structure, model: CostModel, draws: int) -> dict[float, float]:
    """Mean TTFT in milliseconds by rate where the rank follows the room."""
    policy, cost = create("follow_bootstrap_room"), structure.cost(model)
    return {
        rate: 1e3
        * statistics.mean(
            statistics.mean(simulate(_published_run(rate, draw), policy, cost, structure.pass_tokens).ttfts)
            for draw in range(draws)
        )
        for rate in published.RATES
    }


def error(found: dict[float, float]) -> float:
    """Root mean square of the logarithmic errors against the published column: 0.1 is about 10 %."""
    logs = [math.log(found[rate] / value) for rate, value in published.FOLLOWS_ROOM.items()]
    return math.sqrt(statistics.mean(value**2 for value in logs))


def fit(structure: Structure) -> CostModel:
    """The best parameters: a grid, then finer ones around the best point."""
    best = _best(structure, itertools.product(_THROUGHPUTS, _UNLOADED), _COARSE_DRAWS)
    for step, draws in ((0.05, _COARSE_DRAWS), (0.02, DRAWS)):
        offsets = [step * number for number in (-2, -1, 0, 1, 2)]
        near = itertools.product(
            (best.saturated_requests_per_second + offset for offset in offsets),
            (best.unloaded_prefill_seconds + offset / 2 for offset in offsets),
        )
        best = _best(structure, near, draws)
    return CostModel(round(best.saturated_requests_per_second, 3), round(best.unloaded_prefill_seconds, 3))


def _best(structure: Structure, points: Any, draws: int) -> CostModel:
    found: dict[CostModel, float] = {}
    for throughput, unloaded in points:
        model = CostModel(throughput, unloaded)
        try:
            found[model] = error(column(structure, model, draws))
        except ValueError:
            continue
    return min(found, key=found.__getitem__)


_RUNS: dict[tuple[float, int], Workload] = {}


def _published_run(rate: float, draw: int) -> Workload:
    if (rate, draw) not in _RUNS:
        _RUNS[rate, draw] = make_workload(published.SEED, rate, rooms_seed=draw)
    return _RUNS[rate, draw]


def main() -> int:
    """Fit, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=PATH, help="file to write")
    arguments = parser.parse_args()
    rows = []
    for structure in STRUCTURES:
        model = fit(structure)
        found = column(structure, model, DRAWS)
        rows.append(
            {
                "structure": structure.name,
                "pass_tokens": structure.pass_tokens,
                **asdict(model),
                "rms_log_error": round(error(found), 4),
                "mean_ttft_ms": {f"{rate:g}": round(value, 1) for rate, value in found.items()},
            }
        )
    _print(rows)
    chosen = CostModel(rows[0]["saturated_requests_per_second"], rows[0]["unloaded_prefill_seconds"])
    facts = {
        "source": "fitted on the rank-follows-room column of SGLang pull request 14726 alone (benchmarks/ttft/fit.py)",
        "pass_tokens": published.PASS_TOKENS,
        "arrivals_seed": published.SEED,
        "room_draws": DRAWS,
        "fits": rows,
    }
    save_cost_model(chosen, facts, arguments.output)
    return 0


def _print(rows: Sequence[dict[str, Any]]) -> None:
    table = Table(title="mean TTFT in ms, rank follows room: published, and emulated compute fitted to it")
    for name in (
        "structure",
        "pass tokens",
        "req/s",
        "unloaded s",
        "rms",
        *(f"{rate:g}/s" for rate in published.RATES),
    ):
        table.add_column(name, justify="left" if name == "structure" else "right")
    table.add_row("published", "", "", "", "", *(f"{value:.0f}" for value in published.FOLLOWS_ROOM.values()))
    for row in rows:
        errors = [
            f"{value:.0f} ({100 * (value / published.FOLLOWS_ROOM[float(rate)] - 1):+.0f} %)"
            for rate, value in row["mean_ttft_ms"].items()
        ]
        parameters = [row["saturated_requests_per_second"], row["unloaded_prefill_seconds"], row["rms_log_error"]]
        table.add_row(row["structure"], str(row["pass_tokens"]), *map(str, parameters), *errors)
    Console(width=170).print(table)


if __name__ == "__main__":
    sys.exit(main())
