"""The plots of docs/scaling.md, from the results alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..harness import Row, new_figure, save_svg
from .derived import SIMULATED_ROOMS
from .figures import PARTS, per_room

#: The parts of a room's cost.
_NAMES = {
    "prefill": "prefill agent(s)",
    "etcd": "etcd",
    "proxy": "proxy",
    "decode": "decode agent",
    "bystander": "bystander",
}


@dataclass(frozen=True)
class Axis:
    """What grows in a plot: a row's key, and how people call it."""

    key: str
    label: str


SWEEPS = {
    "rates": Axis("rate", "rooms a second"),
    "ranks": Axis("ranks", "ranks of one instance"),
    "instances": Axis("prefills", "prefill instances, each with an agent"),
    "decodes": Axis("decodes", "decode agents on this machine"),
}


def sweep(rows: Sequence[Row], axis: Axis, path: Path) -> None:
    """CPU a room by part beside the latency; rounds in which the machine was full are hollow."""
    figure, (cpu, latency) = new_figure(2, width=9.0)
    rates = sorted({row["rate"] for row in rows})
    groups = [(rows, "", "-")]
    if axis.key != "rate":
        groups = [
            ([row for row in rows if row["rate"] == rate], f", {rate:g} rooms/s", style)
            for rate, style in zip(rates, ("-", "--", ":", "-."), strict=False)
        ]
    for some, label, style in groups:
        some = sorted(some, key=lambda row: float(row[axis.key]))
        for color, part in enumerate(PARTS):
            told = [row for row in some if row[f"{part}_cpu"] > 0]
            _line(cpu, told, axis, [per_room(row, part) for row in told], style, color, _NAMES[part] + label)
        for color, quantile in enumerate(("p50", "p99")):
            told = [row for row in some if row["resolved_ms"][quantile] is not None]
            _line(latency, told, axis, [row["resolved_ms"][quantile] for row in told], style, color, quantile + label)
    _dress(cpu, axis, "CPU, µs a room")
    _dress(latency, axis, "register → resolved, ms")
    save_svg(figure, path)


def _line(axes: Any, rows: list[Row], axis: Axis, values: list[float], style: str, number: int, label: str) -> None:
    if not rows:
        return
    places, color = [row[axis.key] for row in rows], f"C{number}"
    axes.plot(places, values, style, color=color, label=label)
    for row, place, value in zip(rows, places, values, strict=True):
        inside = "white" if row["saturated"] else color
        axes.plot(place, value, "o", color=color, markersize=4, markerfacecolor=inside)


def _plain(*some: Any) -> None:
    """Ticks of a logarithmic axis that are numbers and not powers."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    for axis in some:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _dress(axes: Any, axis: Axis, label: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    _plain(axes.xaxis, axes.yaxis)
    axes.set_xlabel(axis.label)
    axes.set_ylabel(label)
    axes.legend(fontsize=7, framealpha=0.6)


def fan_out(rows: Sequence[Row], path: Path) -> None:
    """etcd's cores against messages to watchers, direct and for what is behind a proxy."""
    figure, (etcd, proxy) = new_figure(2, width=9.0)
    for watchers in sorted({row["watchers"] for row in rows if not row["proxies"]}):
        some = sorted(
            (row for row in rows if row["watchers"] == watchers and not row["proxies"]),
            key=lambda row: float(row["messages"]),
        )
        etcd.plot(
            [row["messages"] for row in some],
            [row["etcd_cpu"] for row in some],
            "o-",
            markersize=4,
            label=f"{watchers} watchers",
        )
    etcd.set_xlabel("watch messages a second")
    etcd.set_ylabel("etcd, cores")
    etcd.legend(fontsize=7)
    behind = [row for row in rows if row["proxies"]]
    for number, part in enumerate(("etcd_cpu", "proxy_cpu")):
        some = sorted(behind, key=lambda row: float(row["txns"] * (row["watchers"] - row["prefills"])))
        proxy.plot(
            [row["txns"] * (row["watchers"] - row["prefills"]) for row in some],
            [row[part] for row in some],
            "o",
            color=f"C{number}",
            markersize=4,
            label=part.removesuffix("_cpu"),
        )
    proxy.set_xlabel("messages a second to watchers behind one proxy")
    proxy.set_ylabel("cores")
    proxy.legend(fontsize=7)
    save_svg(figure, path)


def leases(rows: Sequence[Row], path: Path) -> None:
    """Leases held and etcd's CPU against the engines' bootstrap timeout."""
    figure, (held, cpu) = new_figure(2, width=9.0)
    for number, release in enumerate((True, False)):
        some = sorted(
            (row for row in rows if row["release"] is release), key=lambda row: float(row["bootstrap_timeout"])
        )
        label = "rooms released" if release else "rooms never released"
        timeouts = [row["bootstrap_timeout"] for row in some]
        held.plot(timeouts, [row["leases"] for row in some], "o-", color=f"C{number}", markersize=4, label=label)
        cpu.plot(timeouts, [per_room(row, "etcd") for row in some], "o-", color=f"C{number}", markersize=4, label=label)
    for axes, label in ((held, "leases held at the end"), (cpu, "etcd, µs a room")):
        axes.set_xscale("log")
        _plain(axes.xaxis)
        axes.set_xlabel("engines' bootstrap timeout, s")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=7, framealpha=0.6)
    save_svg(figure, path)


def sizes(rows: Sequence[Row], path: Path) -> None:
    """Bytes and CPU a room against what its key and value can grow by."""
    figure, (sent, cpu) = new_figure(2, width=9.0)
    named = [row for row in rows if not row["reason_bytes"]]
    failed = [row for row in rows if row["reason_bytes"]]
    for number, (some, key, label) in enumerate(
        ((named, "instance_bytes", "instance's id"), (failed, "reason_bytes", "a failed room's reason"))
    ):
        length = [row[key] for row in some]
        sent.plot(
            length,
            [row["sent_bytes"] / row["rooms"] for row in some],
            "o-",
            color=f"C{number}",
            markersize=4,
            label=label,
        )
        cpu.plot(length, [per_room(row, "etcd") for row in some], "o-", color=f"C{number}", markersize=4, label=label)
    for axes, label in ((sent, "bytes that etcd sends a room"), (cpu, "etcd, µs a room")):
        axes.set_xlabel("bytes")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=7, framealpha=0.6)
    save_svg(figure, path)


def simulated(rows: Sequence[Row], path: Path) -> None:
    """p50 and p99 against decode agents, for one etcd and for proxies on each node."""
    figure, both = new_figure(2, width=9.0)
    for axes, proxies in zip(both, (False, True), strict=True):
        for number, rate in enumerate(SIMULATED_ROOMS):
            some = [row for row in rows if row["rooms"] == rate and row["proxies"] is proxies and row["cells"] == 1]
            told = sorted((row for row in some if row["resolved_ms"]), key=lambda row: int(row["decodes"]))
            for quantile, style in (("p50", "-"), ("p99", "--")):
                points = [row["resolved_ms"][quantile] for row in told]
                axes.plot(
                    [row["decodes"] for row in told],
                    points,
                    style,
                    color=f"C{number}",
                    label=f"{rate} rooms/s {quantile}",
                )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(0.8, 14_000)
        _plain(axes.yaxis)
        axes.set_xlabel("decode agents")
        axes.set_ylabel("simulated register → resolved, ms")
        axes.set_title("a proxy on each node" if proxies else "one etcd", fontsize=9)
        axes.legend(fontsize=7, framealpha=0.6)
    save_svg(figure, path)
