"""One round: etcd, agents, proxies and engines for a few seconds, and what each of them used."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from typing import Any

from etcd_pd.reference.local.embedded import EmbeddedEtcd, find_etcd
from etcd_pd.reference.local.probe import http_ok
from etcd_pd.reference.local.process import Process, free_ports

from ..agents import AgentProcess
from ..harness import SCRATCH, Row, Worker, etcd_on_disk, percentiles
from .counters import Look, look
from .engines import Place, Plan

#: What is running before the first room that counts, seconds.
WARM_SECONDS = 0.6
#: How long agents that have just started are left alone before they count as idle, seconds.
SETTLE_SECONDS = 0.5
#: Past this share of the machine's cores in use, latencies are the machine's and not the registry's.
SATURATED = 0.9
#: With more than this share of the rooms refused, or without an answer at the end, the load was more than it takes.
OVERRUN = 0.02
#: The prefix that an agent watches by default.
PREFIX = "/etcd_pd/default/v1/"
INSTANCE = "prefill-0"


@dataclass(frozen=True)
class Setting:
    """What stands while rounds go by.

    Attributes:
        prefills: agents with a prefill instance each.
        decodes: decode agents; the first of them has an engine that wants every room.
        proxies: ``etcd grpc-proxy`` processes between the decode agents and etcd, which are shared out over them.
        bootstrap_timeout: the engine's, seconds: leases that rooms hang on live a little longer.
        prefill_only: prefill agents hear of no rooms, as the chart's.
    """

    prefills: int = 1
    decodes: int = 1
    proxies: int = 0
    bootstrap_timeout: float = 300.0
    prefill_only: bool = False

    @property
    def watching_prefills(self) -> int:
        """Prefill agents that watch the cell."""
        return 0 if self.prefill_only else self.prefills


@dataclass(frozen=True)
class Rig:
    """Running processes."""

    setting: Setting
    etcd: EmbeddedEtcd
    proxies: list[tuple[str, Process]]
    prefills: list[AgentProcess]
    decodes: list[AgentProcess]
    rooms: Iterator[int] = field(default_factory=lambda: count(10**18, 10**9))

    @property
    def watched_at(self) -> list[str]:
        """Where decodes find etcd."""
        return [endpoint for endpoint, _ in self.proxies] or [self.etcd.endpoint]

    def pids(self) -> dict[str, list[int]]:
        """Process ids by what they are; a bystander is a decode agent whose engines want nothing."""
        return {
            "etcd": [self.etcd.process.pid],
            "proxy": [process.pid for _, process in self.proxies],
            "prefill": [agent.pid for agent in self.prefills],
            "decode": [agent.pid for agent in self.decodes[:1]],
            "bystander": [agent.pid for agent in self.decodes[1:]],
        }

    def places(self, ranks: int = 1, name: str = INSTANCE) -> list[Place]:
        """Every prefill agent's instance, named alike, with so many ranks each."""
        names = [name if number == 0 else f"{name}-{number}" for number in range(len(self.prefills))]
        return [
            Place(agent.socket_path, instance, rank, max(ranks, 2))
            for agent, instance in zip(self.prefills, names, strict=True)
            for rank in range(ranks)
        ]


@contextmanager
def running(setting: Setting) -> Iterator[Rig]:
    """Start everything, all agents at once."""
    with ExitStack() as stack:
        etcd = stack.enter_context(etcd_on_disk())
        proxies = [stack.enter_context(proxy(etcd.endpoint)) for _ in range(setting.proxies)]
        options = ["--bootstrap-timeout-seconds", str(setting.bootstrap_timeout)]
        watched_at = [endpoint for endpoint, _ in proxies] or [etcd.endpoint]
        own = [*options, "--prefill-only"] if setting.prefill_only else options
        prefills = [AgentProcess(etcd.endpoint, f"prefill-{n}", own) for n in range(setting.prefills)]
        decodes = [AgentProcess(watched_at[n % len(watched_at)], f"decode-{n}") for n in range(setting.decodes)]
        for agent in prefills + decodes:
            stack.enter_context(agent)
        for agent in prefills + decodes:
            stack.callback(agent.end)
        yield Rig(setting, etcd, proxies, prefills, decodes)


@contextmanager
def proxy(endpoint: str) -> Iterator[tuple[str, Process]]:
    """``etcd grpc-proxy start`` before an etcd: where it listens, and its process."""
    (port,) = free_ports(1)
    SCRATCH.mkdir(parents=True, exist_ok=True)
    data, log = SCRATCH / f"proxy-{port}", SCRATCH / f"proxy-{port}.log"
    command = [find_etcd(), "grpc-proxy", "start", f"--endpoints={endpoint}", f"--listen-addr=127.0.0.1:{port}"]
    command += [f"--advertise-client-url=127.0.0.1:{port}", f"--data-dir={data}"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
    process = Process("etcd grpc-proxy", command, log, environ)
    try:
        process.wait_until(lambda: http_ok(f"http://127.0.0.1:{port}/health"), 20)
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.stop()
        log.unlink(missing_ok=True)


def play_round(rig: Rig, plan: Plan, places: list[Place], streams: int = 0) -> Row:
    """One round: WARM_SECONDS of the plan, then its seconds, which are what the row tells of.

    Args:
        rig: what is running.
        plan: the rooms.
        places: the prefill ranks that take them.
        streams: watch streams without an agent beside the agents', at the proxies where there are any.
    """
    plan = replace(plan, seconds=plan.seconds + WARM_SECONDS, first_room=next(rig.rooms))
    config = {"plan": asdict(plan), "places": [asdict(place) for place in places]}
    with ExitStack() as stack:
        watchers = [stack.enter_context(_streams(at, n)) for at, n in _shared_out(rig.watched_at, streams) if n]
        writer = stack.enter_context(Worker("benchmarks.growth.engines", {**config, "role": "prefill"}))
        reader_config = {**config, "role": "decode", "socket_path": rig.decodes[0].socket_path}
        reader = stack.enter_context(Worker("benchmarks.growth.engines", reader_config))
        for worker in (*watchers, writer, reader):
            worker.hear()
        engines = {"prefill_engine": [writer.pid], "decode_engine": [reader.pid]}
        pids = {**rig.pids(), **engines, "load": [worker.pid for worker in watchers]}
        everybody = [pid for some in pids.values() for pid in some]
        start = time.monotonic() + 0.2
        writer.say(start)
        reader.say(start)
        time.sleep(start + WARM_SECONDS - time.monotonic())
        before = look(everybody, rig.etcd.endpoint)
        time.sleep(max(0.0, start + plan.seconds - time.monotonic()))
        after = look(everybody, rig.etcd.endpoint)
        wrote, read = writer.hear(), dict(reader.hear())
    row = _setting_row(rig.setting, plan, places, streams)
    row |= _use(pids, before, after) | _traffic(before, after) | _outcome(wrote, read, before.at, after.at)
    row["load_cpu"] = round(row["load_cpu"] + row["prefill_engine_cpu"] + row["decode_engine_cpu"], 5)
    row["overrun"] = row["refused"] + row["unresolved"] > OVERRUN * plan.rooms
    return row | {"saturated": row["saturated"] or row["overrun"]}


def _streams(endpoint: str, count: int) -> Worker:
    return Worker("benchmarks.growth.watchers", {"endpoint": endpoint, "prefix": PREFIX, "count": count})


def _shared_out(endpoints: list[str], count: int) -> list[tuple[str, int]]:
    return [(at, count // len(endpoints) + (n < count % len(endpoints))) for n, at in enumerate(endpoints)]


def _setting_row(setting: Setting, plan: Plan, places: list[Place], streams: int) -> Row:
    agents = setting.prefills + setting.decodes
    return {
        **asdict(setting),
        "rate": plan.rate,
        "ranks": len(places),
        "streams": streams,
        "agents": agents,
        "watchers": setting.watching_prefills + setting.decodes + streams,
        "watchers_at_etcd": setting.watching_prefills + (setting.proxies or setting.decodes + streams),
        "release": plan.release,
        "reason_bytes": len(plan.reason),
        "instance_bytes": len(places[0].instance) if places else 0,
    }


def _use(pids: dict[str, list[int]], before: Look, after: Look) -> Row:
    """CPU seconds a second, by role; bystanders: the mean of one."""
    seconds = after.at - before.at
    used = {role: sum(after.cpu[pid] - before.cpu[pid] for pid in some) for role, some in pids.items()}
    busy = (after.busy - before.busy) / seconds
    row: Row = {f"{role}_cpu": round(total / seconds, 5) for role, total in used.items()}
    row["bystander_cpu"] = round(row["bystander_cpu"] / max(len(pids["bystander"]), 1), 5)
    row["others_cpu"] = round(max(busy - sum(used.values()) / seconds, 0.0), 3)
    row["busy"] = round(busy / (os.cpu_count() or 1), 3)
    row["cores"] = os.cpu_count() or 1
    row["saturated"] = row["busy"] >= SATURATED
    return row


def _traffic(before: Look, after: Look) -> Row:
    """What etcd counted, a second; leases and its database as they are at the end."""
    seconds = after.at - before.at
    counted = {name: after.etcd[name] - before.etcd[name] for name in after.etcd}
    names = ("txns", "puts", "deletes", "messages", "asked", "keepalives", "sent_bytes", "received_bytes", "granted")
    row: Row = {name: round(counted[name] / seconds, 2) for name in names}
    row["rooms"] = row["puts"]  # all else that is put was put before
    row["fsync_ms"] = round(1e3 * counted["fsync_seconds"] / max(counted["fsyncs"], 1), 3)
    row["leases"] = after.etcd["granted"] - after.etcd["revoked"]
    row["window"] = round(seconds, 3)
    return row


def _outcome(wrote: dict[str, Any], read: dict[int, float], start: float, end: float) -> Row:
    """What became of the rooms that were due in the window; times in milliseconds."""
    registered = dict(wrote["registered"])
    window = [number for number, at in enumerate(wrote["sent"]) if start <= at < end]
    sent = wrote["sent"]
    return {
        "unresolved": sum(number not in read for number in window),
        "refused": wrote["refused"],
        "announce_ms": round(wrote["announced"] * 1e3, 1),
        "registered_ms": percentiles([(registered[n] - sent[n]) * 1e3 for n in window if n in registered]),
        "resolved_ms": percentiles([(read[n] - sent[n]) * 1e3 for n in window if n in read]),
    }


def idle(rig: Rig, seconds: float) -> Row:
    """The same without any room: what agents and their watches cost by being there."""
    time.sleep(SETTLE_SECONDS)
    pids = rig.pids()
    before = look([pid for some in pids.values() for pid in some], rig.etcd.endpoint)
    time.sleep(seconds)
    after = look(before.cpu, rig.etcd.endpoint)
    row = _setting_row(rig.setting, Plan(0, 0), [], 0) | _use(pids, before, after) | _traffic(before, after)
    return row | {"rooms": 0.0, "overrun": False}


def commit(rig: Rig, seconds: float, rate: float, in_flight: int) -> Row:
    """Small transactions that nobody watches, so many a second at most and so many in flight at most."""
    config = {"endpoint": rig.etcd.endpoint, "rate": rate, "in_flight": in_flight, "seconds": seconds + WARM_SECONDS}
    with Worker("benchmarks.growth.commits", config) as writer:
        writer.hear()
        pids = {**rig.pids(), "load": [writer.pid]}
        start = time.monotonic() + 0.1
        writer.say(start)
        time.sleep(start + WARM_SECONDS - time.monotonic())
        before = look([pid for some in pids.values() for pid in some], rig.etcd.endpoint)
        time.sleep(seconds)
        after = look(before.cpu, rig.etcd.endpoint)
        writer.hear()
    row = _setting_row(rig.setting, Plan(rate, seconds), [], 0) | _use(pids, before, after) | _traffic(before, after)
    return row | {"rooms": 0.0, "in_flight": in_flight, "overrun": False}
