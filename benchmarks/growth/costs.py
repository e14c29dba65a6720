"""What one event costs: a few coefficients, found by least squares in the measured rows and nowhere else."""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from ..harness import Row

#: Sweeps whose rows have the same key and value sizes, so that one cost an event fits them all.
FITTED = ("rates", "instances", "decodes", "streams", "proxied")


@dataclass(frozen=True)
class Costs:
    """CPU seconds (of one core of the machine that was measured) and bytes.

    A *message* is one watch response to one watcher: what one transaction did. An *event* is one change in it, for one
    watcher; a room is two, its registration and its release.

    Attributes:
        etcd_base: etcd with nobody there, a second.
        etcd_agent: an agent that is there, a second: keepalives, and signs of life of its watch.
        etcd_write: one put or delete in a transaction, beyond the first.
        etcd_message, etcd_event: the fan-out.
        bytes_message, bytes_event: the fan-out, on the wire (gRPC's payload).
        bytes_txn, bytes_write: what transactions and their answers take.
        agent_idle: an agent that is there, a second.
        agent_message, agent_event: any agent that hears of rooms that none of its engines wants.
        agent_want: on top, a room that an engine wants.
        writer_txn, writer_room: on top, a prefill agent's own transactions and rooms.
        proxy_base: a proxy, a second.
        proxy_up: a message that it receives from etcd.
        proxy_message, proxy_event: what it sends on, for each watcher.
        delay: seconds from register() to resolved that are nobody's CPU time: wake-ups, fsync, the loopback.
        commits: CPU seconds a second of etcd, by transactions a second of one write each. It is no straight line: the
            more there are, the more of them share a write to disk, a system call, a wake-up.
        batches: writes a transaction, by writes a second of one prefill agent.
    """

    etcd_base: float
    etcd_agent: float
    etcd_write: float
    etcd_message: float
    etcd_event: float
    bytes_message: float
    bytes_event: float
    bytes_txn: float
    bytes_write: float
    agent_idle: float
    agent_message: float
    agent_event: float
    agent_want: float
    writer_txn: float
    writer_room: float
    proxy_base: float
    proxy_up: float
    proxy_message: float
    proxy_event: float
    delay: float
    commits: tuple[tuple[float, float], ...]
    batches: tuple[tuple[float, float], ...]

    @property
    def most_commits(self) -> float:
        """Most transactions a second that were measured: etcd may do more where its writer does not share its cores."""
        return self.commits[-1][0]

    def commit(self, txns: float) -> float:
        """CPU seconds a second of so many transactions: straight between what was measured, and beyond it."""
        points = ((0.0, 0.0), *self.commits)
        for (low, least), (high, most) in zip(points, points[1:], strict=False):
            if txns <= high:
                return least + (most - least) * (txns - low) / (high - low)
        return points[-1][1] * txns / points[-1][0]

    def batch(self, writes: float) -> float:
        """Writes a transaction, by one prefill agent's writes a second.

        Between what was measured it goes by their logarithms; beyond, it is what it was at the end.
        """
        rates = [rate for rate, _ in self.batches]
        at = bisect.bisect_left(rates, writes)
        if at in (0, len(rates)):
            return self.batches[min(at, len(rates) - 1)][1]
        (low, few), (high, many) = self.batches[at - 1 : at + 1]
        share = math.log(writes / low) / math.log(high / low)
        return float(few * (many / few) ** share)

    def to_row(self) -> Row:
        """As a row of the results."""
        return {"sweep": "costs", **asdict(self)}


@dataclass(frozen=True)
class _Fit:
    coefficients: list[float]
    error: float


def fit(rows: Iterable[Row]) -> tuple[Costs, dict[str, float]]:
    """The costs, and how far each fit is from its rows: the median of the relative errors."""
    rows = list(rows)
    nothing: dict[str, Any] = {field.name: 0.0 for field in fields(Costs)}
    costs = Costs(**nothing)
    errors: dict[str, float] = {}
    # each takes what the ones before it found as given
    for step in (_etcd_there, _etcd_busy, _agents, _prefill_agents, _proxies):
        costs, found = step(rows, costs)
        errors |= {name: round(one.error, 3) for name, one in found.items()}
    return costs, errors


_Found = tuple[Costs, dict[str, _Fit]]


def _quiet(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["sweep"] in FITTED and not row["rooms"]]


def _direct(rows: list[Row]) -> list[Row]:
    return [row for row in _busy(rows) if not row["proxies"]]


def _busy(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["sweep"] in FITTED and row["rooms"] and not row["overrun"]]


def _etcd_there(rows: list[Row], costs: Costs) -> _Found:
    """What etcd uses without any room, then for transactions alone."""
    there = _solve(_quiet(rows), lambda row: [1.0, row["agents"]], lambda row: row["etcd_cpu"])
    costs = replace(costs, **_named(there, "etcd_base", "etcd_agent"))
    return replace(costs, commits=_commits(rows, costs), batches=_batches(rows)), {}


def _etcd_busy(rows: list[Row], costs: Costs) -> _Found:
    """What is left is fan-out, and larger transactions; and the bytes of both."""

    def left(row: Row) -> float:
        return float(row["etcd_cpu"] - _there(row, costs) - costs.commit(row["txns"]))

    etcd = _solve(_direct(rows), _etcd_terms, left, lambda row: row["etcd_cpu"])
    sent = _solve(_direct(rows), _byte_terms, lambda row: row["sent_bytes"])
    costs = replace(
        costs,
        **_named(etcd, "etcd_write", "etcd_message", "etcd_event"),
        **_named(sent, "bytes_message", "bytes_event", "bytes_txn", "bytes_write"),
    )
    return costs, {"etcd": etcd, "bytes": sent}


def _agents(rows: list[Row], costs: Costs) -> _Found:
    """A bystander's work; and on top, what a room costs whose engine waits for it."""
    idle = statistics.median(row["bystander_cpu"] for row in _quiet(rows) if row["decodes"] > 1)
    hearing = [row for row in _direct(rows) if row["decodes"] > 1]
    agent = _solve(hearing, _agent_terms, lambda row: row["bystander_cpu"] - idle, lambda row: row["bystander_cpu"])
    costs = replace(costs, agent_idle=idle, **_named(agent, "agent_message", "agent_event"))
    want = _solve(
        _direct(rows),
        lambda row: [row["rooms"]],
        lambda row: row["decode_cpu"] - _watching(row, costs),
        lambda row: row["decode_cpu"],
    )
    return replace(costs, **_named(want, "agent_want")), {"agent": agent}


def _prefill_agents(rows: list[Row], costs: Costs) -> _Found:
    """What a prefill agent uses beyond a bystander's work."""
    writer = _solve(
        _direct(rows),
        lambda row: [row["txns"], row["rooms"]],
        lambda row: row["prefill_cpu"] - row["prefills"] * _watching(row, costs),
        lambda row: row["prefill_cpu"],
    )
    return replace(costs, **_named(writer, "writer_txn", "writer_room")), {"prefill agent": writer}


def _proxies(rows: list[Row], costs: Costs) -> _Found:
    behind = [row for row in _busy(rows) if row["proxies"]]
    proxy = _solve(behind, _proxy_terms, lambda row: row["proxy_cpu"])
    return replace(costs, **_named(proxy, "proxy_base", "proxy_up", "proxy_message", "proxy_event")), {"proxy": proxy}


def _there(row: Row, costs: Costs) -> float:
    return float(costs.etcd_base + row["agents"] * costs.etcd_agent)


def _named(found: _Fit, *names: str) -> dict[str, Any]:
    return dict(zip(names, found.coefficients, strict=True))


def writes(row: Row) -> float:
    """Puts and deletes a second."""
    return float(row["puts"] + row["deletes"])


def _etcd_terms(row: Row) -> list[float]:
    watchers = row["watchers_at_etcd"]
    return [max(writes(row) - row["txns"], 0.0), row["txns"] * watchers, writes(row) * watchers]


def _byte_terms(row: Row) -> list[float]:
    watchers = row["watchers_at_etcd"]
    return [row["txns"] * watchers, writes(row) * watchers, row["txns"], writes(row)]


def _agent_terms(row: Row) -> list[float]:
    return [row["txns"], writes(row)]


def _watching(row: Row, costs: Costs) -> float:
    return float(costs.agent_idle + row["txns"] * costs.agent_message + writes(row) * costs.agent_event)


def _proxy_terms(row: Row) -> list[float]:
    behind = row["decodes"] + row["streams"]
    return [1.0, row["txns"], row["txns"] * behind, writes(row) * behind]


def _solve(
    rows: list[Row],
    terms: Callable[[Row], list[float]],
    value: Callable[[Row], float],
    scale: Callable[[Row], float] | None = None,
) -> _Fit:
    """Least squares with no cost below zero: those that would be are left out, the lowest first.

    Errors count relative to ``scale``, None: the value; a row that is small beside the largest counts for less.
    """
    matrix = np.array([terms(row) for row in rows])
    wanted = np.array([value(row) for row in rows])
    sizes = np.abs([(scale or value)(row) for row in rows])
    weights = 1 / np.maximum(sizes, 0.05 * sizes.max())
    kept = list(range(matrix.shape[1]))
    while kept:
        found, *_ = np.linalg.lstsq(matrix[:, kept] * weights[:, None], wanted * weights, rcond=None)
        if found.min() >= 0:
            break
        kept.pop(int(found.argmin()))
    coefficients = np.zeros(matrix.shape[1])
    if kept:
        coefficients[kept] = found
    error = np.median(np.abs(matrix @ coefficients - wanted) * weights)
    return _Fit([float(one) for one in coefficients], float(error))


def _commits(rows: list[Row], costs: Costs) -> tuple[tuple[float, float], ...]:
    """What etcd used beyond its being there, against transactions a second; more of them never use less."""
    measured = [row for row in rows if row["sweep"] == "commits"]
    found: list[tuple[float, float]] = []
    for txns, cpu in sorted((row["txns"], row["etcd_cpu"] - _there(row, costs)) for row in measured):
        if not found or txns > found[-1][0] * 1.1:
            found.append((txns, max(cpu, found[-1][1] if found else 0.0)))
    return tuple(found)


def _batches(rows: list[Row]) -> tuple[tuple[float, float], ...]:
    """Writes a transaction against writes a second and agent, smoothed so that more writes are never fewer a batch."""
    measured = [row for row in _busy(rows) if row["sweep"] == "rates"]
    found: list[tuple[float, float]] = []
    for rate, size in sorted((writes(row) / row["prefills"], writes(row) / row["txns"]) for row in measured):
        if not found or rate > found[-1][0] * 1.1:
            found.append((rate, max(size, found[-1][1] if found else 1.0)))
    return tuple(found)
