"""What follows from the measured rows: costs, their check against the measured points, the simulation, the plan."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from ..harness import Row, percentiles
from .cell import cell_rows
from .costs import Costs, fit
from .model import Cell, Hardware, advice_rows, busiest, cell, largest, settled, shared
from .simulation import simulate

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
    rows += cell_rows(measured, costs, hardware)
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
    """What of the median room's way is no CPU time: what was measured less its costs, the median of quiet rounds.

    Quiet are those of few watchers and rooms in which the machine was not full.
    """
    quiet = [row for row in measured if row["sweep"] in ("rates", "ranks", "decodes") and row["rooms"]]
    quiet = [row for row in quiet if row["decodes"] <= 2 and row["rate"] <= 300 and not row["saturated"]] or quiet
    left = [float(row["resolved_ms"]["p50"]) / 1e3 - _work(row, costs) for row in quiet]
    return max(statistics.median(left), 0.0)


def _work(row: Row, costs: Costs) -> float:
    """CPU seconds on a room's way, one after the other, where nothing waits."""
    batch = 2 * row["rooms"] / row["txns"]
    writer = costs.writer_txn + batch / 2 * costs.writer_room
    etcd = 1 / costs.most_commits + (batch - 1) * costs.etcd_write + costs.etcd_message + batch * costs.etcd_event
    return float(writer + etcd + costs.agent_message + batch * costs.agent_event)


def _checked(row: Row, costs: Costs, hardware: Hardware) -> Row:
    """A measured point of 1..32 agents beside what the model says of it, all on the one machine's cores."""
    cores = row["cores"] - row["load_cpu"] - row["others_cpu"]
    here = shared(hardware, cores)
    at = Cell(row["rooms"], row["decodes"], row["prefills"])
    found = simulate(at, costs, here, ROOMS, shared=True)
    hears = costs.agent_idle + found.txns * costs.agent_message + 2 * at.rooms * costs.agent_event
    return {
        "sweep": "check",
        "rooms": row["rooms"],
        "decodes": row["decodes"],
        "saturated": row["saturated"],
        "txns_measured": row["txns"],
        "txns_model": round(found.txns, 1),
        "etcd_measured": row["etcd_cpu"],
        "etcd_model": round(found.shares["etcd"] * cores, 4),
        "agent_measured": row["bystander_cpu"],
        "agent_model": round(hears, 4),
        "resolved_measured_ms": row["resolved_ms"],
        "resolved_model_ms": percentiles([seconds * 1e3 for seconds in found.latencies or []]),
    }


def _first(rate: float, decodes: int, proxies: bool, costs: Costs, hardware: Hardware) -> Row:
    """What saturates first with one more than so many."""
    name, share = busiest(settled(cell(rate, decodes + max(1, decodes // 50), hardware, proxies), costs, hardware, 1.0))
    return {"first": name, "share": round(share, 3)}


def _simulated(rate: float, decodes: int, cells: int, proxies: bool, costs: Costs, hardware: Hardware) -> Row:
    at = cell(rate / cells, decodes / cells, hardware, proxies)
    found = simulate(at, costs, hardware, ROOMS)
    first, share = busiest(found.shares)
    return {
        "sweep": "simulated",
        "rooms": rate,
        "decodes": decodes,
        "cells": cells,
        "proxies": proxies,
        "first": first,
        "share": round(share, 4),
        "shares": {name: round(value, 5) for name, value in found.shares.items()},
        "resolved_ms": percentiles([seconds * 1e3 for seconds in found.latencies]) if found.latencies else None,
    }
