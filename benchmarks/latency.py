"""From register() in one engine to its room's rank in another, and what each room costs all processes."""

from __future__ import annotations

from .harness import Row
from .rig import FLOOR, OURS, OURS_1MS, SGLANG_0MS, SGLANG_1MS, SGLANG_5MS, SGLANG_SESSION, Case, rig, settle
from .rounds import MODES, Plan, Run, at_rate_row, interleaved

_ALL = (OURS, OURS_1MS, SGLANG_0MS, SGLANG_1MS, SGLANG_5MS, SGLANG_SESSION, FLOOR)
_MAIN = (OURS, SGLANG_1MS, SGLANG_SESSION, FLOOR)
#: Mode, rooms a second, and who takes part.
FULL: tuple[tuple[str, int, tuple[Case, ...]], ...] = (
    ("both spin", 300, _ALL),
    ("both spin", 1000, (SGLANG_0MS, *_MAIN)),
    ("both idle", 300, _ALL),
    ("both idle", 1000, _MAIN),
)
QUICK: tuple[tuple[str, int, tuple[Case, ...]], ...] = (
    ("both spin", 300, (OURS, SGLANG_1MS, FLOOR)),
    ("both spin", 1000, _MAIN),
    ("both idle", 300, (OURS, OURS_1MS, SGLANG_1MS, FLOOR)),
    ("both idle", 1000, _MAIN),
)


def measure(plan: Plan) -> list[Row]:
    """Rows of ``latency.json``."""
    keys = [(mode, rate, case) for mode, rate, cases in (QUICK if plan.quick else FULL) for case in cases]
    with rig(["etcd_pd", "sglang", "floor"]) as systems:

        def run(key: tuple[str, int, Case]) -> Run:
            mode, rate, case = key
            found = systems.at_rate(case, rate, plan.seconds, MODES[mode])
            settle()
            return found

        runs = interleaved(keys, plan, run, "latency")
    rows = []
    for (mode, rate, case), found in runs.items():
        row = at_rate_row(found, case=case.name, mode=mode, rate=rate)
        if mode != "both idle":  # the spinning, not the room
            row.pop("cpu_us_per_room")
            row.pop("cpu_us_by_round")
        rows.append(row)
    return rows
