"""An agent as a process, for measurements."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from types import TracebackType

#: How long an agent may take to end.
END_SECONDS = 15.0


class AgentProcess:
    """``etcd-pd agent`` on a socket of its own, ended with the block.

    Args:
        endpoint: etcd's.
        name: the agent's id.
        options: more of its command line.
    """

    def __init__(self, endpoint: str, name: str, options: Sequence[str] = ()) -> None:
        self.name = name
        self._directory = tempfile.TemporaryDirectory(prefix="etcd-pd-")
        self.socket_path = os.path.join(self._directory.name, "agent.sock")
        command = [sys.executable, "-m", "etcd_pd", "agent", "--socket", self.socket_path]
        command += ["--etcd", endpoint, "--agent-id", name, "--log-level", "warning", "--metrics-listen", ""]
        self._process = subprocess.Popen([*command, *options])

    def __enter__(self) -> AgentProcess:
        while not os.path.exists(self.socket_path):
            if self._process.poll() is not None:
                raise RuntimeError(f"the agent ended with status {self._process.returncode}")
            time.sleep(0.02)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.end()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            print(f"agent {self.name} did not end in {END_SECONDS:.0f} s and was killed", file=sys.stderr)
            self._process.kill()
            self._process.wait()
        self._directory.cleanup()

    def end(self) -> None:
        """Ask it to end, and do not wait: many agents end faster together than one after the other."""
        self._process.terminate()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid
