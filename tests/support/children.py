"""Child processes that a test starts: whatever they ignore, they end, and within a bound."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: How long one may take to end by itself, seconds.
PATIENCE = 30.0


@contextmanager
def child(command: Sequence[str | Path], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """``subprocess.Popen(command, **options)``, whose process has ended afterwards and whose pipes are closed."""
    process = subprocess.Popen(command, **options)
    try:
        yield process
    finally:
        if process.stdin:
            process.stdin.close()
        try:
            end(process)
        finally:
            for pipe in (process.stdout, process.stderr):
                if pipe:
                    pipe.close()


def end(process: subprocess.Popen[Any], number: int = signal.SIGTERM, patience: float = PATIENCE) -> int:
    """Signal a process unless it has ended, and wait; its exit status.

    Raises:
        AssertionError: it did not end in time, and was killed.
    """
    if process.poll() is None:
        process.send_signal(number)
    try:
        return process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(patience)
        late = f"pid {process.pid} had not ended {patience:.0f} s after {signal.Signals(number).name}"
        raise AssertionError(late) from None
