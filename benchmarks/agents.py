"""An agent as a process, for measurements."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from etcd_pd.reference.local.tether import tethered


class AgentProcess:
    """``etcd-pd agent`` on a socket of its own, ended with the block.

    Args:
        endpoint: etcd's; several with commas between them.
        name: the agent's id.
        options: more of its command line.
        profile: file for its cProfile, None for a run without one.
    """

    def __init__(self, endpoint: str, name: str, options: Sequence[str] = (), profile: Path | None = None) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="etcd-pd-")
        self.socket_path = os.path.join(self._directory.name, "agent.sock")
        program = ["benchmarks.profiled", str(profile)] if profile else ["etcd_pd"]
        command = [sys.executable, "-m", *program, "agent", "--socket", self.socket_path, "--etcd", endpoint]
        command += ["--agent-id", name, "--log-level", "warning", "--metrics-listen", "", *options]
        self._process = subprocess.Popen(tethered(command))

    def __enter__(self) -> AgentProcess:
        while not os.path.exists(self.socket_path):
            if self._process.poll() is not None:
                raise RuntimeError(f"the agent ended with status {self._process.returncode}")
            time.sleep(0.02)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def end(self) -> None:
        """Ask it to end, and do not wait: many agents end faster together than one after the other."""
        self._process.terminate()

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()
        self._directory.cleanup()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid
