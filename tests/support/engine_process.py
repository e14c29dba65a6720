"""A prefill rank as a process of its own, to be killed. It does what it is told, line by line.

``python -m tests.support.engine_process SOCKET DP_RANK LAUNCH``; then on stdin: ``register ROOM``, ``fork``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import TracebackType

import etcd_pd
from tests.support.agents import announce, wait_for


class EngineProcess:
    """Such a process, seen from the test; use it as a context manager."""

    def __init__(self, socket_path: str, dp_rank: int = 0, launch: str = "launch-1") -> None:
        command = [sys.executable, "-m", "tests.support.engine_process", socket_path, str(dp_rank), launch]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> EngineProcess:
        assert self._read().startswith("announced ")
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            pipe.close()

    def register(self, room: int) -> None:
        """Returns when the room is registered."""
        self._say(f"register {room}")
        assert self._read() == f"registered {room}"

    def fork(self) -> int:
        """Makes it fork; the child's process id. The child keeps every descriptor that it inherits."""
        self._say("fork")
        return int(self._read())

    def kill(self, number: int = signal.SIGKILL) -> None:
        self._process.send_signal(number)
        self._process.wait(10)

    def _say(self, line: str) -> None:
        assert self._process.stdin
        print(line, file=self._process.stdin, flush=True)

    def _read(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()


def main() -> None:
    socket_path, dp_rank, launch = sys.argv[1:]
    client = etcd_pd.connect(socket_path)
    epoch = announce(client, dp_rank=int(dp_rank), launch_id=launch).epoch
    print("announced", epoch, flush=True)
    for line in sys.stdin:
        if line.startswith("register "):
            room = int(line.split()[1])
            client.prefill.register(room)
            print("registered", wait_for(client, etcd_pd.Registered).room, flush=True)
        else:
            _fork(client)


def _fork(client: etcd_pd.Client) -> None:
    # a copy of the socket that the client knows nothing of, as native code of an engine may make one
    copy = os.dup(client.fileno())
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    os.close(copy)
    print(child, flush=True)


if __name__ == "__main__":
    main()
