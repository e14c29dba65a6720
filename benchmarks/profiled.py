"""``etcd-pd`` under cProfile, by the CPU time of its main thread: ``python -m benchmarks.profiled FILE agent ...``.

CPU time and not wall time, so that what else runs on the machine, and waiting, do not appear in it.
"""

from __future__ import annotations

import cProfile
import io
import pstats
import sys
import time
from pathlib import Path

from etcd_pd.cli import main as etcd_pd_main

#: Lines of a profile that a report shows.
LINES = 30


def main(file: str, arguments: list[str]) -> None:
    """Run the command line to its end, then write the profile."""
    profile = cProfile.Profile(time.thread_time)
    sys.argv = ["etcd-pd", *arguments]
    profile.enable()
    try:
        etcd_pd_main()
    except SystemExit:
        pass
    finally:
        profile.disable()
        profile.dump_stats(file)


def table(file: Path, order: str = "tottime") -> str:
    """The heaviest functions of a profile, as pstats prints them, without this machine's paths."""
    out = io.StringIO()
    stats = pstats.Stats(str(file), stream=out)
    stats.strip_dirs().sort_stats(order).print_stats(LINES)
    return out.getvalue()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
