"""``scripts/loopback-only python -m tests.engine.cost``: what the plug-in costs inside SGLang's scheduler, as a table.

Four requests at once for half a minute through SGLang's own engines, with the copies to SGLang's own server on; beside
it SGLang's own registration, of a prefill without the plug-in. Compute is this CPU's, and every core is busy.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from .conftest import LOGS, raise_loopback
from .fleet import Fleet
from .processes import Router, fresh

SECONDS = 30.0
#: Requests of which only the prefill's leg counts.
ALONE = 40

CALLS = {
    "register": "a prefill rank takes a room: the plug-in",
    "sglang_post": "the same: SGLang's own `POST`",
    "made": "a request arrives at decode: the plug-in",
    "query": "decode asks for ranks: the plug-in",
    "tick": "a turn of the scheduler's loop: the plug-in",
}


def main() -> None:
    """Print the table."""
    raise_loopback()
    with tempfile.TemporaryDirectory(prefix="etcd-pd-times-") as directory, ExitStack() as stack:
        fleet = Fleet(fresh(LOGS), stack, times=directory)
        fleet.start()
        _load(fleet.router(), SECONDS)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda number: fleet.router(prefill=False).ask(number, timeout=3.0), range(ALONE)))
        print("| call | times | p50 ms | p90 ms | worst ms |\n|---|---|---|---|---|")
        for name, meaning in CALLS.items():
            took = sorted(float(line) for path in Path(directory).glob(f"{name}-*") for line in path.open())
            tenths = statistics.quantiles(took, n=10)
            figures = (tenths[4] * 1e3, tenths[8] * 1e3, took[-1] * 1e3)
            print(f"| {meaning} | {len(took)} | " + " | ".join(f"{figure:.3f}" for figure in figures) + " |")


def _load(router: Router, seconds: float) -> None:
    ends = time.monotonic() + seconds

    def run(number: int) -> None:
        while time.monotonic() < ends:
            router.ask(number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))


if __name__ == "__main__":
    main()
