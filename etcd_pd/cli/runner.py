"""``etcd-pd run``: a command with an agent beside it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from ..client.drain import leave
from ..config import AgentSettings
from ..errors import AgentUnavailable
from ..reference.local.probe import agent_answers
from ..reference.local.process import Process, describe_status
from .logs import LogSettings
from .options import to_environ

FORWARDED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
#: Of these, those that ask the command to end.
ENDING = {signal.SIGTERM, signal.SIGINT}
#: How long the agent may take to hear of it, seconds.
LEAVE_SECONDS = 1.0
#: si_code of a signal that the kernel made: a terminal's Ctrl-C has reached the command already.
SI_KERNEL = 0x80
#: An agent that keeps ending is started no more often than this.
RESTART_SECONDS = 1.0
#: Exit status where the command cannot be started, as in a shell.
NOT_FOUND, NOT_EXECUTABLE = 127, 126


def run_with_agent(settings: AgentSettings, logs: LogSettings, command: Sequence[str]) -> int:
    """Run ``command`` with an agent on the socket; its exit status, 128 + n where signal n ended it."""
    agent = None if agent_answers(settings.socket_path) else Agent(settings, logs)
    try:
        if agent:
            agent.wait_ready(settings.startup_timeout_seconds)
        return _run(command, {**os.environ, "ETCD_PD_SOCKET": settings.socket_path}, agent)
    finally:
        if agent:
            agent.process.stop()


class Agent:
    """An agent that is started again when it ends: rooms and ranks survive that."""

    def __init__(self, settings: AgentSettings, logs: LogSettings) -> None:
        self._socket_path = settings.socket_path
        self._environ = {**os.environ, **to_environ(settings), **to_environ(logs)}
        self._start()

    def wait_ready(self, timeout: float) -> None:
        """Wait until it takes connections."""
        self.process.wait_until(lambda: agent_answers(self._socket_path), timeout)

    def leave(self) -> None:
        """The command is asked to end: nobody is to miss engines that do so without a word."""
        with suppress(AgentUnavailable):
            leave(self._socket_path, LEAVE_SECONDS)

    def keep(self) -> None:
        """Start it again where it has ended, unless it was started just now."""
        status = self.process.exit_status
        if status is not None and time.monotonic() > self._started + RESTART_SECONDS:
            print(f"etcd-pd run: the agent ended with {describe_status(status)}; starting it again", file=sys.stderr)
            self._start()

    def _start(self) -> None:
        self._started = time.monotonic()
        command = [sys.executable, "-m", "etcd_pd", "agent"]
        self.process = Process("agent", command, log=None, environ=self._environ)


def _run(command: Sequence[str], environ: dict[str, str], agent: Agent | None) -> int:
    # Signals are waited for, not handled: only so their sender is known.
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED | {signal.SIGCHLD})
    try:
        child = os.posix_spawnp(command[0], list(command), environ, setsigmask=())
    except OSError as error:
        print(f"etcd-pd run: cannot start {command[0]}: {error.strerror}", file=sys.stderr)
        return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
    while True:
        received = signal.sigtimedwait(FORWARDED | {signal.SIGCHLD}, RESTART_SECONDS)
        if agent and received and received.si_signo in ENDING:
            agent.leave()
        if received and received.si_signo in FORWARDED and received.si_code != SI_KERNEL:
            os.kill(child, received.si_signo)
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        if agent:
            agent.keep()
