"""The planning rule for one cluster: ``python -m benchmarks.growth.plan --rooms 500 --decodes 2000``.

It measures nothing: costs are those of benchmarks/results/scaling.json, hardware is what is said here, else what the
results assume.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, replace

from rich.console import Console
from rich.table import Table

from ..harness import load, percentiles
from .derived import costs_of, hardware_of
from .figures import number, percent
from .model import Hardware, advise, cell
from .simulation import simulate

_ROOMS = 3000


def main() -> int:
    """Print how busy each resource would be, and the rule; 1 where nothing was measured, 2 where no rule helps."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth.plan", description=__doc__)
    parser.add_argument("--rooms", type=float, required=True, help="rooms a second, of the whole cluster")
    parser.add_argument("--decodes", type=int, required=True, help="decode agents, of the whole cluster")
    for name in Hardware.__dataclass_fields__:
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, help="see the page's assumptions")
    options = vars(parser.parse_args())
    results = load("scaling")
    if results is None:
        print("nothing was measured yet: python -m benchmarks.growth.run", file=sys.stderr)
        return 1
    costs, hardware = costs_of(results["rows"]), hardware_of(results["rows"])
    hardware = replace(hardware, **{name: options[name] for name in asdict(hardware) if options[name] is not None})
    advice = advise(options["rooms"], options["decodes"], costs, hardware)
    choices = {(1, False), (1, True), (advice.cells, False), (advice.cells_with_proxies, True)}
    shown = Table("cells", "proxies", "how busy", "p50 / p99 ms, simulated")
    for cells, proxies in sorted((cells, proxies) for cells, proxies in choices if cells):
        at = cell(options["rooms"] / cells, options["decodes"] / cells, hardware, proxies)
        found = simulate(at, costs, hardware, _ROOMS)
        waits = percentiles([seconds * 1e3 for seconds in found.latencies]) if found.latencies else None
        busy = ", ".join(f"{name} {percent(share)}" for name, share in found.shares.items())
        told = f"{number(waits['p50'])} / {number(waits['p99'])}" if waits else "cannot"
        shown.add_row(str(cells), "yes" if proxies else "no", busy, told)
    console = Console()
    console.print(shown)
    console.print(f"[bold]{advice.rule}[/bold], so that nothing is busier than {percent(hardware.planned)}")
    return 2 if advice.rule == "neither" else 0


if __name__ == "__main__":
    sys.exit(main())
