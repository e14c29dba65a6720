"""The tables of docs/scaling.md, each a string of Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ..harness import Row
from ..markdown import table
from .costs import Costs
from .figures import PARTS, number, per_room, percent
from .model import Hardware
from .plots import SWEEPS


def of(rows: Sequence[Row], sweep: str) -> list[Row]:
    return [row for row in rows if row["sweep"] == sweep]


def rooms(rows: Sequence[Row], sweep: str) -> list[Row]:
    return [row for row in of(rows, sweep) if row["rooms"]]


def plan(rows: Sequence[Row]) -> str:
    plan = of(rows, "plan")
    counts = sorted({row["decodes"] for row in plan})
    rule = {(row["rooms"], row["decodes"]): row["rule"] for row in plan}
    rates = sorted({row["rooms"] for row in plan})
    head = ["rooms/s", *(f"{count:,} decode agents" for count in counts)]
    return table(head, [[f"{rate:,}", *(rule[rate, count] for count in counts)] for rate in rates])


def largest(rows: Sequence[Row]) -> str:
    found = {(row["rooms"], row["proxies"]): row for row in of(rows, "largest")}
    head = ["rooms/s", "one etcd", "full first", "a proxy on each node", "full first"]
    lines = []
    for rate in sorted({rate for rate, _ in found}):
        cells = [(found[rate, proxies]["decodes"], found[rate, proxies]["first"]) for proxies in (False, True)]
        lines.append([f"{rate:,}", *(text for count, first in cells for text in (number(count), first))])
    return table(head, lines)


def assumed(hardware: Hardware) -> str:
    return table(
        ["assumed", "value"],
        [
            ["cores of etcd's node, each like one of this machine", f"{hardware.etcd_cores:g}"],
            ["its network, Gbit/s", f"{hardware.gigabits:g}"],
            ["cores that a proxy may use", f"{hardware.proxy_cores:g}"],
            ["cores that an agent can use (it is one Python process)", f"{hardware.agent_cores:g}"],
            ["decode agents on a node, which share its proxy", hardware.agents_per_node],
            ["decode agents for each prefill agent", hardware.decodes_per_prefill],
            ["share of any resource that a plan may use", percent(hardware.planned)],
            ["how long a transaction may take, ms", f"{hardware.patience * 1e3:g}"],
        ],
    )


def costs(rows: Sequence[Row], costs: Costs) -> str:
    (row,) = of(rows, "costs")
    errors = row["errors"]

    def us(seconds: float) -> str:
        return f"{number(seconds * 1e6)} µs"

    lines = [
        ["etcd: an agent that is there, a second", us(costs.etcd_agent), percent(errors["etcd"])],
        ["etcd: a message to one watcher", us(costs.etcd_message), percent(errors["etcd"])],
        ["etcd: an event in it", us(costs.etcd_event), percent(errors["etcd"])],
        ["etcd: a write in a transaction, beyond the first", us(costs.etcd_write), percent(errors["etcd"])],
        *(
            [f"etcd: a transaction of one write, at {number(rate)} a second", us(cpu / rate), "as measured"]
            for rate, cpu in costs.commits
        ),
        ["bytes of a message to one watcher", f"{number(costs.bytes_message)} B", percent(errors["bytes"])],
        ["bytes of an event in it", f"{number(costs.bytes_event)} B", percent(errors["bytes"])],
        ["agent: being there, a second", us(costs.agent_idle), "as measured"],
        ["agent: a message", us(costs.agent_message), percent(errors["agent"])],
        ["agent: an event that no engine of its own waits for", us(costs.agent_event), percent(errors["agent"])],
        ["agent: on top, a room that an engine waits for", us(costs.agent_want), "-"],
        ["prefill agent: on top, a transaction of its own", us(costs.writer_txn), percent(errors["prefill agent"])],
        ["prefill agent: on top, a room of its own", us(costs.writer_room), percent(errors["prefill agent"])],
        ["proxy: a message from etcd", us(costs.proxy_up), percent(errors["proxy"])],
        ["proxy: a message to one watcher", us(costs.proxy_message), percent(errors["proxy"])],
        ["proxy: an event in it", us(costs.proxy_event), percent(errors["proxy"])],
        ["waiting that is nobody's CPU time, once a room", us(costs.delay), "-"],
    ]
    return table(["cost of one", "measured", "median error of its fit"], lines)


def full(row: Row) -> str:
    return "overrun" if row["overrun"] else "full" if row["saturated"] else percent(row["busy"])


def sweep(rows: Sequence[Row], name: str) -> str:
    axis = SWEEPS[name]
    found = rooms(rows, name)
    parts = [part for part in PARTS if any(row[f"{part}_cpu"] for row in found)]
    grows = [] if axis.key == "rate" else [axis.label]
    head = [*grows, "rooms/s", *(f"{part}, µs a room" for part in parts), "txns/s", "p50 ms", "p99 ms", "machine"]
    lines = [
        [
            *([row[axis.key]] if grows else []),
            f"{row['rooms']:,.0f} of {row['rate']:,.0f}",
            *(number(per_room(row, part)) for part in parts),
            number(row["txns"], 3),
            number(row["resolved_ms"]["p50"]),
            number(row["resolved_ms"]["p99"]),
            full(row),
        ]
        for row in found
    ]
    return table(head, lines)


def ranks(rows: Sequence[Row]) -> str:
    lines = [
        [
            row["ranks"],
            number(row["announce_ms"]),
            *(number(per_room(row, part)) for part in ("prefill", "etcd", "decode")),
            number(row["resolved_ms"]["p50"]),
            number(row["resolved_ms"]["p99"]),
            full(row),
        ]
        for row in rooms(rows, "ranks")
    ]
    head = ["ranks", "all announced after, ms", "prefill, µs a room", "etcd, µs a room", "decode, µs a room"]
    return table([*head, "p50 ms", "p99 ms", "machine"], lines)


def fan_out(rows: Sequence[Row]) -> str:
    lines = [
        [
            row["watchers"],
            number(row["rooms"]),
            number(row["messages"], 3),
            number(row["etcd_cpu"]),
            number(row["sent_bytes"] / 1e6),
            number(row["resolved_ms"]["p50"]),
            number(row["resolved_ms"]["p99"]),
            full(row),
        ]
        for row in rooms(rows, "streams")
    ]
    return table(["watchers", "rooms/s", "messages/s", "etcd, cores", "MB/s", "p50 ms", "p99 ms", "machine"], lines)


def ttl(rows: Sequence[Row]) -> str:
    lines = [
        [
            f"{row['bootstrap_timeout']:g}",
            "released" if row["release"] else "kept",
            row["leases"],
            number(row["granted"]),
            number(per_room(row, "etcd")),
            number(per_room(row, "prefill")),
        ]
        for row in rooms(rows, "ttl")
    ]
    head = ["bootstrap timeout, s", "rooms", "leases at the end", "granted a second", "etcd, µs a room"]
    return table([*head, "prefill, µs a room"], lines)


def size(rows: Sequence[Row]) -> str:
    lines = [
        [
            row["instance_bytes"],
            row["reason_bytes"] or "-",
            number(row["sent_bytes"] / row["rooms"], 3),
            number(row["received_bytes"] / row["rooms"], 3),
            *(number(per_room(row, part)) for part in ("prefill", "etcd", "decode")),
            number(row["resolved_ms"]["p50"]),
        ]
        for row in rooms(rows, "size")
    ]
    head = ["instance's id, B", "reason, B", "etcd sends, B a room", "receives, B a room", "prefill, µs", "etcd, µs"]
    return table([*head, "decode, µs", "p50 ms"], lines)


def latency(row: Row) -> str:
    found = row["resolved_ms"]
    return f"{number(found['p50'])} / {number(found['p99'])}" if found else "cannot"


def simulated(rows: Sequence[Row]) -> str:
    found = {(row["rooms"], row["proxies"], row["decodes"]): row for row in of(rows, "simulated") if row["cells"] == 1}
    counts = sorted({count for _, _, count in found})
    head = ["rooms/s", "", *(f"{count:,}" for count in counts)]
    lines: list[list[object]] = []
    for rate, proxies in sorted({(rate, proxies) for rate, proxies, _ in found}):
        some = [found[rate, proxies, count] for count in counts]
        lines.append([f"{rate:,}", "proxies" if proxies else "one etcd", *map(latency, some)])
        lines.append(["", "busiest", *(f"{row['first']} {percent(row['share'])}" for row in some)])
    return table(head, lines)


def cells(rows: Sequence[Row]) -> str:
    found = of(rows, "simulated")
    most = max((row["decodes"], row["rooms"]) for row in found if row["cells"] > 1)
    some = [row for row in found if (row["decodes"], row["rooms"]) == most]
    lines = [
        [row["cells"], "yes" if row["proxies"] else "no", row["first"], percent(row["share"]), latency(row)]
        for row in sorted(
            {(row["proxies"], row["cells"]): row for row in some}.values(),
            key=lambda row: (row["proxies"], row["cells"]),
        )
    ]
    head = ["cells, each with its own etcd", "proxies", "busiest", "how busy", "p50 / p99 ms"]
    return f"{most[0]:,} decode agents and {most[1]:,} rooms/s:\n\n" + table(head, lines)


def checks(rows: Sequence[Row]) -> str:
    lines = [
        [
            row["decodes"],
            number(row["rooms"]),
            number(row["txns_measured"]),
            number(row["txns_model"]),
            number(row["etcd_measured"]),
            number(row["etcd_model"]),
            number(row["agent_measured"] or None),
            number(row["agent_model"]),
            latency({"resolved_ms": row["resolved_measured_ms"]}),
            latency({"resolved_ms": row["resolved_model_ms"]}),
            "full" if row["saturated"] else "",
        ]
        for row in of(rows, "check")
    ]
    head = ["decode agents", "rooms/s"]
    for measured in ("txns/s", "etcd, cores", "an agent, cores", "p50 / p99 ms"):
        head += [measured, "simulated"]
    return table([*head, "machine"], lines)


def check_errors(rows: Sequence[Row]) -> str:
    found = [row for row in of(rows, "check") if not row["saturated"]]

    def off(measured: str, model: str) -> str:
        errors = [abs(row[model] / row[measured] - 1) for row in found if row[measured]]
        return f"{percent(statistics.median(errors))} (largest {percent(max(errors))})" if errors else "-"

    waits = [abs(row["resolved_model_ms"][q] / row["resolved_measured_ms"][q] - 1) for row in found for q in ("p50",)]
    latency = f"{percent(statistics.median(waits))} (largest {percent(max(waits))})" if waits else "-"
    return (
        f"Where the machine was not full, the model is off by {off('etcd_measured', 'etcd_model')} for etcd's CPU, by "
        f"{off('agent_measured', 'agent_model')} for an agent's, and the simulation by {latency} for the median wait; "
        "the sign and the tails are in the table."
    )


def roll_out(costs: Costs, hardware: Hardware) -> str:
    lines = []
    for count in (100, 1000, 10_000):
        messages = count * count / 2
        cores = messages * (costs.etcd_message + costs.etcd_event)
        lines.append([f"{count:,}", number(messages), number(cores), number(cores / hardware.etcd_cores)])
    head = [
        "agents that start at once",
        "messages",
        "core seconds of etcd",
        f"seconds of {hardware.etcd_cores:g} cores",
    ]
    return table(head, lines)
