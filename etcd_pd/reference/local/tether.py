"""Start a command that ends when its parent does: the kernel sends it SIGTERM, even after a SIGKILL of the parent.

Used as a program of its own between a process and what it starts (it replaces itself, so the pid stays)::

    subprocess.Popen(tethered(["etcd", "--data-dir", directory]))

Linux's parent-death signal follows the *thread* that started the child, so start children from one that lives on.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def tethered(command: Sequence[str]) -> list[str]:
    """The command line that runs ``command`` as a child which does not outlive this process."""
    return [sys.executable, "-IS", os.path.abspath(__file__), str(os.getpid()), *command]


def main(arguments: Sequence[str]) -> None:
    """Tie this process to its parent, then become the command."""
    parent, command = int(arguments[0]), list(arguments[1:])
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        sys.exit(f"cannot be tied to the parent process: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        sys.exit("the parent process ended before the command was started")
    # whoever waits for signals synchronously has them blocked, and a mask survives exec
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"cannot start {command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
