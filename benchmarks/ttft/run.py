"""The whole experiment: ``python -m benchmarks.ttft.run`` writes ``benchmarks/results/ttft.json``, in about 12 minutes.

``--quick`` does a little of everything in less than a minute, and writes below build/.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from etcd_pd.cli.console import make_console

from .. import harness
from . import published
from .cost import load_cost_model
from .figures import Row, published_run_rows, simulated_rows
from .stack import Case, stack_rows

NAME = "ttft"
#: Seeds of the simulation, of which the full stack repeats the first ones.
SEEDS, STACK_SEEDS = range(1, 41), range(1, 4)
#: Draws of the rooms for the arrivals of the published run.
DRAWS = 40
CASES = (
    *(Case(policy, "equal", 2.6) for policy in ("follow_bootstrap_room", "round_robin", "total_tokens")),
    *(Case(policy, "equal", 3.2) for policy in ("follow_bootstrap_room", "round_robin")),
    *(Case("shortest_wait", "equal", rate) for rate in (2.6, 3.2)),
    *(Case(policy, "mixed", 4.0) for policy in ("round_robin", "shortest_wait")),
)
_QUICK_CASES, _QUICK_PROMPTS, _QUICK_SEEDS = (Case("shortest_wait", "equal", 3.2),), 40, range(1, 6)


def main() -> int:
    """Run it, print it, write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seeds, and one short run of the full stack")
    parser.add_argument("--no-stack", action="store_true", help="keep the full stack's rows of the last run")
    arguments = parser.parse_args()
    console, model = make_console(), load_cost_model()
    directory = harness.SCRATCH if arguments.quick else harness.RESULTS
    rows = simulated_rows(model, _QUICK_SEEDS if arguments.quick else SEEDS)
    rows += published_run_rows(model, len(_QUICK_SEEDS) if arguments.quick else DRAWS)
    for workload in ("equal", "mixed"):
        console.print(_table([row for row in rows if row["workload"] == workload], workload))
    if arguments.no_stack:
        last = harness.load(NAME, directory) or {"rows": []}
        rows += [row for row in last["rows"] if row["kind"] == "stack"]
    elif arguments.quick:
        rows += _measure(console, stack_rows(model, _QUICK_CASES, [1], _QUICK_PROMPTS))
    else:
        rows += _measure(console, stack_rows(model, CASES, STACK_SEEDS))
    console.print(f"{harness.save(NAME, rows, directory, cost_model=asdict(model))}", soft_wrap=True)
    return 0


def _measure(console: Console, rows: Iterable[Row]) -> list[Row]:
    found = []
    for row in rows:
        console.print(
            f"full stack, emulated compute: {row['policy']} {row['workload']} {row['rate']}/s seed {row['seed']}: "
            f"mean TTFT {row['mean_ttft_ms']:.0f} ms, simulated {row['simulated_mean_ttft_ms']:.0f} ms",
            soft_wrap=True,
        )
        found.append(row)
    return found


def _table(rows: Sequence[Row], workload: str) -> Table:
    table = Table(title=f"mean TTFT in ms, {workload} lengths, simulated with emulated compute")
    table.add_column("req/s")
    names = [name for name in dict.fromkeys(row["policy"] for row in rows)]
    if workload == "equal":
        table.add_column("published: follow, balanced", justify="right")
    for name in names:
        table.add_column(name, justify="right")
    for rate in dict.fromkeys(row["rate"] for row in rows):
        cells = {
            row["policy"]: f"{row['mean_ttft_ms']['mean']:.0f}"
            for row in rows
            if row["rate"] == rate and row["kind"] == "simulated"
        }
        pair = [f"{published.FOLLOWS_ROOM[float(rate)]:.0f}, {published.BALANCED[float(rate)]:.0f}"]
        table.add_row(str(rate), *(pair if workload == "equal" else []), *(cells[name] for name in names))
    return table


if __name__ == "__main__":
    sys.exit(main())
