"""``etcd-pd run``: a command with an agent beside it."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from etcd_pd.cli.from_agent import ask_memory
from etcd_pd.reference.local.embedded import EmbeddedEtcd
from tests.support.agents import AgentProcess
from tests.support.children import child
from tests.support.etcdctl import EtcdCtl
from tests.support.waiting import wait_until

RUN = [sys.executable, "-m", "etcd_pd", "run"]


@pytest.fixture
def agent_socket(tmp_path: Path) -> Iterator[str]:
    """A socket on which something answers."""
    path = str(tmp_path / "agent.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        yield path


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with EmbeddedEtcd.start() as server:
        yield server.endpoint


def run(agent_socket: str, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUN, "--socket", agent_socket, "--", *command], capture_output=True, text=True, timeout=30, check=False
    )


def test_the_command_finds_the_socket_in_its_environment(agent_socket: str) -> None:
    done = run(agent_socket, "printenv", "ETCD_PD_SOCKET")
    assert (done.returncode, done.stdout) == (0, f"{agent_socket}\n")


def test_its_flags_are_the_command_own(agent_socket: str) -> None:
    assert run(agent_socket, "echo", "--socket", "x", "-h").stdout == "--socket x -h\n"


@pytest.mark.parametrize("status", [0, 1, 42])
def test_it_ends_with_the_command_exit_status(agent_socket: str, status: int) -> None:
    assert run(agent_socket, sys.executable, "-c", f"raise SystemExit({status})").returncode == status


def test_a_command_that_a_signal_ended_gives_128_and_its_number(agent_socket: str) -> None:
    program = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert run(agent_socket, sys.executable, "-c", program).returncode == 128 + signal.SIGKILL


def test_a_command_that_does_not_exist_gives_127(agent_socket: str) -> None:
    done = run(agent_socket, "/no/such/program")
    assert done.returncode == 127
    assert "cannot start /no/such/program: No such file" in done.stderr


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_go_to_the_command(agent_socket: str, signum: signal.Signals) -> None:
    program = (
        "import signal\n"
        f"signal.pthread_sigmask(signal.SIG_BLOCK, [{int(signum)}])\n"
        "print('waiting', flush=True)\n"
        f"raise SystemExit(7 if signal.sigwait([{int(signum)}]) else 0)"
    )
    command = [*RUN, "--socket", agent_socket, "--", sys.executable, "-c", program]
    with child(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout and running.stdout.readline() == "waiting\n"
        running.send_signal(signum)
        assert running.wait(30) == 7


def test_the_command_starts_with_no_signal_blocked(agent_socket: str) -> None:
    program = "import signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    assert run(agent_socket, sys.executable, "-c", program).stdout == "set()\n"


def test_without_a_command_it_is_a_usage_error(agent_socket: str) -> None:
    done = run(agent_socket)
    assert done.returncode == 2
    assert "Missing argument 'COMMAND...'" in done.stderr


class TestItsOwnAgent:
    """No agent answers on the socket, so one is started."""

    @pytest.fixture
    def run_flags(self, endpoint: str, root: str, tmp_path: Path) -> list[str]:
        return [*RUN, "--etcd", endpoint, "--root", root, "--agent-id", "mine", "--socket", str(tmp_path / "a.sock")]

    def test_it_serves_while_the_command_runs_and_leaves_nothing(
        self, endpoint: str, root: str, tmp_path: Path, run_flags: list[str]
    ) -> None:
        program = (
            "import os, socket\n"
            "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect(os.environ['ETCD_PD_SOCKET'])\n"
            "print('connected', flush=True); input()"
        )
        ctl = EtcdCtl(endpoint)
        command = [*run_flags, "--", sys.executable, "-c", program]
        with child(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
            assert running.stdout and running.stdout.readline() == "connected\n"
            wait_until(lambda: ctl.get(f"{root}/v1/agents/mine"), "the agent is in etcd")
            running.communicate("\n")
        assert running.returncode == 0
        assert not (tmp_path / "a.sock").exists()
        assert ctl.count_prefix(root) == 0

    def test_one_that_is_killed_is_started_again(self, run_flags: list[str], endpoint: str, root: str) -> None:
        ctl = EtcdCtl(endpoint)
        with child([*run_flags, "--", "sleep", "60"], stderr=subprocess.PIPE, text=True) as running:
            before = wait_until(lambda: ctl.get(f"{root}/v1/agents/mine"), "the agent is in etcd")
            wait_until(lambda: _child_of(running.pid, "sleep"), "the command runs")
            first = _agent_of(running.pid)
            assert first
            first.kill()
            second = wait_until(lambda: _agent_of(running.pid, other_than=first.pid), "another agent")
            wait_until(lambda: (key := ctl.get(f"{root}/v1/agents/mine")) and key.lease != before.lease, "it stands")
            running.terminate()
            _, errors = running.communicate(timeout=30)
        assert running.returncode == 128 + signal.SIGTERM
        assert "the agent ended with signal SIGKILL; starting it again" in errors
        assert not second.is_running()

    @pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
    def test_nobody_misses_engines_that_end_without_a_word_when_the_command_was_asked_to(
        self, endpoint: str, root: str, tmp_path: Path, run_flags: list[str], signum: signal.Signals
    ) -> None:
        program = (
            "import os, signal, etcd_pd, time\n"
            "client = etcd_pd.connect()\n"
            "client.prefill.announce('p', rank=etcd_pd.Rank(0), topology=etcd_pd.Topology(), launch_id='l',\n"
            "                        addresses=[], ip='127.0.0.1', port=1)\n"
            "client.decode.announce('d')\n"
            "signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))\n"
            "signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGKILL))\n"
            "while True:\n"
            "    client.prefill.poll()\n"
            "    time.sleep(0.01)"
        )
        ctl = EtcdCtl(endpoint)
        with (
            AgentProcess(endpoint, root, "other", "--metrics-listen=") as other,
            child([*run_flags, "--metrics-listen=", "--", sys.executable, "-c", program]) as running,
        ):
            for key in ("prefill/p/ranks/0.0.0.0", "decode/d"):
                wait_until(lambda key=key: ctl.get(f"{root}/v1/{key}"), f"{key} is in etcd")  # type: ignore[misc]
            running.send_signal(signum)
            assert running.wait(30) == 128 + signal.SIGKILL
            wait_until(lambda: _gone(other, root) == {"prefill p": True, "decode d": True, "agent mine": True}, "left")

    def test_one_that_cannot_start_ends_it_before_the_command(self, tmp_path: Path) -> None:
        started = tmp_path / "started"
        (tmp_path / "a.sock").write_text("no socket")
        flags = ["--socket", str(tmp_path / "a.sock"), "--etcd", "http://127.0.0.1:1", "--startup-timeout-seconds", "5"]
        done = subprocess.run(
            [*RUN, *flags, "--", "touch", str(started)], capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 1
        assert "agent ended with exit status" in done.stderr
        assert not started.exists()


def _gone(asked: AgentProcess, root: str) -> dict[str, bool]:
    """Who is gone as an agent remembers it, and whether it left."""
    memory = ask_memory(asked.socket_path, root)
    return {f"{one['kind']} {one['name']}": one["left"] for one in memory.gone} if memory else {}


def _agent_of(parent: int, other_than: int = 0) -> psutil.Process | None:
    return _child_of(parent, "agent", other_than)


def _child_of(parent: int, word: str, other_than: int = 0) -> psutil.Process | None:
    for found in psutil.Process(parent).children():
        with contextlib.suppress(psutil.Error):
            if word in found.cmdline() and found.pid != other_than:
                return found
    return None
