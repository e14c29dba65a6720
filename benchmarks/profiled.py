"""``etcd-pd`` under cProfile, by the CPU time of its main thread: ``python -m benchmarks.profiled FILE agent ...``.

CPU time and not wall time, so that what else runs on the machine, and waiting, do not appear in it. A profile makes
every call dearer by about a microsecond: read its shares, not its sums.
"""

from __future__ import annotations

import cProfile
import os
import pstats
import re
import sys
import time
from pathlib import Path
from typing import Any

from etcd_pd.cli import main as etcd_pd_main

#: Functions that a report shows.
LINES = 20


def main(file: str, arguments: list[str]) -> None:
    """Run the command line to its end, then write the profile."""
    profile = cProfile.Profile(time.thread_time)
    sys.argv = ["etcd-pd", *arguments]
    vars(os)["_exit"] = sys.exit  # an agent leaves without tearing itself down, and without coming back here
    profile.enable()
    try:
        etcd_pd_main()
    except SystemExit:
        pass
    finally:
        profile.disable()
        profile.dump_stats(file)


def table(file: Path, rooms: int) -> list[dict[str, Any]]:
    """The functions that took the most time themselves: calls and microseconds a room, with and without callees."""
    statistics: dict[tuple[str, int, str], tuple[int, int, float, float, object]] = vars(pstats.Stats(str(file)))[
        "stats"
    ]
    heaviest = sorted(statistics.items(), key=lambda item: -item[1][2])[:LINES]
    return [
        {
            "function": _short(path) + re.sub(r" at 0x[0-9a-f]+", "", name),
            "calls_per_room": round(calls / rooms, 2),
            "own_us_per_room": round(own / rooms * 1e6, 2),
            "with_callees_us_per_room": round(whole / rooms * 1e6, 2),
        }
        for (path, _, name), (_, calls, own, whole, _) in heaviest
    ]


def _short(path: str) -> str:
    """A module's place in its package, without this machine's paths."""
    for root in ("/site-packages/", "/lib/python3", "/etcd_pd/"):
        if root in path:
            rest = path.rpartition(root)[2]
            return f"{'etcd_pd/' if root == '/etcd_pd/' else ''}{rest.partition('/')[2] if '3' in root else rest}: "
    return "" if path == "~" else f"{Path(path).name}: "


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
