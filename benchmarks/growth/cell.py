"""A simulated cell of 1,000 watching agents: messages and CPU by part, with and without a relay on each node.

Nothing of it was measured at that size: the simulation says how many transactions the prefill agents come to write, and
each part's messages and CPU follow from these and from what one message, room and agent cost when they were measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from ..harness import Row, percentiles
from ..markdown import table
from .costs import Costs
from .figures import number, per_room, percent
from .model import Cell, Hardware, busiest, load, utilisation
from .simulation import simulate

DECODES = 1000
RATES = (10.0, 100.0, 300.0)
#: Rooms in a simulated run.
ROOMS = 3000
#: Packets of a room between engines and agents: register, release, want, done; and registered, resolved.
FROM_ENGINES, TO_ENGINES = 4, 2


def cell_rows(measured: Sequence[Row], costs: Costs, hardware: Hardware) -> list[Row]:
    """A row for each rate, without and with relays."""
    engines = engine_seconds(measured)
    return [
        _row(Cell(rate, DECODES, DECODES / hardware.decodes_per_prefill, relayed, False), costs, hardware, engines)
        for rate in RATES
        for relayed in (False, True)
    ]


def engine_seconds(measured: Sequence[Row]) -> float | None:
    """CPU seconds of both engines a room, the median of the rounds in which the machine was not full; None: unknown."""
    counted = [row for row in measured if row.get("rooms") and "prefill_engine_cpu" in row and not row["saturated"]]
    found = [per_room(row, "prefill_engine") + per_room(row, "decode_engine") for row in counted]
    return statistics.median(found) / 1e6 if found else None


def _row(at: Cell, costs: Costs, hardware: Hardware, engines: float | None) -> Row:
    found = simulate(at, costs, hardware, ROOMS)
    first, share = busiest(found.shares)
    return {
        "sweep": "cell",
        "rooms": at.rooms,
        "decodes": at.decodes,
        "prefills": at.prefills,
        "relayed": at.proxies,
        "txns": round(found.txns, 1),
        "parts": by_part(at, costs, hardware, found.txns, engines),
        "first": first,
        "share": round(share, 4),
        "resolved_ms": percentiles([seconds * 1e3 for seconds in found.latencies]) if found.latencies else None,
    }


def by_part(at: Cell, costs: Costs, hardware: Hardware, txns: float, engines: float | None) -> dict[str, Any]:
    """What each part receives and sends a second, and its CPU in cores, all of its processes together.

    Args:
        at: the cell.
        costs: measured.
        hardware: assumed.
        txns: transactions a second of all prefill agents.
        engines: CPU seconds of the engines a room, None where they were not measured.
    """
    shares, doing = utilisation(at, costs, hardware, txns), load(at, costs, hardware)
    relays = at.decodes / doing.behind if doing.behind else 0.0
    heard, prefills = txns * at.decodes, at.prefills * hardware.agent_cores
    cores = {
        "etcd": shares["etcd"] * hardware.etcd_cores,
        "relays": shares.get("proxy", 0.0) * hardware.proxy_cores * relays,
        "watching agents": shares["decode agent"] * hardware.agent_cores * at.decodes,
        "prefill agents": shares["prefill agent"] * prefills,
        "engines": None if engines is None else engines * at.rooms,
    }
    traffic = {
        "etcd": (1, txns, txns * doing.watchers),
        "relays": (relays, txns * relays, heard),
        "watching agents": (at.decodes, heard + at.rooms * FROM_ENGINES / 2, at.rooms * TO_ENGINES / 2),
        "prefill agents": (at.prefills, at.rooms * FROM_ENGINES / 2, txns + at.rooms * TO_ENGINES / 2),
        "engines": (at.decodes + at.prefills, at.rooms * TO_ENGINES, at.rooms * FROM_ENGINES),
    }
    return {
        name: {"count": count, "received": received, "sent": sent, "cores": cores[name]}
        for name, (count, received, sent) in traffic.items()
        if count
    }


def parts_table(rows: Sequence[Row]) -> str:
    """Messages and CPU by part."""
    lines: list[list[object]] = []
    for row in (row for row in rows if row["sweep"] == "cell"):
        for name, part in row["parts"].items():
            cores = part["cores"]
            lines.append(
                [
                    f"{row['rooms']:,.0f}",
                    "yes" if row["relayed"] else "no",
                    f"{part['count']:,.0f} {name}" if part["count"] > 1 else name,
                    number(part["received"]),
                    number(part["sent"]),
                    number(cores),
                    number(None if cores is None else cores * 1e6 / row["rooms"]),
                ]
            )
    head = ["rooms/s", "relays", "part", "messages received a second", "sent", "CPU, cores", "µs a room"]
    return table(head, lines)


def waits_table(rows: Sequence[Row]) -> str:
    """What each room would wait, and what is busiest."""
    lines = []
    for row in (row for row in rows if row["sweep"] == "cell"):
        found = row["resolved_ms"]
        waits = f"{number(found['p50'])} / {number(found['p99'])}" if found else "cannot"
        relayed = "yes" if row["relayed"] else "no"
        busy = f"{row['first']} {percent(row['share'])}"
        lines.append([f"{row['rooms']:,.0f}", relayed, number(row["txns"]), busy, waits])
    return table(["rooms/s", "relays", "transactions a second", "busiest", "p50 / p99 ms"], lines)
