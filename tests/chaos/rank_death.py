"""How fast a rank's death reaches those who wait for its rooms: ``python -m tests.chaos.rank_death``.

A prefill rank of growing resident size, its agent, a decode's agent and one etcd, on this machine. The rank is killed
with SIGKILL while a decode waits on rooms that it holds; counted is the time until the last of them has failed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import psutil

import etcd_pd
from etcd_pd.reference.local.probe import agent_answers
from etcd_pd.reference.local.process import Process
from tests.support.etcd_server import EtcdServer

INSTANCE, ROOMS, TIMES = "p0", 100, 20
SIZES_MIB = (0, 128, 256, 512, 768, 1024)

_RANK = """
import sys, time, etcd_pd
ballast = bytearray(int(sys.argv[2]))
ballast[::4096] = b"x" * len(ballast[::4096])
client = etcd_pd.connect(sys.argv[1])
client.prefill.announce("p0", rank=etcd_pd.Rank(1), topology=etcd_pd.Topology(dp=2), launch_id=sys.argv[3],
                        addresses=[], ip="127.0.0.1", port=1)
while not client.prefill.epoch:
    client.prefill.poll()
    time.sleep(0.001)
first = int(sys.argv[4])
for room in range(first, first + int(sys.argv[5])):
    client.prefill.register(room)
while True:
    client.prefill.poll()
    time.sleep(0.001)
"""


def measure(stack: ExitStack, sizes_mib: Sequence[int], times: int) -> dict[int, list[tuple[float, float]]]:
    """(resident MiB, seconds until the last of the waiting rooms has failed) by asked size."""
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="etcd-pd-")))
    etcd = stack.enter_context(EtcdServer())
    paths = [str(directory / f"{name}.sock") for name in ("prefill", "decode")]
    for path in paths:
        command = [sys.executable, "-m", "etcd_pd", "agent", "--etcd", etcd.endpoint, "--socket", path]
        agent = Process("agent", [*command, "--agent-id", Path(path).stem], directory / "agent.log")
        stack.callback(agent.stop)
        agent.wait_until(lambda path=path: agent_answers(path), 20.0)  # type: ignore[misc]
    client = stack.enter_context(etcd_pd.connect(paths[1]))
    client.decode.follow(INSTANCE)
    found: dict[int, list[tuple[float, float]]] = {}
    for number in range(times):
        for size in sizes_mib:
            first = (number * len(sizes_mib) + sizes_mib.index(size)) * ROOMS
            found.setdefault(size, []).append(_once(client, paths[0], size, first, directory))
    return found


def _once(client: etcd_pd.Client, agent: str, size: int, first: int, directory: Path) -> tuple[float, float]:
    command = [sys.executable, "-c", _RANK, agent, str(size << 20), f"launch-{first}", str(first), str(ROOMS)]
    rank = Process("rank", command, directory / "rank.log")
    # not before: a wait for the predecessor's instance ends with it
    rank.wait_until(lambda: _launch(client) == f"launch-{first}", 30.0)
    for room in range(first, first + ROOMS):
        client.decode.want(INSTANCE, room, timeout=60.0)
    _count(client, etcd_pd.Resolved)
    resident = psutil.Process(rank.pid).memory_info().rss / (1 << 20)
    killed = time.monotonic()
    os.kill(rank.pid, signal.SIGKILL)
    _count(client, etcd_pd.Ended)
    seconds = time.monotonic() - killed
    for room in range(first, first + ROOMS):
        client.decode.done(INSTANCE, room)
    rank.stop()
    return resident, seconds


def _launch(client: etcd_pd.Client) -> str:
    client.decode.poll()
    instance = client.decode.instance(INSTANCE)
    return instance.info.launch_id if instance else ""


def _count(client: etcd_pd.Client, kind: type[object]) -> None:
    count, deadline = 0, time.monotonic() + 30.0
    while count < ROOMS:
        count += sum(isinstance(event, kind) for event in client.decode.poll())
        if time.monotonic() > deadline:
            raise TimeoutError(f"{count} of {ROOMS} rooms came to {kind.__name__}")
        time.sleep(0.0002)


def plot(found: dict[int, list[tuple[float, float]]]) -> str:
    """The delay against resident size, as SVG."""
    points = [(resident, seconds * 1e3) for runs in found.values() for resident, seconds in runs]
    width, height, left, bottom = 640, 320, 60, 40
    most_x, most_y = max(x for x, _ in points) * 1.05, max(y for _, y in points) * 1.1

    def place(x: float, y: float) -> tuple[float, float]:
        return left + x / most_x * (width - left - 20), height - bottom - y / most_y * (height - bottom - 20)

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">']
    parts.append('<rect width="100%" height="100%" fill="white"/>')
    for x, y in points:
        cx, cy = place(x, y)
        parts.append(f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="2.5" fill="#1f77b4" fill-opacity="0.6"/>')
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, _ = place(share * most_x, 0)
        _, y = place(0, share * most_y)
        parts.append(
            f'<text x="{x:.0f}" y="{height - 22}" font-size="11" text-anchor="middle">{share * most_x:.0f}</text>'
        )
        parts.append(f'<text x="{left - 8}" y="{y:.0f}" font-size="11" text-anchor="end">{share * most_y:.0f}</text>')
    parts.append(f'<text x="{width / 2}" y="{height - 6}" font-size="12" text-anchor="middle">resident MiB</text>')
    parts.append(f'<text x="{left}" y="14" font-size="12">ms from SIGKILL to the last of {ROOMS} rooms failed</text>')
    return "\n".join([*parts, "</svg>\n"])


def main() -> int:
    """Print the figures, and write the plot where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, help="SVG file to write")
    parser.add_argument("--times", type=int, default=TIMES, help="kills of each size")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        found = measure(stack, SIZES_MIB, arguments.times)
    for runs in found.values():
        delays = sorted(seconds * 1e3 for _, seconds in runs)
        row = {
            "resident_mib": round(statistics.median(resident for resident, _ in runs)),
            "kills": len(delays),
            "p50_ms": round(statistics.median(delays), 1),
            "worst_ms": round(delays[-1], 1),
        }
        print(json.dumps(row))
    if arguments.plot:
        arguments.plot.write_text(plot(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
