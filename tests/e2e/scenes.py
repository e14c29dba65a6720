"""A local stack under load, as a person runs it: what screenshots and the transcript of a death are made from."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.running import RunningStack, generation, post
from tests.support.children import child, end
from tests.support.waiting import wait_until

#: Requests that are in flight at any time, and tokens of each.
AT_ONCE, TOKENS = 6, 48
#: How long a sender that was refused waits, seconds.
PAUSE_SECONDS = 0.2


@contextmanager
def busy_stack() -> Iterator[RunningStack]:
    """``etcd-pd up`` with requests through its router, until the context is left."""
    with tempfile.TemporaryDirectory(prefix="etcd-pd-scene-") as directory:
        stack = RunningStack(Path(directory))
        try:
            with _load(stack.router):
                yield stack
        finally:
            stack.stop()
            shutil.rmtree(stack.scratch)


@contextmanager
def _load(router: str) -> Iterator[None]:
    ended = threading.Event()

    def send(number: int) -> None:
        while not ended.is_set():
            number += AT_ONCE
            try:
                answered = post(f"{router}/generate", generation(f"Ship {number} wakes.", TOKENS)).status == 200
            except OSError:
                answered = False
            if not answered:
                ended.wait(PAUSE_SECONDS)

    senders = [threading.Thread(target=send, args=(number,)) for number in range(AT_ONCE)]
    for sender in senders:
        sender.start()
    try:
        yield
    finally:
        ended.set()
        for sender in senders:
            sender.join()


@contextmanager
def dashboard(stack: RunningStack) -> Iterator[str]:
    """The page's URL."""
    command = [sys.executable, "-m", "etcd_pd", "dashboard", "--dashboard-listen", "127.0.0.1:0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with child(command, env=stack.environ, **pipes) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        assert end(process) == 0


def etcd_pid(stack: RunningStack) -> int:
    """Of the stack's own etcd."""
    (found,) = [one.pid for one in stack.descendants() if re.search(r"\betcd\b", one.name())]
    return found


def wait_for_rooms(stack: RunningStack) -> None:
    """Return when requests go through."""
    wait_until(stack.rooms, "a room is in etcd", 60)
