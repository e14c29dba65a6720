"""``python -m benchmarks [--quick] [NAME ...]``: measure, keep the results, write docs/performance.md from them."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping

from rich.console import Console

from . import blocking, cluster, fanout, harness, latency, profile, report, restart, rounds, saturation
from .harness import Row
from .rounds import Plan, since

SUBJECTS: Mapping[str, Callable[[Plan], list[Row]]] = {
    "blocking": blocking.measure,
    "latency": latency.measure,
    "saturation": saturation.measure,
    "fanout": fanout.measure,
    "cluster": cluster.measure,
    "restart": restart.measure,
    "profile": profile.measure,
}
#: Need SGLang's own environment.
BESIDE_SGLANG = {"blocking", "latency", "saturation"}
#: Not part of a quick run unless named.
NOT_QUICK = {"profile"}
#: Where a quick run keeps what it measured.
QUICK_RESULTS = harness.SCRATCH / "results"


def main() -> int:
    """Measure what was named, or everything."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SUBJECTS)}; none: all of them")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and cases, printed and not kept")
    parser.add_argument("--rounds", type=int, help="how often each case is run")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page from the kept results")
    options = parser.parse_args()
    console = Console()
    if options.page:
        console.print(f"{report.write_page().relative_to(harness.ROOT)}: written")
        return 0
    names = options.names or [name for name in SUBJECTS if name not in NOT_QUICK or not options.quick]
    unknown = [name for name in names if name not in SUBJECTS]
    if unknown:
        parser.error(f"no benchmark is called {', '.join(unknown)}: there are {', '.join(SUBJECTS)}")
    if BESIDE_SGLANG & set(names) and not harness.SGLANG_PYTHON.exists():
        parser.error("SGLang's own code is measured in .venv-sglang: scripts/sglang-env makes it")
    plan = rounds.QUICK if options.quick else rounds.FULL
    if options.rounds:
        plan = Plan(options.rounds, plan.seconds, plan.quick)
    _measure(names, plan, console)
    return 0


def _measure(names: list[str], plan: Plan, console: Console) -> None:
    directory = QUICK_RESULTS if plan.quick else harness.RESULTS
    machine, versions = harness.machine(), harness.versions()
    console.print("machine: " + ", ".join(f"{name} {value}" for name, value in machine.items()), highlight=False)
    console.print("versions: " + ", ".join(f"{name} {value}" for name, value in versions.items()), highlight=False)
    began = time.monotonic()
    for name in names:
        started = time.monotonic()
        path = harness.save(name, SUBJECTS[name](plan), directory)
        console.print(f"{name}: {since(started)}, {path.relative_to(harness.ROOT)}", highlight=False)
    measured = report.load_all(directory)
    report.show({name: measured[name] for name in names} if plan.quick else measured, console)
    if not plan.quick:
        console.print(f"{report.write_page().relative_to(harness.ROOT)}: written")
    console.print(f"{len(names)} benchmarks in {since(began)}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
