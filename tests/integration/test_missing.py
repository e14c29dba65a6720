"""``etcd-pd status`` misses who died, and not who left: agents as processes, on a real etcd."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner

import etcd_pd
from etcd_pd.cli.app import cli
from tests.support.agents import AgentProcess, announce
from tests.support.etcd_server import EtcdServer
from tests.support.waiting import wait_until

pytestmark = pytest.mark.integration

ONE_RANK = etcd_pd.Topology(dp=1)


class Cell:
    """A cell of two agents: one is asked, with the other happens what happens."""

    def __init__(self, endpoint: str, root: str, asked: AgentProcess, other: AgentProcess) -> None:
        self._flags = ["--etcd", endpoint, "--root", root, "--socket", asked.socket_path]
        self.other = other

    def status(self) -> dict[str, Any]:
        """The command's JSON."""
        found: dict[str, Any] = json.loads(CliRunner().invoke(cli, ["status", *self._flags, "--output", "json"]).stdout)
        return found

    def missed(self) -> list[str]:
        """Who is missed."""
        return [one["text"].partition(" is gone")[0] for one in self.status()["problems"] if one["severity"] == "wrong"]

    def left(self) -> list[str]:
        """Who left."""
        return sorted(f"{one['kind']} {one['name']}" for one in self.status()["memory"]["gone"] if one["left"])

    def exit_status(self, command: str) -> int:
        """With which status a command ends."""
        return CliRunner().invoke(cli, [command, *self._flags]).exit_code

    def finding(self) -> dict[str, str]:
        """What the doctor says of the cell."""
        result = CliRunner().invoke(cli, ["doctor", *self._flags, "--output", "json"])
        found: dict[str, str] = next(one for one in json.loads(result.stdout) if one["check"] == "cell")
        return found

    def text(self) -> str:
        """What a person sees."""
        return CliRunner().invoke(cli, ["status", *self._flags]).output


@pytest.fixture
def cell(etcd: EtcdServer, root: str) -> Iterator[Cell]:
    with (
        AgentProcess(etcd.endpoint, root, "asked", "--metrics-listen=") as asked,
        AgentProcess(etcd.endpoint, root, "other", "--metrics-listen=") as other,
    ):
        cell = Cell(etcd.endpoint, root, asked, other)
        wait_until(lambda: cell.status()["counts"]["agent"]["there"] == 2, "both agents are there")
        yield cell


def test_an_instance_is_missed_when_it_died_and_not_when_it_is_back(cell: Cell) -> None:
    with cell.other.client() as client:
        announce(client, topology=ONE_RANK)
        client.detach()
        wait_until(lambda: cell.missed() == ["prefill prefill-0"], "it is missed")
    assert cell.text().startswith("wrong: prefill prefill-0 is gone, and did not say that it leaves, for ")
    with cell.other.client() as client:
        announce(client, topology=ONE_RANK, launch_id="launch-2")
        wait_until(lambda: not cell.missed(), "it is back")


def test_an_instance_and_a_decode_left_when_their_clients_closed(cell: Cell) -> None:
    with cell.other.client() as client:
        announce(client, topology=ONE_RANK)
        client.decode.announce("decode-0", address="10.0.0.1:1")
        wait_until(lambda: cell.status()["counts"]["decode"]["there"] == 1, "the decode is there")
    wait_until(lambda: cell.left() == ["decode decode-0", "prefill prefill-0"], "both left")
    assert cell.missed() == [] and "left: decode decode-0, " in cell.text()


def test_an_agent_and_its_engines_are_missed_when_it_is_killed(cell: Cell) -> None:
    with cell.other.client() as client:
        announce(client, topology=ONE_RANK)
        cell.other.stop(signal.SIGKILL)
        wait_until(lambda: cell.missed() == ["agent other", "prefill prefill-0"], "both are missed")
        cell.other.start()
        wait_until(lambda: client.prefill.poll() is not None and not cell.missed(), "both are back")


def test_an_agent_and_its_engines_left_when_it_is_asked_to_end(cell: Cell) -> None:
    with cell.other.client() as client:
        announce(client, topology=ONE_RANK)
        cell.other.stop(signal.SIGTERM)
        wait_until(lambda: cell.left() == ["agent other", "prefill prefill-0"], "both left")
        assert cell.missed() == []
        cell.other.start()
        wait_until(lambda: client.prefill.poll() is not None and not cell.left(), "both are back")


def test_status_and_doctor_fail_when_a_rank_is_missing(cell: Cell) -> None:
    with cell.other.client() as one:
        announce(one, topology=ONE_RANK)
        assert (cell.exit_status("status"), cell.finding()["status"]) == (0, "ok")
        one.detach()
        wait_until(lambda: cell.missed(), "it is missed")
        found = cell.finding()
        assert cell.exit_status("status") == 3 and cell.exit_status("doctor") == 1
        assert found["status"] == "fail" and found["text"].startswith("prefill prefill-0 is gone")
        assert found["hint"].endswith("docs/runbook.md, EtcdPdRanksMissing")
