"""Three etcd members with TLS and authentication beside a single one without: each against its own floor."""

from __future__ import annotations

from contextlib import ExitStack

from .harness import Row, spread
from .rig import FLOOR, OURS, Case, Rig, rig, settle
from .rounds import MODES, Plan, Run, at_rate_row, cpu, interleaved
from .saturation import WINDOW
from .secured import secured_cluster

RATE, ROOMS = 300, 24_000
SINGLE, SECURED = "one member", "three members, TLS and authentication"


def measure(plan: Plan) -> list[Row]:
    """Rows of ``cluster.json``: latency at a rate, and rooms a second."""
    with ExitStack() as stack:
        where = {SINGLE: None, SECURED: stack.enter_context(secured_cluster())}
        rigs = {name: stack.enter_context(rig(["etcd_pd", "floor"], etcd)) for name, etcd in where.items()}
        keys = [(name, case) for name in rigs for case in (OURS, FLOOR)]

        def at_rate(key: tuple[str, Case]) -> Run:
            found = rigs[key[0]].at_rate(key[1], RATE, plan.seconds, MODES["both idle"])
            settle()
            return found

        slow = interleaved(keys, plan, at_rate, "cluster, at a rate")
        fast = interleaved(keys, plan, lambda key: _flat_out(rigs[key[0]], key[1], plan), "cluster, flat out")
    rows = []
    for etcd, case in keys:
        row = at_rate_row(slow[etcd, case], case=case.name, etcd=etcd, rate=RATE)
        row["saturated"] = _saturated(fast[etcd, case])
        rows.append(row)
    return rows


def _flat_out(systems: Rig, case: Case, plan: Plan) -> Run:
    found = systems.flat_out(case, ROOMS // (4 if plan.quick else 1), WINDOW, wanted=case is FLOOR)
    settle()
    return found


def _saturated(runs: list[Run]) -> Row:
    rates = [round(run["rooms_per_second"]) for run in runs]
    return {"rooms_per_second": spread(rates, 0), "rooms_per_second_by_round": rates, **cpu(runs)}
