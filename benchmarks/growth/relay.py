"""The tables of docs/scaling.md on relays: ``etcd grpc-proxy`` between etcd and the agents that watch."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ..harness import Row
from ..markdown import table
from .figures import number, per_room
from .tables import full, of, rooms

SECOND_WATCH = """
A watch that joins one which stands already is created by the proxy itself, which names no cluster and makes up a
revision. An agent concludes nothing from it: it counts as synced with what it listed, and as restored only by what
etcd says later.
"""


def proxied(rows: Sequence[Row]) -> str:
    straight = {
        (row["decodes"], row["streams"], row["rate"]): row for row in rooms(rows, "decodes") + rooms(rows, "streams")
    }
    lines = []
    for row in rooms(rows, "proxied"):
        other = straight.get((row["decodes"], row["streams"], row["rate"]))
        lines.append(
            [
                row["decodes"],
                row["streams"],
                number(row["rooms"]),
                number(row["etcd_cpu"]),
                number(other["etcd_cpu"]) if other else "-",
                number(row["proxy_cpu"]),
                number(row["resolved_ms"]["p50"]),
                number(other["resolved_ms"]["p50"]) if other else "-",
                full(row),
            ]
        )
    head = ["decode agents behind it", "streams behind it", "rooms/s", "etcd, cores", "without proxy", "proxy, cores"]
    return table([*head, "p50 ms", "without proxy", "machine"], lines)


def proxy_checks(rows: Sequence[Row]) -> str:
    asked = of(rows, "checks")

    def said(name: str) -> list[str]:
        return [("yes" if row[name] else "**no**") if name in row else "-" for row in asked]

    seconds = asked[0]["idle_seconds"]
    lines = [
        ["headers name the same cluster", *said("same_cluster")],
        ["the same of a watch like one that stands already", *said("second_same_cluster")],
        ["a watch is created at etcd's own revision", *said("created_revision")],
        ["events whole and in revision order", *said("in_order")],
        ["large answers come in fragments, as asked", *said("fragments")],
        ["the largest message, bytes", *(f"{row['largest_message']:,}" for row in asked)],
        ["a watch that is asked for a sign of life answers", *said("progress")],
        ["a lease's keepalive", *said("keepalive")],
        [f"times that an agent lost its view in {seconds:g} s of an idle cell", *(row["view_lost"] for row in asked)],
    ]
    return table(["", *(row["asked"] for row in asked)], lines)


def second_watch(rows: Sequence[Row]) -> str:
    """What it means where the second watch is told of another cluster than the first; empty where it is not."""
    if all(row.get("second_same_cluster", True) for row in of(rows, "checks")):
        return ""
    return SECOND_WATCH


def pairs(rows: Sequence[Row]) -> list[tuple[list[Row], list[Row]]]:
    """The rounds of each number of agents and rate: straight at etcd, and behind a relay."""
    found = rooms(rows, "relays")
    keys = dict.fromkeys((row["decodes"], row["rate"]) for row in found)
    grouped = [[row for row in found if (row["decodes"], row["rate"]) == key] for key in keys]
    sides = [([row for row in some if not row["proxies"]], [row for row in some if row["proxies"]]) for some in grouped]
    return [(straight, relayed) for straight, relayed in sides if straight and relayed]


def relays(rows: Sequence[Row]) -> str:
    """What a relay changes for the same agents and rooms."""
    lines = [
        [*cells, "relayed" if side else "straight", *_measured(some), ", ".join(map(full, some))]
        for pair in pairs(rows)
        for cells in [[pair[0][0]["decodes"], number(pair[0][0]["rate"])]]
        for side, some in enumerate(pair)
    ]
    if not lines:
        return "*Not measured yet.*"
    head = ["decode agents", "rooms/s", "", "messages etcd sends a second", "etcd, µs a room", "relay, µs a room"]
    return table([*head, "an agent, µs a room", "p50 ms", "p99 ms", "machine"], lines)


def _measured(some: Sequence[Row]) -> list[str]:
    used = [[per_room(row, part) for row in some] for part in ("etcd", "proxy", "bystander")]
    waits = [[row["resolved_ms"][at] for row in some] for at in ("p50", "p99")]
    return [_passes(values) for values in ([row["messages"] for row in some], *used, *waits)]


def _passes(values: Sequence[float | None]) -> str:
    """The mean of the passes, with the lowest and the highest."""
    found = [value for value in values if value]
    if not found:
        return "-"
    return f"{number(statistics.mean(found))} ({number(min(found))} to {number(max(found))})"
