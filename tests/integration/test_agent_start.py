"""What keeps an agent from starting is said plainly, and nothing half-started stays."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from etcd_pd import Client
from tests.support.agents import AgentProcess
from tests.support.etcd_server import EtcdServer
from tests.support.waiting import wait_until

pytestmark = pytest.mark.integration


def run_agent(socket_path: Path, *options: str, **more: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "etcd_pd", "agent", "--socket", str(socket_path), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=40, check=False, **more)  # type: ignore[call-overload,no-any-return]


def is_synced(client: Client) -> bool:
    client.decode.poll()
    return client.decode.view == "synced"


class TestSocket:
    def test_a_path_that_is_no_socket_is_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "agent.sock"
        path.write_text("precious")
        done = run_agent(path)
        assert done.returncode != 0
        assert f"{path} exists and is no socket" in done.stderr
        assert path.read_text() == "precious"

    def test_a_path_in_use_is_left_to_its_agent(self, etcd: EtcdServer, root: str) -> None:
        with AgentProcess(etcd.endpoint, root) as first:
            done = run_agent(Path(first.socket_path), "--etcd", etcd.endpoint)
            assert done.returncode != 0
            assert "another agent listens" in done.stderr
            with first.client() as client:
                wait_until(lambda: is_synced(client), "the first serves on")

    def test_a_dead_agent_s_socket_is_replaced(self, etcd: EtcdServer, root: str) -> None:
        with AgentProcess(etcd.endpoint, root) as agent:
            agent.stop(9)
            assert os.path.exists(agent.socket_path)
            agent.start()

    def test_a_directory_that_cannot_be_made_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        done = run_agent(tmp_path / "file" / "agent.sock")
        assert done.returncode != 0
        assert str(tmp_path / "file" / "agent.sock") in done.stderr

    def test_only_its_user_may_reach_it(self, etcd: EtcdServer, root: str) -> None:
        with AgentProcess(etcd.endpoint, root) as agent:
            assert os.stat(agent.socket_path).st_mode & 0o777 == 0o600
        with AgentProcess(etcd.endpoint, root, "shared", "--socket-mode=0660", "--allowed-uids=12345") as agent:
            assert os.stat(agent.socket_path).st_mode & 0o777 == 0o660

    def test_a_bad_setting_is_a_usage_error_that_names_the_flag(self, tmp_path: Path) -> None:
        done = run_agent(tmp_path / "agent.sock", "--session-ttl-seconds=1")
        assert done.returncode == 2
        assert "--session-ttl-seconds" in done.stderr


class TestEtcd:
    def test_unreachable_it_gives_up_naming_endpoint_and_seconds(
        self, tmp_path: Path, free_port: Callable[[], int]
    ) -> None:
        endpoint = f"http://127.0.0.1:{free_port()}"
        started = time.monotonic()
        done = run_agent(tmp_path / "agent.sock", "--etcd", endpoint, "--startup-timeout-seconds=1")
        assert done.returncode not in (0, 2)
        assert f"no answer from {endpoint} in 1 s" in done.stderr
        assert "Traceback" not in done.stderr
        assert time.monotonic() - started >= 1
        assert not (tmp_path / "agent.sock").exists()

    def test_it_waits_for_etcd_to_come_up(self, etcd: EtcdServer, root: str) -> None:
        etcd.kill()
        with AgentProcess(etcd.endpoint, root) as agent, agent.client() as client:
            client.decode.want("p", 1)
            etcd.start()
            wait_until(lambda: is_synced(client), "it is synced", timeout=20)

    def test_not_etcd_at_all(self, tmp_path: Path, free_port: Callable[[], int]) -> None:
        port = free_port()
        with socket.create_server(("127.0.0.1", port)):
            endpoint = f"http://127.0.0.1:{port}"
            done = run_agent(tmp_path / "agent.sock", "--etcd", endpoint, "--startup-timeout-seconds=1")
        assert done.returncode not in (0, 2)
        assert endpoint in done.stderr

    def test_an_idle_agent_ends_where_it_was_asked_to(self, etcd: EtcdServer, root: str, tmp_path: Path) -> None:
        done = run_agent(tmp_path / "agent.sock", "--etcd", etcd.endpoint, "--root", root, "--idle-exit-seconds=0.5")
        assert done.returncode == 0
        assert etcd.ctl.count_prefix(root) == 0
