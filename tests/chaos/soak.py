"""Load for an hour: does anything grow? ``python -m tests.chaos.soak``, or ``make soak``.

The fleet of the fault tests runs without faults. Every ten seconds: resident memory and threads of agents and engines,
etcd's database, leases and keys. At the end the second half is compared with the first, and a plot is written.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import SystemRandom

import psutil

from tests.support.etcd_server import EtcdCluster

from .rig import Rig

EVERY_SECONDS = 10.0
#: Not judged: the first rooms' tombstones and leases live for the engine's bootstrap timeout, 300 s.
WARM_UP_SECONDS = 400.0
#: What the second half's median may exceed the first's by: allocators and etcd's pages are not exact.
TOLERANCE = 1.10
#: History that etcd keeps. Without compaction it would grow by design.
ETCD_FLAGS = ("--auto-compaction-mode=periodic", "--auto-compaction-retention=1m")

Sample = dict[str, float]


def sample(rig: Rig, started: float) -> Sample:
    """What is measured at one time; sizes in MiB."""
    found: Sample = {"seconds": round(time.monotonic() - started, 1)}
    for name, process in (*rig.agents.items(), *rig.engines.items()):
        seen = psutil.Process(process.pid)
        found[f"{name} MiB"] = round(seen.memory_info().rss / (1 << 20), 2)
        found[f"{name} threads"] = seen.num_threads()
    ctl = rig.ctl
    found["etcd MiB"] = round(ctl.status().db_size / (1 << 20), 2)
    found["leases"] = len(ctl.leases())
    found["keys"] = ctl.count_prefix(rig.root)
    return found


def growing(samples: Sequence[Sample]) -> list[str]:
    """What is not flat."""
    judged = [s for s in samples if s["seconds"] >= WARM_UP_SECONDS]
    if len(judged) < 20:
        return ["too short for a verdict"]
    half = len(judged) // 2
    found = []
    for name in judged[0]:
        first, second = (statistics.median(s[name] for s in part) for part in (judged[:half], judged[half:]))
        if name != "seconds" and second > first * TOLERANCE + 1.0:
            found.append(f"{name} grows: {first} in the first half, {second} in the second")
    return found


def plot(samples: Sequence[Sample]) -> str:
    """Every series as its own small SVG chart, from 0 to its maximum."""
    names = [name for name in samples[0] if name != "seconds"]
    width, height, columns = 260, 90, 3
    rows = -(-len(names) // columns)
    total = samples[-1]["seconds"]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{columns * width}" height="{rows * height}" '
        'font-family="sans-serif"><rect width="100%" height="100%" fill="white"/>'
    ]
    for number, name in enumerate(names):
        left, top = number % columns * width + 10, number // columns * height + 10
        most = max(s[name] for s in samples) or 1.0
        points = " ".join(
            f"{left + s['seconds'] / total * (width - 20):.1f},{top + 70 - s[name] / most * 50:.1f}" for s in samples
        )
        parts.append(
            f'<text x="{left}" y="{top + 8}" font-size="11">{name}: {samples[-1][name]:g}, most {most:g}</text>'
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="#1f77b4"/>')
    return "\n".join([*parts, "</svg>\n"])


def main() -> int:
    """Run, print each sample as it is taken, then the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=300.0, help="rooms a second")
    parser.add_argument("--plot", type=Path, help="SVG file to write")
    arguments = parser.parse_args()
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory(prefix="etcd-pd-") as directory, EtcdCluster(args=ETCD_FLAGS) as cluster:
        seed = SystemRandom().getrandbits(32)
        with Rig(Path(directory), cluster.endpoints, "/soak", seed, rate=arguments.rate, recorded=False) as rig:
            started = time.monotonic()
            writer: csv.DictWriter[str] | None = None
            while time.monotonic() < started + arguments.minutes * 60:
                rig.live(EVERY_SECONDS)
                samples.append(sample(rig, started))
                if writer is None:
                    writer = csv.DictWriter(sys.stdout, samples[0])
                    writer.writeheader()
                writer.writerow(samples[-1])
                sys.stdout.flush()
    if arguments.plot:
        arguments.plot.write_text(plot(samples))
    found = growing(samples)
    print("\n".join(found) or "flat")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
