"""Child processes: deadlines, last words, and no survivors."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from etcd_pd.errors import ConfigError
from etcd_pd.reference.local.process import Process, ProcessFailed, check_port, describe_status, free_ports
from tests.support.children import child
from tests.support.waiting import wait_until

SLEEP = [sys.executable, "-c", "import time; print('started', flush=True); time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, subprocess, sys, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import signal, time;"
    " signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)'])\n"
    "print('child', child.pid, flush=True)\n"
    "time.sleep(60)",
]


def test_its_log_starts_with_the_command_and_goes_on_with_its_output(tmp_path: Path) -> None:
    process = Process("sleeper", SLEEP, tmp_path / "log")
    process.wait_until(lambda: "started" in process.tail().splitlines(), 10)
    assert process.exit_status is None
    assert process.stop() == -signal.SIGTERM
    assert process.tail().startswith(f"$ {sys.executable} -c ")


def test_one_that_ends_instead_of_getting_ready_shows_its_last_lines(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; print(*range(100), sep='\\n'); sys.exit(3)"]
    process = Process("counter", command, tmp_path / "log")
    with pytest.raises(ProcessFailed, match=r"counter ended with exit status 3; its last lines:\n85\n") as failed:
        process.wait_until(lambda: False, 10)
    assert failed.value.name == "counter"
    assert failed.value.tail.endswith("\n99")


def test_one_that_is_not_ready_in_time_is_an_error(tmp_path: Path) -> None:
    process = Process("sleeper", SLEEP, tmp_path / "log")
    with pytest.raises(ProcessFailed, match="was not ready after 0 s"):
        process.wait_until(lambda: False, 0.1)
    process.stop()


def test_a_command_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    process = Process("nothing", ["/no/such/program"], tmp_path / "log")
    with pytest.raises(ProcessFailed, match="cannot start /no/such/program: No such file"):
        process.wait_until(lambda: False, 10)


def test_one_that_ignores_sigterm_is_killed_with_its_children(tmp_path: Path) -> None:
    process = Process("stubborn", STUBBORN, tmp_path / "log")
    child = int(wait_until(lambda: re.search(r"^child (\d+)$", process.tail(), re.MULTILINE), "it has a child")[1])
    assert process.stop(timeout=0.3) == -signal.SIGKILL
    wait_until(lambda: not psutil.pid_exists(child), "its child is gone")


def test_what_it_left_behind_when_it_ended_by_itself_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import subprocess; print('child', subprocess.Popen(['sleep', '60']).pid)"]
    process = Process("parent", command, tmp_path / "log")
    wait_until(lambda: process.exit_status == 0, "it has ended")
    child = int(process.tail().split()[-1])
    assert psutil.pid_exists(child)
    assert process.stop() == 0
    wait_until(lambda: not psutil.pid_exists(child), "its child is gone")


def test_it_does_not_outlive_a_parent_that_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = (
        "import sys, time; from pathlib import Path; from etcd_pd.reference.local.process import Process\n"
        f"process = Process('sleeper', {SLEEP!r}, Path({str(log)!r}))\n"
        "process.wait_until(lambda: 'started' in process.tail().splitlines(), 10)\n"
        "print(process.pid, flush=True); time.sleep(60)"
    )
    with child([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()
    wait_until(lambda: not psutil.pid_exists(pid), "the child is gone")


def test_ctrl_c_in_a_terminal_does_not_reach_it(tmp_path: Path) -> None:
    process = Process("sleeper", SLEEP, tmp_path / "log")
    assert os.getpgid(process.pid) == process.pid != os.getpgid(0)
    process.stop()


def test_a_port_that_is_taken_is_refused() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port: cannot listen on 127.0.0.1:{port}: Address already in use"):
            check_port(port)
    check_port(port)


def test_exit_statuses_in_words() -> None:
    assert describe_status(2) == "exit status 2"
    assert describe_status(-9) == "signal SIGKILL"


def test_free_ports_are_different_and_can_be_bound() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5
    for port in ports:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
