"""Results that nobody measured."""

from __future__ import annotations

from typing import Any

from benchmarks import cluster, rig, saturation
from benchmarks.goals import Results
from benchmarks.rounds import at_rate_row, cpu

ROUNDS = 3
RESTART: dict[str, Any] = {
    "case": "1000000 live rooms",
    "rooms": 1_000_000,
    "rounds": ROUNDS,
    "seconds": {"median": 2.9, "min": 2.8, "max": 3.1},
    "cpu_seconds": {"median": 3.0, "min": 2.9, "max": 3.1},
    "agent_bytes_per_room": {"median": 500, "min": 490, "max": 510},
    "etcd_bytes_per_room": 900,
}
FUNCTION = {"function": "take", "calls_per_room": 1.0, "own_us_per_room": 2.0, "with_callees_us_per_room": 3.0}
PROFILE: list[dict[str, Any]] = [
    {"case": "prefill agent", "functions": [FUNCTION]},
    {"case": "prefill agent", "threads_us_per_room": {"event loop": 10.0, "gRPC's own": 5.0}},
]


def run(
    wait: float = 1.0, wall: float = 10.0, look: float = 2.0, cpu_us: float = 100.0, reached: float = 1000.0
) -> dict[str, Any]:
    """One run at a rate, all of whose values are the same."""
    return {
        "late_ms": [0.0] * 10,
        "wait_ms": [wait] * 10,
        "due_ms": [wait] * 10,
        "acknowledged_ms": [wait] * 10,
        "wall_us": [wall] * 10,
        "cpu_us": [wall] * 10,
        "clock_us": [1.0] * 10,
        "look_us": [look] * 10,
        "missing": 0,
        "reached": reached,
        "cpu_us_per_room": {"etcd": cpu_us / 2, "prefill engine": cpu_us / 2, "all": cpu_us},
    }


def rated(case: str, **more: Any) -> dict[str, Any]:
    """A row of runs at a rate; what it does not name is as run() has it."""
    values = {name: more.pop(name) for name in ("wait", "wall", "look", "cpu_us", "reached") if name in more}
    return at_rate_row([run(**values)] * ROUNDS, case=case, **more)


def flat_out(case: str, rate: float, cpu_us: float) -> dict[str, Any]:
    """A row of saturation.json."""
    return {
        "case": case,
        "rooms": 1000,
        "rooms_per_second": {"median": rate, "min": rate, "max": rate},
        "rooms_per_second_by_round": [rate] * ROUNDS,
        **cpu([run(cpu_us=cpu_us)] * ROUNDS),
    }


def made_up() -> dict[str, Any]:
    """Results that reach every goal, and every stretch."""
    ours, sglang, session, floor = (case.name for case in (rig.OURS, rig.SGLANG_1MS, rig.SGLANG_SESSION, rig.FLOOR))
    rows: dict[str, list[dict[str, Any]]] = {
        "blocking": [
            rated(rig.OURS_5MS.name, mode="prefill spins", wall=10.0),
            rated(rig.SGLANG_5MS.name, mode="prefill spins", wall=2000.0),
            rated(ours, mode="both spin", wall=20.0, look=1.0),
        ],
        "latency": [
            rated(case, mode=mode, rate=rate, wait=wait, cpu_us=wait * 100)
            for mode in ("both spin", "both idle")
            for rate in (300, 1000)
            for case, wait in ((ours, 1.0), (rig.OURS_1MS.name, 1.0), (sglang, 4.0), (session, 3.0), (floor, 0.9))
        ],
        "saturation": [
            flat_out(saturation.WATCHED, 50_000, 25.0),
            flat_out(saturation.TWO_AGENTS, 70_000, 25.0),
            flat_out(sglang, 800, 2000.0),
            flat_out(saturation.FLOOR_WATCHED, 60_000, 20.0),
        ],
        "fanout": [
            rated(
                str(agents),
                agents=agents,
                wait=wait,
                saturated=False,
                machine_busy={"median": 0.5, "min": 0.5, "max": 0.5},
            )
            for agents, wait in ((1, 1.0), (8, 1.5), (32, 3.0))
        ],
        "cluster": [
            rated(case, etcd=etcd, wait=wait, saturated=flat_out(case, 10_000, 30.0))
            for etcd, waits in ((cluster.SINGLE, (1.2, 1.0)), (cluster.SECURED, (3.0, 2.5)))
            for case, wait in zip((ours, floor), waits, strict=True)
        ],
        "restart": [RESTART],
        "profile": PROFILE,
    }
    etcd = ({"parts": {"etcd": {"cores": cores}}} for cores in (6.0, 2.0))
    rows["scaling"] = [
        *({"sweep": "cell", "rooms": 100.0, "relayed": relayed, **next(etcd)} for relayed in (False, True)),
        *({"sweep": "relays", "decodes": agents, "proxies": 1} for agents in (32, 64)),
    ]
    machine = {"cpu": "none", "cores": 0, "memory_gib": 0, "kernel": "none", "etcd_data": "paper"}
    return {
        name: {"name": name, "machine": machine, "versions": {"sglang": "0.0.0"}, "rows": found}
        for name, found in rows.items()
    }


def changed(name: str, case: str, results: Results, /, **values: Any) -> dict[str, Any]:
    """The same results but for the rows of one case."""
    rows = [{**row, **values} if row.get("case") == case else row for row in results[name]["rows"]]
    return {**results, name: {**results[name], "rows": rows}}
