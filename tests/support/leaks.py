"""What a test leaves behind: processes and threads.

A process is seen as a child of this one, or, where it made itself independent (a new session, a second fork), by a
mark in the environment that it inherited.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from pathlib import Path

import psutil

_MARK = "ETCD_PD_TEST_RUN"

# Helpers that the standard library keeps for the life of the process, and other libraries' monitors.
_LASTING_PROCESSES = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
_LASTING_THREADS = ("tqdm_monitor", "pytest_timeout")


class LeakCheck:
    """Made before a test; `leaked()` after it says what is there now and was not then. `grace` is in seconds."""

    def __init__(self, name: str, grace: float = 3.0) -> None:
        self._grace = grace
        self._mark = f"{os.getpid()}:{time.monotonic_ns()}:{name}"
        os.environ[_MARK] = self._mark
        self._children = _children()
        self._threads = set(threading.enumerate())

    def leaked(self) -> list[str]:
        """Descriptions of leaked threads and processes, after a moment of grace; the processes are killed."""
        os.environ.pop(_MARK, None)
        end = time.monotonic() + self._grace
        while (processes := self._processes()) or self._new_threads():
            if time.monotonic() > end:
                break
            gc.collect()  # grpc's poller ends with the last channel, which may be part of a cycle
            time.sleep(0.02)
        found = [f"thread {thread.name!r}" for thread in self._new_threads()]
        for process in processes:
            found.append(f"process {_describe(process)}")
            _kill(process)
        return found

    def _new_threads(self) -> list[threading.Thread]:
        return [
            thread
            for thread in threading.enumerate()
            if thread not in self._threads and not thread.name.startswith(_LASTING_THREADS)
        ]

    def _processes(self) -> list[psutil.Process]:
        new = []
        for pid in (_children() - self._children) | _marked(self._mark):
            try:
                process = psutil.Process(pid)
                if not any(helper in " ".join(process.cmdline()) for helper in _LASTING_PROCESSES):
                    new.append(process)
            except psutil.NoSuchProcess:
                continue
        return new


def _children() -> set[int]:
    """Direct children of every thread of this process, zombies too."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            found.update(int(pid) for pid in (task / "children").read_text().split())
        except OSError:
            continue
    return found


def _marked(mark: str) -> set[int]:
    """Processes that inherited `mark`. (This one has it only inside Python, not in /proc.)"""
    wanted = f"{_MARK}={mark}\0".encode()
    found = set()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                with open(f"/proc/{entry.name}/environ", "rb") as environ:
                    if wanted in environ.read():
                        found.add(int(entry.name))
            except OSError:
                continue
    return found


def _describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid} ({process.status()}): {' '.join(process.cmdline())[:200]}"
    except psutil.Error:
        return str(process.pid)


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
        process.wait(1)
    except psutil.Error:
        pass
