"""The figures of the README, on this machine: ``make bench-quick``.

A prefill engine and a decode engine, each a process whose interpreter spins as SGLang's scheduler does, each with
an agent of its own, on one local etcd that syncs every write to disk.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any

import etcd_pd
from etcd_pd.embedded import EmbeddedEtcd, find_etcd

from .agents import AgentProcess

RATE, SECONDS, DP_SIZE = 300, 8.0, 4
INSTANCE, FIRST_ROOM = "prefill-0", 10**15


def _announced(client: etcd_pd.Client) -> None:
    client.prefill.announce(
        INSTANCE,
        rank=etcd_pd.Rank(1),
        topology=etcd_pd.Topology(dp=DP_SIZE),
        launch_id="bench",
        addresses=["127.0.0.1:8998"],
        ip="127.0.0.1",
        port=1,
    )
    while not client.prefill.epoch:
        client.prefill.poll()
        time.sleep(0.001)


def _schedule(start: float) -> Iterator[tuple[int, float]]:
    for number in range(int(RATE * SECONDS)):
        yield FIRST_ROOM + number, start + number / RATE


def prefill(socket_path: str, pipe: Connection) -> None:
    """Register RATE rooms a second from a loop that never sleeps."""
    client = etcd_pd.connect(socket_path)
    _announced(client)
    pipe.send("ready")
    start: float = pipe.recv()
    walls, cpus, sent_at = [], [], {}
    for room, due in _schedule(start):
        while time.monotonic() < due:
            pass
        cpu, wall = time.thread_time_ns(), time.perf_counter_ns()
        sent_at[room] = time.monotonic()
        client.prefill.register(room)
        walls.append((time.perf_counter_ns() - wall) / 1e3)
        cpus.append((time.thread_time_ns() - cpu) / 1e3)
        client.prefill.poll()
    while time.monotonic() < start + SECONDS + 1:
        client.prefill.poll()
    pipe.send((walls, cpus, sent_at))
    pipe.recv()
    client.close()


def decode(socket_path: str, pipe: Connection) -> None:
    """Want each room a moment before it is registered, and look for it in a loop that never sleeps."""
    _decode(socket_path, pipe, nap=0.0)


def idle_decode(socket_path: str, pipe: Connection) -> None:
    """The same in a loop that sleeps, so that a core is free beside the prefill engine's."""
    _decode(socket_path, pipe, nap=0.005)


def _decode(socket_path: str, pipe: Connection, nap: float) -> None:
    client = etcd_pd.connect(socket_path)
    client.decode.poll()
    pipe.send("ready")
    start: float = pipe.recv()
    schedule = _schedule(start - 0.05)
    upcoming: tuple[int, float] | None = next(schedule)
    resolved_at: dict[int, float] = {}
    while time.monotonic() < start + SECONDS + 1:
        if nap:
            time.sleep(nap)
        while upcoming and time.monotonic() >= upcoming[1]:
            client.decode.want(INSTANCE, upcoming[0])
            upcoming = next(schedule, None)
        for event in client.decode.poll():
            if isinstance(event, etcd_pd.Resolved):
                resolved_at[event.assignment.room] = time.monotonic()
    looks = []
    for room in resolved_at:
        before = time.perf_counter_ns()
        client.decode.resolve_nowait(INSTANCE, room)
        looks.append((time.perf_counter_ns() - before) / 1e3)
    pipe.send((resolved_at, looks))
    pipe.recv()
    client.close()


def _spawn(target: Any, socket_path: str, stack: ExitStack) -> Connection:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=target, args=(socket_path, theirs), daemon=True)
    process.start()
    stack.callback(process.join, 10)
    stack.callback(ours.send, "end")
    if ours.recv() != "ready":
        raise RuntimeError(f"{target.__name__} did not start")
    return ours


def measure(reading: Any) -> dict[str, list[float]]:
    """Run both engines once, ``reading`` being the decode side; microseconds and milliseconds by figure."""
    with ExitStack() as stack:
        etcd = stack.enter_context(EmbeddedEtcd.start())
        agents = [stack.enter_context(AgentProcess(etcd.endpoint, name)) for name in ("prefill", "decode")]
        writer = _spawn(prefill, agents[0].socket_path, stack)
        reader = _spawn(reading, agents[1].socket_path, stack)
        start = time.monotonic() + 1.0
        writer.send(start)
        reader.send(start)
        walls, cpus, sent_at = writer.recv()
        resolved_at, looks = reader.recv()
    waits = [(resolved_at[room] - sent) * 1e3 for room, sent in sent_at.items() if room in resolved_at]
    return {
        "register() wall us": walls,
        "register() thread CPU us": cpus,
        "resolve_nowait() us": looks,
        "register->resolved ms": waits,
        "not resolved": [float(len(sent_at) - len(waits))],
    }


def _print(figures: dict[str, list[float]]) -> int:
    missing = int(figures.pop("not resolved")[0])
    for name, values in figures.items():
        cuts = statistics.quantiles(values, n=1000)
        print(f"  {name:26} n={len(values):<6} p50={cuts[499]:9.2f}  p99={cuts[989]:9.2f}  p99.9={cuts[998]:9.2f}")
    print(f"  rooms not resolved: {missing}")
    return missing


def main() -> int:
    """Print the figures; 1 where a room was not resolved."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}"
    print(f"machine: {machine}, Python {platform.python_version()}, etcd_pd {etcd_pd.__version__}")
    print(f"{RATE} rooms/s for {SECONDS:.0f} s; one local etcd with fsync ({find_etcd()}), two agents")
    print("prefill spins, decode looks every 5 ms:")
    alone = measure(idle_decode)
    del alone["register->resolved ms"]  # the nap, not the registry
    missing = _print(alone)
    print("both engines spin:")
    missing += _print(measure(decode))
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
