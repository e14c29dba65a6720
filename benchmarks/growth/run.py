"""``python -m benchmarks.growth.run``: measure how cost grows, simulate, write docs/scaling.md. About 11 minutes."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console

from ..harness import RESULTS, SCRATCH, Row, load, save
from . import page
from .derived import derive
from .measure import FULL, QUICK, measure

NAME = "scaling"


def main() -> int:
    """Measure, derive, write the results; and the page, unless the run was a quick one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds; writes under build/ only")
    parser.add_argument("--again", action="store_true", help="measure nothing: simulate on what was measured last")
    options = parser.parse_args()
    console = Console()
    directory = SCRATCH / "results" if options.quick else RESULTS
    if options.again:
        kept = load(NAME, directory)
        if kept is None:
            parser.error("nothing was measured yet")
        measured = [row for row in kept["rows"] if "derived" not in row]
        more = {key: kept[key] for key in ("machine", "versions")}
    else:
        measured = list(measure(QUICK if options.quick else FULL, lambda row: _tell(console, row)))
        more = {}
    path = save(NAME, measured + derive(measured), directory, **more)
    console.print(f"{path} ({len(measured)} rows measured)")
    docs = SCRATCH / "docs" if options.quick else page.DOCS
    console.print(f"{page.write(load(NAME, directory) or {}, docs)}")
    return 0


def _tell(console: Console, row: Row) -> None:
    if "rooms" not in row:
        console.print(row)
        return
    resolved = row.get("resolved_ms", {})
    console.print(
        f"{row['sweep']:10} prefills={row['prefills']:<3} decodes={row['decodes']:<3} ranks={row['ranks']:<4}"
        f" streams={row['streams']:<4} proxies={row['proxies']} rooms/s={row['rooms']:<8.0f} txns/s={row['txns']:<7.0f}"
        f" etcd={row['etcd_cpu']:.3f} bystander={row['bystander_cpu']:.3f} busy={row['busy']:.2f}"
        f" p50={resolved.get('p50')} p99={resolved.get('p99')} ms",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(main())
