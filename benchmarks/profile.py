"""Where the agents' time goes: by function at full speed, by thread at a rate."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from . import saturation
from .harness import SCRATCH, Row
from .profiled import table
from .rig import OURS, OURS_1MS, rig
from .rounds import MODES, Plan

ROOMS, RATE = 30_000, 300


def measure(plan: Plan) -> list[Row]:
    """Rows of ``profile.json``: each agent's heaviest functions, and the CPU time of each agent's threads."""
    SCRATCH.mkdir(parents=True, exist_ok=True)
    files = {name: SCRATCH / f"{name}.prof" for name in ("prefill", "decode")}
    with rig(["etcd_pd"], profiles=files) as systems:
        systems.flat_out(OURS, ROOMS, saturation.WINDOW, wanted=True)
    rows: list[Row] = [
        {"case": f"{name} agent", "rooms": ROOMS, "functions": table(file, ROOMS)} for name, file in files.items()
    ]
    with rig(["etcd_pd"]) as systems:
        pids = {name: systems.service("etcd_pd")[f"{name} agents"][0] for name in files}
        before = {name: threads(pid) for name, pid in pids.items()}
        systems.at_rate(OURS_1MS, RATE, plan.seconds, MODES["both idle"])
        for name, pid in pids.items():
            used = threads(pid) - before[name]
            rooms = int(RATE * plan.seconds)
            rows.append({"case": f"{name} agent", "rate": RATE, "threads_us_per_room": _rounded(used, rooms)})
    return rows


def threads(pid: int) -> Counter[str]:
    """CPU microseconds of a process's threads so far, by what they do."""
    found: Counter[str] = Counter()
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            nanoseconds = int((task / "schedstat").read_text().split()[0])
            name = (task / "comm").read_text().strip()
        except OSError:
            continue  # it has ended
        # Python gives its threads no names: they read streams and complete calls
        kind = "event loop" if int(task.name) == pid else "gRPC's own" if name != "python" else "gRPC's Python threads"
        found[kind] += nanoseconds // 1000
    return found


def _rounded(used: Counter[str], rooms: int) -> dict[str, float]:
    return {name: round(microseconds / rooms, 1) for name, microseconds in used.most_common()}
