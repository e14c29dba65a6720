"""What follows from the measured rows: costs, their check against the measured points, the simulation, the plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from ..harness import Row, percentiles
from .costs import Costs, fit
from .model import Cell, Hardware, advice_rows, agent_share, busiest, cell, largest, shared, utilisation
from .simulation import latencies

#: The planning table, and the simulation's points.
PLAN_ROOMS, PLAN_DECODES = (10, 100, 1000, 10_000), (10, 32, 100, 320, 1000, 3200, 10_000)
SIMULATED_ROOMS, SIMULATED_DECODES = (10, 100, 1000), (1, 10, 32, 100, 320, 1000, 3200, 10_000)
CELLS = (1, 4, 16, 64)
#: Rooms in a simulated run.
ROOMS = 3000


def derive(measured: Sequence[Row], hardware: Hardware | None = None) -> list[Row]:
    """Rows with ``derived`` set: the same for the same measured rows."""
    hardware = hardware or Hardware()
    costs, errors = fit(measured)
    costs = replace(costs, delay=_delay(measured, costs))
    rows = [costs.to_row() | {"errors": errors}, {"sweep": "hardware", **asdict(hardware)}]
    rows += [_checked(row, costs, hardware) for row in measured if row["sweep"] == "decodes" and row["rooms"]]
    rows += [
        {
            "sweep": "largest",
            "rooms": rate,
            "proxies": proxies,
            "decodes": found,
            **_first(rate, found, proxies, costs, hardware),
        }
        for rate in PLAN_ROOMS
        for proxies in (False, True)
        for found in [largest(rate, proxies, costs, hardware, 1.0)]
    ]
    rows += [
        _simulated(rate, n, 1, p, costs, hardware)
        for p in (False, True)
        for rate in SIMULATED_ROOMS
        for n in SIMULATED_DECODES
    ]
    rows += [_simulated(1000, 10_000, k, p, costs, hardware) for p in (False, True) for k in CELLS]
    rows += advice_rows(PLAN_ROOMS, PLAN_DECODES, costs, hardware)
    return [{**row, "derived": True} for row in rows]


def hardware_of(rows: Sequence[Row]) -> Hardware:
    """The hardware among the derived rows."""
    row = next(row for row in rows if row["sweep"] == "hardware")
    return Hardware(**{name: row[name] for name in Hardware.__dataclass_fields__})


def costs_of(rows: Sequence[Row]) -> Costs:
    """The costs among the derived rows."""
    row = next(row for row in rows if row["sweep"] == "costs")
    named: dict[str, Any] = {name: row[name] for name in Costs.__dataclass_fields__}
    return Costs(
        **{**named, **{name: tuple((at, found) for at, found in named[name]) for name in ("commits", "batches")}}
    )


def _delay(measured: Sequence[Row], costs: Costs) -> float:
    """What of the median room's way is no CPU time: measured with one bystander at the lowest rate, less its costs."""
    row: Row = min((row for row in measured if row["sweep"] == "rates"), key=lambda row: float(row["rate"]))
    batch = 2 * row["rooms"] / row["txns"]
    working = costs.writer_txn + batch / 2 * costs.writer_room + 1 / costs.most_commits + (batch - 1) * costs.etcd_write
    working += costs.etcd_message + batch * costs.etcd_event + costs.agent_message + batch * costs.agent_event
    median = float(row["resolved_ms"]["p50"]) / 1e3
    return float(max(median - working, 0.0))


def _checked(row: Row, costs: Costs, hardware: Hardware) -> Row:
    """A measured point of 1..32 agents beside what the model says of it, all on the one machine's cores."""
    cores = row["cores"] - row["load_cpu"] - row["others_cpu"]
    here = shared(hardware, cores)
    at = Cell(row["rooms"], row["decodes"], row["prefills"])
    shares = utilisation(at, costs, here)
    found = latencies(at, costs, here, ROOMS, shared=True)
    return {
        "sweep": "check",
        "rooms": row["rooms"],
        "decodes": row["decodes"],
        "saturated": row["saturated"],
        "etcd_measured": row["etcd_cpu"],
        "etcd_model": round(shares["etcd"] * cores, 4),
        "agent_measured": row["bystander_cpu"],
        "agent_model": round(agent_share(at, costs, here), 4),
        "resolved_measured_ms": row["resolved_ms"],
        "resolved_model_ms": percentiles([seconds * 1e3 for seconds in found or []]),
    }


def _first(rate: float, decodes: int, proxies: bool, costs: Costs, hardware: Hardware) -> Row:
    """What saturates first with one more than so many."""
    name, share = busiest(utilisation(cell(rate, decodes + max(1, decodes // 50), hardware, proxies), costs, hardware))
    return {"first": name, "share": round(share, 3)}


def _simulated(rate: float, decodes: int, cells: int, proxies: bool, costs: Costs, hardware: Hardware) -> Row:
    at = cell(rate / cells, decodes / cells, hardware, proxies)
    shares = utilisation(at, costs, hardware)
    found: Any = latencies(at, costs, hardware, ROOMS)
    first, share = busiest(shares)
    return {
        "sweep": "simulated",
        "rooms": rate,
        "decodes": decodes,
        "cells": cells,
        "proxies": proxies,
        "first": first,
        "share": round(share, 4),
        "shares": {name: round(value, 5) for name, value in shares.items()},
        "resolved_ms": percentiles([seconds * 1e3 for seconds in found]) if found else None,
    }
