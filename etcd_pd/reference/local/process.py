"""A child process with a name, a log file and a deadline for everything that is asked of it."""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import ConfigError, EtcdPDError
from .tether import tethered

#: How often a condition is looked at while a process starts.
POLL_SECONDS = 0.05
#: How long the processes that it started may outlive it.
GROUP_SECONDS = 2.0
#: How many of its last log lines tell why a process failed.
TAIL_LINES = 15
#: Where free ports are looked for.
PORTS = range(20_000, 32_000)


class ProcessFailed(EtcdPDError):
    """A child process ended, or did not become ready in time.

    Attributes:
        name: the process.
        tail: its last log lines.
    """

    def __init__(self, name: str, message: str, tail: str) -> None:
        super().__init__(f"{name} {message}" + (f"; its last lines:\n{tail}" if tail else ""))
        self.name = name
        self.tail = tail


# No session of its own: the kernel's autogroups share out CPUs by session, and hold short work back behind a session
# that is busy (docs/adr/0003-no-session-per-process.md).
_OWN_GROUP: dict[str, Any] = {"process_group": 0} if sys.version_info >= (3, 11) else {"preexec_fn": os.setpgrp}


class Process:
    """A command that was started, and will be stopped, by this process.

    It runs in a process group of its own, so that Ctrl-C in a terminal reaches only the parent, which then stops its
    children in order; and it never outlives the parent.

    Args:
        name: what messages call it.
        command: program and arguments.
        log: file that takes its output; None leaves the output on the parent's stderr.
        environ: its environment; None passes on the parent's.
    """

    def __init__(
        self, name: str, command: Sequence[str], log: Path | None, environ: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.command = list(command)
        self.log = log
        output = os.dup(2) if log is None else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            if log is not None:
                os.write(output, f"$ {shlex.join(self.command)}\n".encode())
            self._child = subprocess.Popen(
                tethered(self.command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=None if environ is None else dict(environ),
                **_OWN_GROUP,
            )
        finally:
            os.close(output)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    @property
    def exit_status(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self._child.poll()

    def tail(self) -> str:
        """The last lines of its log."""
        if self.log is None or not self.log.exists():
            return ""
        with self.log.open(errors="replace") as lines:
            return "".join(deque(lines, TAIL_LINES)).rstrip()

    def failure(self, message: str) -> ProcessFailed:
        """An error about this process that shows its last log lines."""
        return ProcessFailed(self.name, message, self.tail())

    def check(self) -> None:
        """Do nothing while it runs.

        Raises:
            ProcessFailed: it has ended.
        """
        status = self.exit_status
        if status is not None:
            raise self.failure(f"ended with {describe_status(status)}")

    def wait_until(self, ready: Callable[[], bool], timeout: float) -> None:
        """Wait until ``ready()``, as long as the process runs.

        Raises:
            ProcessFailed: it ended, or was not ready in time.
        """
        deadline = time.monotonic() + timeout
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise self.failure(f"was not ready after {timeout:.0f} s")
            time.sleep(POLL_SECONDS)

    def stop(self, timeout: float = 10.0) -> int:
        """End it with SIGTERM, what has not ended in time with SIGKILL, and what it left behind; its exit status."""
        if self._child.poll() is None:
            self._child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(timeout)
            # helpers that it started itself end a moment after it
            _wait_while(partial(_group_lives, self.pid), GROUP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        return self._child.wait()


def _wait_while(condition: Callable[[], bool], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while condition() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def _group_lives(group: int) -> bool:
    """Whether a process group has a member that is more than a zombie waiting for init."""
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # pid (name) state parent group ..., where the name may hold anything
            state, _, member_of = entry.read_text().rpartition(")")[2].split()[:3]
            if int(member_of) == group and state != "Z":
                return True
    return False


def describe_status(status: int) -> str:
    """An exit status in words."""
    if status < 0:
        return f"signal {signal.Signals(-status).name}"
    return f"exit status {status}"


def check_port(port: int) -> None:
    """Refuse a loopback port that somebody listens on.

    Raises:
        ConfigError: it is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError("port", f"cannot listen on 127.0.0.1:{port}: {error.strerror}") from error


def free_ports(count: int) -> list[int]:
    """Loopback TCP ports that nobody listens on, all different.

    They lie below the ports that Linux gives to outgoing connections: none of those takes one before its server does.
    """
    ports: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        if len(ports) == count:
            break
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.append(port)
    return ports
