"""Costs that are known, and rows as they would be measured if these costs were all there is."""

from __future__ import annotations

from functools import cache

from benchmarks.growth.costs import Costs
from benchmarks.growth.derived import derive
from benchmarks.harness import Row

COSTS = Costs(
    etcd_base=0.01,
    etcd_agent=0.0001,
    etcd_write=5e-6,
    etcd_message=20e-6,
    etcd_event=2e-6,
    bytes_message=30.0,
    bytes_event=100.0,
    bytes_txn=40.0,
    bytes_write=60.0,
    agent_idle=0.003,
    agent_message=200e-6,
    agent_event=10e-6,
    agent_want=80e-6,
    writer_txn=300e-6,
    writer_room=20e-6,
    proxy_base=0.002,
    proxy_up=50e-6,
    proxy_message=15e-6,
    proxy_event=1e-6,
    delay=0.001,
    commits=((100.0, 0.03), (1000.0, 0.15), (10_000.0, 0.6)),
    batches=((200.0, 1.0), (2000.0, 4.0), (20_000.0, 40.0)),
)


def row(sweep: str, rate: float, *, decodes: int = 1, prefills: int = 1, streams: int = 0, proxies: int = 0) -> Row:
    """One round."""
    costs, writes = COSTS, 2 * rate
    txns = writes / costs.batch(writes / prefills) if rate else 0.0
    agents, behind = decodes + prefills, decodes + streams
    watchers = prefills + (proxies or behind)
    hears = costs.agent_idle + txns * costs.agent_message + writes * costs.agent_event
    proxy = costs.proxy_base + txns * costs.proxy_up
    proxy += behind * (txns * costs.proxy_message + writes * costs.proxy_event)
    fan_out = watchers * (txns * costs.etcd_message + writes * costs.etcd_event)
    there = costs.etcd_base + agents * costs.etcd_agent
    waits = {"n": 100, "p50": 2.0, "p99": 5.0, "p999": 6.0}
    return {
        "sweep": sweep,
        "rate": rate,
        "rooms": rate,
        "refused": 0,
        "saturated": False,
        "overrun": False,
        "cores": 2,
        "busy": 0.5,
        "prefills": prefills,
        "decodes": decodes,
        "proxies": proxies,
        "streams": streams,
        "ranks": prefills,
        "agents": agents,
        "watchers": agents + streams,
        "watchers_at_etcd": watchers,
        "txns": txns,
        "puts": rate,
        "deletes": rate,
        "messages": txns * watchers,
        "sent_bytes": watchers * (txns * costs.bytes_message + writes * costs.bytes_event)
        + txns * costs.bytes_txn
        + writes * costs.bytes_write,
        "received_bytes": 400.0 * rate,
        "granted": 0.0,
        "leases": 2,
        "etcd_cpu": there + costs.commit(txns) + (writes - txns) * costs.etcd_write + fan_out,
        "proxy_cpu": proxy if proxies else 0.0,
        "prefill_cpu": prefills * hears + txns * costs.writer_txn + rate * costs.writer_room,
        "decode_cpu": hears + rate * costs.agent_want,
        "bystander_cpu": hears if decodes > 1 else 0.0,
        "load_cpu": 0.1,
        "prefill_engine_cpu": rate * 100e-6,
        "decode_engine_cpu": rate * 50e-6,
        "others_cpu": 0.0,
        "announce_ms": 10.0,
        "bootstrap_timeout": 300.0,
        "release": True,
        "instance_bytes": 9,
        "reason_bytes": 0,
        "registered_ms": waits,
        "resolved_ms": waits,
    }


def commit_row(txns: float) -> Row:
    """A round of transactions that nobody watches."""
    used = COSTS.etcd_base + 2 * COSTS.etcd_agent + COSTS.commit(txns)
    return row("commits", 0.0) | {"txns": txns, "etcd_cpu": used}


def rows() -> list[Row]:
    """A whole run."""
    found = [row("rates", rate, decodes=2) for rate in (100.0, 1000.0, 10_000.0)]
    found += [row("ranks", 300.0)]
    found += [row("instances", rate, prefills=count) for count in (1, 4) for rate in (0.0, 100.0, 300.0)]
    found += [row("decodes", rate, decodes=count) for count in (1, 8, 32) for rate in (0.0, 100.0, 300.0)]
    found += [row("streams", rate, streams=count) for count in (8, 128) for rate in (30.0, 1000.0)]
    found += [row("proxied", rate, decodes=count, proxies=1) for count in (1, 8) for rate in (100.0, 1000.0)]
    found += [row("proxied", rate, streams=64, proxies=1) for rate in (30.0, 100.0)]
    found += [row("relays", 30.0, decodes=count, proxies=proxies) for count in (32, 64) for proxies in (0, 1, 1, 0)]
    found += [commit_row(txns) for txns, _ in COSTS.commits]
    found += [row("ttl", 300.0) | {"release": release} for release in (True, False)]
    found += [row("size", 300.0), row("size", 300.0) | {"reason_bytes": 512}]
    checked = {"sweep": "checks", "idle_seconds": 7.0, "largest_message": 10, "view_lost": 0}
    answers = ("same_cluster", "created_revision", "in_order", "fragments", "progress", "keepalive")
    return found + [{**checked, "asked": name, **dict.fromkeys(answers, True)} for name in ("etcd", "grpc-proxy")]


@cache
def derived() -> list[Row]:
    """What follows from that run."""
    return derive(rows())
