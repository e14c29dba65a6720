"""64 engine connections on one agent, one of which never reads."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

import etcd_pd
from etcd_pd.reference.local.probe import agent_answers
from etcd_pd.reference.local.process import Process
from tests.support.etcd_server import EtcdServer
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.quick, pytest.mark.timeout(180)]

READERS, ROOMS = 62, 20_000  # with the rank and the one that never reads, 64 connections
INSTANCE = "p0"


def test_one_that_never_reads_delays_nobody_and_catches_up(etcd: EtcdServer, root: str, tmp_path: Path) -> None:
    socket_path, log = str(tmp_path / "agent.sock"), tmp_path / "agent.log"
    command = [sys.executable, "-m", "etcd_pd", "agent", "--etcd", etcd.endpoint, "--root", root]
    command += ["--socket", socket_path, "--push-queue-max-bytes", "65536"]
    agent = Process("agent", command, log)
    with ExitStack() as stack:
        stack.callback(agent.stop)
        agent.wait_until(lambda: agent_answers(socket_path), 20.0)
        rank, slow, *readers = [
            stack.enter_context(etcd_pd.connect(socket_path, queue_limit=ROOMS)) for _ in range(READERS + 2)
        ]
        _announce(rank)
        for room in range(ROOMS):
            slow.decode.want(INSTANCE, room)
            readers[room % READERS].decode.want(INSTANCE, room)
        # what it asks for must be said before it stops reading: who reads nothing sends nothing that waits either
        wait_until(lambda: not slow.decode.poll() and not slow._connection._queue, "the agent has all wants", 60.0)

        resolved = _register_all(rank, readers)
        assert resolved == set(range(ROOMS)), "everybody who reads has every answer while one does not read"
        assert "pushes dropped" in log.read_text(), "the one that does not read was to lose pushes"

        _until_all_resolved(slow)
        for room in range(ROOMS):
            found = slow.decode.resolve_nowait(INSTANCE, room)
            assert found is not None and found.dp_rank == 1


def _announce(rank: etcd_pd.Client) -> None:
    rank.prefill.announce(
        INSTANCE,
        rank=etcd_pd.Rank(1),
        topology=etcd_pd.Topology(dp=2),
        launch_id="launch",
        addresses=["p0.example:8998"],
        ip="127.0.0.1",
        port=1,
    )
    while not rank.prefill.epoch:
        rank.prefill.poll()
        time.sleep(0.01)


def _register_all(rank: etcd_pd.Client, readers: list[etcd_pd.Client]) -> set[int]:
    """Register every room; what the readers hear until each room is registered and each reader has its answers."""
    resolved: set[int] = set()
    asked = registered = 0
    deadline = time.monotonic() + 90
    while (registered < ROOMS or len(resolved) < ROOMS) and time.monotonic() < deadline:
        while asked < ROOMS and asked - registered < 500:
            rank.prefill.register(asked)
            asked += 1
        registered += sum(isinstance(event, etcd_pd.Registered) for event in rank.prefill.poll())
        for reader in readers:
            events = reader.decode.poll()
            resolved.update(event.assignment.room for event in events if isinstance(event, etcd_pd.Resolved))
        time.sleep(0.001)
    return resolved


def _until_all_resolved(client: etcd_pd.Client) -> None:
    resolved: set[int] = set()
    deadline = time.monotonic() + 30
    while len(resolved) < ROOMS and time.monotonic() < deadline:
        for event in client.decode.poll():
            assert isinstance(event, etcd_pd.Resolved)
            resolved.add(event.assignment.room)
        time.sleep(0.001)
    assert resolved == set(range(ROOMS)), f"{len(resolved)} of {ROOMS} answers after it began to read"
