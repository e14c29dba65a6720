"""Starting an agent for development: one per socket, in a session of its own, gone a while after its last client."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import time

from ..errors import AgentUnavailable
from ..wire.private import check_way, open_private

#: The agent that was started here ends this long after its last client.
IDLE_EXIT_SECONDS = 30
#: How long to wait for it; longer than its own wait for etcd would hide the reason.
START_SECONDS = 20.0


def start_agent(path: str) -> None:
    """Start ``etcd-pd agent`` on ``path`` unless one answers there.

    Raises:
        AgentUnavailable: it did not come up; says where its log is.
        ConfigError: the socket's directory, lock or log belongs to another user.
        OSError: the lock or the log is a link, or cannot be opened.
    """
    os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
    check_way("socket_path", path)
    with os.fdopen(open_private(f"{path}.lock"), "r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _answers(path):
            return
        log_path = f"{path}.log"
        command = [sys.executable, "-m", "etcd_pd", "agent", "--socket", path]
        command += ["--idle-exit-seconds", str(IDLE_EXIT_SECONDS)]
        with os.fdopen(open_private(log_path), "ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while not _answers(path):
            if process.poll() is not None or time.monotonic() > deadline:
                raise AgentUnavailable(f"the agent did not start; its log is {log_path}")
            time.sleep(0.02)


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
        return True
