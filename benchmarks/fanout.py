"""What each further node costs: every agent of a cell watches all of it."""

from __future__ import annotations

import psutil

from .harness import Row, spread
from .rig import OURS, rig, settle
from .rounds import MODES, Plan, Run, at_rate_row, interleaved

RATE = 300
FULL, QUICK = (1, 8, 32), (1, 8)
#: Where more of the machine is busy than this, what is measured is the machine.
SATURATED = 0.9


def measure(plan: Plan) -> list[Row]:
    """Rows of ``fanout.json``: so many decode agents, whose engines share the rooms evenly."""

    def run(agents: int) -> Run:
        with rig(["etcd_pd"], decode_agents=agents) as systems:
            settle()
            psutil.cpu_percent()
            found = systems.at_rate(OURS, RATE, plan.seconds, MODES["both idle"])
            return {**found, "busy": psutil.cpu_percent() / 100}

    runs = interleaved(QUICK if plan.quick else FULL, plan, run, "fan-out")
    return [_row(agents, found) for agents, found in runs.items()]


def _row(agents: int, runs: list[Run]) -> Row:
    busy = spread([run["busy"] for run in runs], 2)
    row = at_rate_row(runs, case=f"{agents} watching agents", agents=agents, rate=RATE)
    return row | {"machine_busy": busy, "saturated": busy["median"] > SATURATED}
