"""All agents of a cell list it at once: etcd was restarted, and compacted meanwhile. ``python -m benchmarks.relist``.

Measured with 20 agents and 20,000 rooms on this machine; computed, from what a list cost there, for 100 agents and
100,000 rooms beside an etcd of 8 cores, which agents of infinitely fast machines ask.
"""

from __future__ import annotations

import random
import re
import subprocess
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import grpc
import psutil

from etcd_pd.core.watch import relist_spread
from etcd_pd.reference.local.embedded import find_etcd
from etcd_pd.reference.local.probe import http_ok
from etcd_pd.reference.local.process import free_ports
from etcd_pd.reference.local.tether import tethered
from etcd_pd.store import etcdrpc as rpc

from .agents import AgentProcess
from .restart import write

AGENTS, ROOMS = 20, 20_000
#: How long until all have to be synced, seconds, and how often that is looked at.
PATIENCE, LOOK = 90.0, 0.1
#: The cell that is computed, and etcd's cores there.
MANY_AGENTS, MANY_ROOMS, CORES = 100, 100_000, 8


class Etcd:
    """One member on a directory and a port of its own, to be stopped and started again."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._binary = directory, find_etcd()
        self.port, self._other_port, self._peer_port = free_ports(3)
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.start(self.port)

    def start(self, port: int) -> None:
        """Start it, and wait until it serves."""
        client, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{self._peer_port}"
        command = [self._binary, f"--data-dir={self._directory}", "--log-level=error"]
        command += [f"--listen-client-urls={client}", f"--advertise-client-urls={client}"]
        command += [f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"]
        self.process = subprocess.Popen(tethered([*command, f"--initial-cluster=default={peer}"]))
        while not http_ok(f"{client}/health"):
            time.sleep(0.02)

    def stop(self) -> None:
        """End it; its data stays."""
        self.process.terminate()
        self.process.wait()

    def restart_compacted(self) -> None:
        """Start it again with no history, before any agent finds it."""
        self.stop()
        self.start(self._other_port)
        with grpc.insecure_channel(f"127.0.0.1:{self._other_port}") as channel:
            kv = rpc.KVStub(channel)
            for _ in range(5):
                last = kv.Put(rpc.PutRequest(key=b"/etcd_pd/default/v1/x")).header.revision
            kv.Compact(rpc.CompactionRequest(revision=last, physical=True))
        self.stop()
        self.start(self.port)


def _synced(port: int) -> bool:
    """Whether the agent has listed again, and is synced."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return 'etcd_pd_watch_state{state="synced"} 1.0' in text and not re.search(r"watch_lists_total 1\.0", text)


def measure() -> float:
    """Print when agents are synced and what etcd uses; its CPU seconds a key listed."""
    with ExitStack() as stack:
        etcd = Etcd(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        stack.callback(etcd.stop)
        ports = free_ports(AGENTS)
        for number, port in enumerate(ports):
            options = ["--metrics-listen", f"127.0.0.1:{port}", "--session-ttl-seconds", "30", "--log-level", "error"]
            stack.enter_context(AgentProcess(etcd.endpoint, f"agent-{number}", options))
        write(etcd.endpoint, 5, ROOMS)
        etcd.restart_compacted()
        began, process = time.monotonic(), psutil.Process(etcd.process.pid)
        used, at, peak = sum(process.cpu_times()[:2]), began, 0.0
        first, waiting, done = used, set(ports), list[float]()
        while waiting and time.monotonic() - began < PATIENCE:
            time.sleep(LOOK)
            now, total = time.monotonic(), sum(process.cpu_times()[:2])
            peak, used, at = max(peak, (total - used) / (now - at)), total, now
            for port in [port for port in waiting if _synced(port)]:
                waiting.discard(port)
                done.append(time.monotonic() - began)
        cost = (used - first) / (len(done) * ROOMS)
    print(
        f"relist: {AGENTS} agents, {ROOMS} rooms: half synced after {done[len(done) // 2]:.2f} s, all after "
        f"{done[-1]:.2f} s; etcd {peak:.0%} of a core at most, {1e6 * cost:.1f} us a key"
    )
    return cost


def compute(spread: float, key_seconds: float) -> tuple[float, float]:
    """When all are synced, and how long all of etcd's cores are busy with it, seconds: lists share them evenly."""
    draw, work = random.Random(1), MANY_ROOMS * key_seconds
    arrivals = sorted(draw.uniform(0.0, spread) for _ in range(MANY_AGENTS))
    now, left, full = 0.0, list[float](), 0.0
    while arrivals or left:
        if not left:
            now = max(now, arrivals[0])
        while arrivals and arrivals[0] <= now:
            left.append(work)
            arrivals.pop(0)
        speed = min(1.0, CORES / len(left))
        step = min([min(left) / speed, *([arrivals[0] - now] if arrivals else [])])
        full += step if len(left) >= CORES else 0.0
        now, left = now + step, [one - step * speed for one in left if one - step * speed > 1e-9]
    return now, full


def main() -> None:
    """Measure, and compute."""
    cost = measure()
    for name, spread in (("at once", 0.0), ("spread", relist_spread(MANY_AGENTS, MANY_ROOMS))):
        seconds, full = compute(spread, cost)
        print(
            f"relist, computed: {MANY_AGENTS} agents, {MANY_ROOMS} rooms, {name}: all synced after {seconds:.1f} s, "
            f"{full:.1f} s of it with all of {CORES} cores busy"
        )


if __name__ == "__main__":
    main()
