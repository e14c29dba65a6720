"""Where the agents' time goes while rooms are registered at full speed and all of them are wanted."""

from __future__ import annotations

from . import saturation
from .harness import SCRATCH, Row
from .profiled import table
from .rig import OURS, rig
from .rounds import Plan

ROOMS = 30_000


def measure(plan: Plan) -> list[Row]:
    """Rows of ``profile.json``: the heaviest functions of each agent, by CPU time of its event loop's thread."""
    SCRATCH.mkdir(parents=True, exist_ok=True)
    files = {name: SCRATCH / f"{name}.prof" for name in ("prefill", "decode")}
    with rig(["etcd_pd"], profiles=files) as systems:
        systems.flat_out(OURS, ROOMS, saturation.WINDOW, wanted=True)
    return [{"case": f"{name} agent", "rooms": ROOMS, "functions": table(file, ROOMS)} for name, file in files.items()]
