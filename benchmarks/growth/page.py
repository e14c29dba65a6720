"""docs/scaling.md and its plots, from benchmarks/results/scaling.json alone: ``python -m benchmarks.growth.page``.

Words come from template.md, every figure from the results.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..harness import ROOT, Row, load
from . import cell, plots, relay, tables
from .derived import costs_of, hardware_of
from .figures import number, percent

DOCS = ROOT / "docs"


def write(results: dict[str, Any], docs: Path = DOCS) -> Path:
    """Write the page and its plots under ``docs``; the page's path."""
    rows = results["rows"]
    _plot(rows, docs / "scaling")
    path = docs / "scaling.md"
    path.write_text(_page(results))
    return path


def _plot(rows: Sequence[Row], to: Path) -> None:
    for name, axis in plots.SWEEPS.items():
        plots.sweep(tables.rooms(rows, name), axis, to / f"{name}.svg")
    plots.fan_out(tables.rooms(rows, "streams") + tables.rooms(rows, "proxied"), to / "fan-out.svg")
    plots.leases(tables.rooms(rows, "ttl"), to / "ttl.svg")
    plots.sizes(tables.rooms(rows, "size"), to / "size.svg")
    plots.simulated(tables.of(rows, "simulated"), to / "simulated.svg")


def _page(results: dict[str, Any]) -> str:
    rows, machine, versions = results["rows"], results["machine"], results["versions"]
    costs, hardware = costs_of(rows), hardware_of(rows)
    told = {
        "machine": f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} GiB",
        "data": machine["etcd_data"],
        "etcd": versions["etcd"],
        "python": versions["python"],
        "busiest_others": number(max(row.get("others_cpu", 0.0) for row in rows)),
        "planned": percent(hardware.planned),
        "plan": tables.plan(rows),
        "largest": tables.largest(rows),
        "assumed": tables.assumed(hardware),
        "costs": tables.costs(rows, costs),
        "rates": tables.sweep(rows, "rates"),
        "ranks": tables.ranks(rows),
        "instances": tables.sweep(rows, "instances"),
        "decodes": tables.sweep(rows, "decodes"),
        "fan_out": tables.fan_out(rows),
        "proxied": relay.proxied(rows),
        "proxy_checks": relay.proxy_checks(rows),
        "second_watch": relay.second_watch(rows),
        "relays": relay.relays(rows),
        "most_agents": max(row["decodes"] for row in rows if "derived" not in row and "decodes" in row),
        "ttl": tables.ttl(rows),
        "size": tables.size(rows),
        "simulated": tables.simulated(rows),
        "cells": tables.cells(rows),
        "checks": tables.checks(rows),
        "check_errors": tables.check_errors(rows),
        "cell_parts": cell.parts_table(rows),
        "cell_waits": cell.waits_table(rows),
        "roll_out": tables.roll_out(costs, hardware),
    }
    return (Path(__file__).parent / "template.md").read_text().format(**told)


def main() -> int:
    """Write the page from what was measured last."""
    results = load("scaling")
    if results is None:
        print("nothing was measured yet: python -m benchmarks.growth.run", file=sys.stderr)
        return 1
    print(write(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
