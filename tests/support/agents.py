"""Agents as processes, as pods run them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import etcd_pd
from tests.support.children import end
from tests.support.events import next_event
from tests.support.waiting import wait_until

E = TypeVar("E")
FOUR_RANKS = etcd_pd.Topology(dp=4)


class AgentProcess:
    """``python -m etcd_pd agent`` on a socket of its own; use it as a context manager.

    Args:
        endpoint: etcd's, several separated by commas.
        root: the cell.
        name: the agent's id.
        options: further flags, such as ``"--session-ttl-seconds=2"``.
    """

    def __init__(self, endpoint: str, root: str, name: str = "agent", *options: str) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="etcd-pd-test-")
        self.socket_path = str(Path(self._directory.name, "agent.sock"))
        self.log_path = Path(self._directory.name, "log")
        self._command = [sys.executable, "-m", "etcd_pd", "agent", "--socket", self.socket_path]
        self._command += ["--etcd", endpoint, "--root", root, "--agent-id", name, *options]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> AgentProcess:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop(signal.SIGKILL if self.paused else signal.SIGTERM)
        self._directory.cleanup()

    paused = False

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The running process."""
        assert self._process is not None
        return self._process

    @property
    def log(self) -> str:
        """All that it has logged."""
        return self.log_path.read_text() if self.log_path.exists() else ""

    def start(self) -> None:
        """Start it and wait until it accepts engines."""
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        wait_until(self._answers, f"agent answers; its log: {self.log}", timeout=20)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it and wait; its exit status."""
        return end(self.process, number)

    def pause(self) -> None:
        """SIGSTOP."""
        self.process.send_signal(signal.SIGSTOP)
        self.paused = True

    def resume(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)
        self.paused = False

    def client(self, **options: float) -> etcd_pd.Client:
        """A client of this agent."""
        return etcd_pd.connect(self.socket_path, **options)  # type: ignore[arg-type]

    def _answers(self) -> bool:
        assert self.process.poll() is None, f"the agent ended: {self.log}"
        if not os.path.exists(self.socket_path):
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            return probe.connect_ex(self.socket_path) == 0


def announce(
    client: etcd_pd.Client,
    instance: str = "prefill-0",
    dp_rank: int = 0,
    *,
    topology: etcd_pd.Topology = FOUR_RANKS,
    launch_id: str = "launch-1",
    policy: str = "round_robin",
    rank: etcd_pd.Rank | None = None,
) -> etcd_pd.Announced:
    """Announce a rank and wait until it is in etcd."""
    client.prefill.announce(
        instance,
        rank=rank or etcd_pd.Rank(dp_rank),
        topology=topology,
        launch_id=launch_id,
        addresses=[f"{instance}.test:8998"],
        ip="127.0.0.1",
        port=9000 + dp_rank,
        policy=policy,
    )
    return wait_for(client, etcd_pd.Announced)


def wait_for(client: etcd_pd.Client, kind: type[E], timeout: float = 20.0) -> E:
    """The next event of a kind on either side of the client; others before it are dropped, those after it are kept."""
    return wait_until(lambda: next_event(client, kind), f"a {kind.__name__}", timeout, every=0.002)
