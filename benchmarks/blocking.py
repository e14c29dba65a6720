"""How long registering and looking hold up an engine's scheduler."""

from __future__ import annotations

from .harness import Row
from .rig import OURS, OURS_5MS, SGLANG_5MS, SGLANG_SESSION_5MS, Case, rig, settle
from .rounds import MODES, Plan, Run, at_rate_row, interleaved

RATE = 300


def measure(plan: Plan) -> list[Row]:
    """Rows of ``blocking.json``: with a core free beside each spinning interpreter, and with both spinning."""
    more = () if plan.quick else (SGLANG_SESSION_5MS,)
    cases = {"prefill spins": (OURS_5MS, SGLANG_5MS, *more), "both spin": (OURS, SGLANG_5MS)}
    keys = [(mode, case) for mode, chosen in cases.items() for case in chosen]
    with rig(["etcd_pd", "sglang"]) as systems:

        def run(key: tuple[str, Case]) -> Run:
            mode, case = key
            found = systems.at_rate(case, RATE, plan.seconds, MODES[mode])
            settle()
            return found

        runs = interleaved(keys, plan, run, "blocking")
    rows = [at_rate_row(found, case=case.name, mode=mode, rate=RATE) for (mode, case), found in runs.items()]
    for row in rows:
        row.pop("wait_ms", None)  # the pause between looks, not the registry: see latency.json
        row.pop("cpu_us_per_room")  # the spinning
        row.pop("cpu_us_by_round")
    return rows
