"""The tables of docs/scaling.md on relays: ``etcd grpc-proxy`` between etcd and the agents that watch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..harness import Row, spread
from ..markdown import table
from .figures import number, per_room
from .tables import full, of, rooms


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
        return ["yes" if row[name] else "**no**" for row in asked]

    seconds = asked[0]["idle_seconds"]
    lines = [
        ["headers name the same cluster", *said("same_cluster")],
        ["a watch is created at etcd's own revision", *said("created_revision")],
        ["events whole and in revision order", *said("in_order")],
        ["large answers come in fragments, as asked", *said("fragments")],
        ["the largest message, bytes", *(f"{row['largest_message']:,}" for row in asked)],
        ["a watch that is asked for a sign of life answers", *said("progress")],
        ["a lease's keepalive", *said("keepalive")],
        [f"times that an agent lost its view in {seconds:g} s of an idle cell", *(row["view_lost"] for row in asked)],
    ]
    return table(["", *(row["asked"] for row in asked)], lines)


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
    return [
        _passes(some, lambda row: float(row["messages"])),
        *(_passes(some, lambda row, part=part: per_room(row, part)) for part in ("etcd", "proxy", "bystander")),
        *(_passes(some, lambda row, at=at: row["resolved_ms"][at]) for at in ("p50", "p99")),
    ]


def _passes(some: Sequence[Row], figure: Callable[[Row], float | None]) -> str:
    """The mean of the passes, with the lowest and the highest."""
    values = [value for row in some if (value := figure(row)) is not None]
    if not values or not any(values):
        return "-"
    found = spread(values)
    middle = sum(values) / len(values)
    return f"{number(middle)} ({number(found['min'])} to {number(found['max'])})"
