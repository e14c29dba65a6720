"""``etcd-pd status``, ``instances``, ``rooms`` and ``room`` against keys that the test wrote itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner

import etcd_pd
from etcd_pd.cli.app import cli
from etcd_pd.reference.local.embedded import EmbeddedEtcd
from tests.support.agents import AgentProcess, announce, wait_for
from tests.support.etcd_server import EtcdCluster, EtcdServer
from tests.support.etcdctl import EtcdCtl
from tests.support.waiting import wait_until

INSTANCE = {
    "incarnation": "i1",
    "launch_id": "l1",
    "addresses": ["10.0.0.1:8998"],
    "topology": {"dp": 2, "cp": 1, "tp": 1, "pp": 1},
    "policy": "round_robin",
}
RANK = {"incarnation": "i1", "ip": "10.0.0.1", "port": 7000, "state": "serving"}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with EmbeddedEtcd.start() as server:
        yield server.endpoint


class Cell:
    """A cell whose keys the test writes."""

    def __init__(self, endpoint: str, root: str) -> None:
        self.ctl = EtcdCtl(endpoint)
        self._root = root
        self._flags = ["--etcd", endpoint, "--root", root]

    def put(self, key: str, value: Any, lease: int = 0) -> int:
        """Write a key below the cell's version; its revision."""
        return self.ctl.put(f"{self._root}/v1/{key}", value if isinstance(value, str) else json.dumps(value), lease)

    def show(self, *what: str, status: int = 0) -> dict[str, Any]:
        """The command's JSON, where it ends with this status."""
        result = CliRunner().invoke(cli, [*what, *self._flags, "--output", "json"])
        assert result.exit_code == status, result.output
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    def table(self, *what: str) -> str:
        """The command's table."""
        return CliRunner().invoke(cli, [*what, *self._flags]).output


@pytest.fixture
def cell(endpoint: str, root: str) -> Cell:
    return Cell(endpoint, root)


def test_rooms_show_rank_state_lease_and_time_left(cell: Cell) -> None:
    epoch = cell.put("prefill/p/ranks/1.0.0.0", RANK)
    lease = cell.ctl.grant(100)
    revision = cell.put(f"rooms/p/{2**63 - 1}", {"dp_rank": 1, "epoch": epoch, "state": "assigned"}, lease)
    (room,) = cell.show("rooms")["rooms"]
    assert 90 < room["seconds_left"] <= 100
    assert room.pop("seconds_left") + room.pop("lease_age_seconds") == 100
    assert room == {
        "instance": "p",
        "room": str(2**63 - 1),
        "dp_rank": 1,
        "epoch": epoch,
        "state": "assigned",
        "reason": "",
        "revision": revision,
        "changed_revision": revision,
        "lease": f"{lease:x}",
    }
    table = cell.table("rooms")
    for shown in ("9223372036854775807", f"{lease:x}", "assigned", "p"):
        assert shown in table


def test_rooms_have_their_states_when_they_are_failed_lost_or_unreadable(cell: Cell) -> None:
    cell.put("rooms/p/1", {"dp_rank": 0, "epoch": 5, "state": "failed", "reason": "out of memory"})
    cell.put("rooms/p/2", {"dp_rank": 0, "epoch": 999_999, "state": "assigned"})
    cell.put("rooms/p/3", "garbage")
    cell.put("rooms/p/not-a-room", {})
    rooms = cell.show("rooms")["rooms"]
    assert [(room["room"], room["state"]) for room in rooms] == [("1", "failed"), ("2", "lost"), ("3", "unreadable")]
    assert "failed: out of memory" in cell.table("rooms")
    assert rooms[0]["seconds_left"] == 0


def test_instances_show_ranks_with_epochs_and_states(cell: Cell) -> None:
    cell.put("prefill/p", INSTANCE)
    epoch = cell.put("prefill/p/ranks/0.0.0.0", RANK)
    cell.put("prefill/p/ranks/1.0.0.0", {**RANK, "state": "draining"})
    cell.put("prefill/q/ranks/0.0.0.0", RANK)
    cell.put("decode/d", {"address": "10.0.0.2:31001"})
    cell.put("agents/a", "garbage")
    found = cell.show("instances")
    p, q = found["prefill"]
    assert (p["id"], p["policy"], p["dp_size"], p["addresses"]) == ("p", "round_robin", 2, ["10.0.0.1:8998"])
    assert [(rank["rank"], rank["state"]) for rank in p["ranks"]] == [("0.0.0.0", "serving"), ("1.0.0.0", "draining")]
    assert p["ranks"][0]["epoch"] == epoch and p["ranks"][0]["address"] == "10.0.0.1:7000"
    assert (q["id"], q["state"], len(q["ranks"])) == ("q", "gone", 1)
    assert found["decode"][0]["address"] == "10.0.0.2:31001"
    assert found["agents"][0]["id"] == "a"
    table = cell.table("instances")
    for shown in (" 0 ", "draining", "10.0.0.2:31001"):
        assert shown in table


def test_an_empty_cell_is_shown_as_such(cell: Cell) -> None:
    assert cell.show("rooms")["rooms"] == []
    assert cell.show("instances")["prefill"] == []
    assert "0 rooms" in cell.table("rooms")


def test_rooms_are_filtered_by_instance_rank_state_and_age(cell: Cell) -> None:
    epoch = cell.put("prefill/p/ranks/1.0.0.0", RANK)
    lease = cell.ctl.grant(100)
    cell.put("rooms/p/1", {"dp_rank": 1, "epoch": epoch, "state": "assigned"}, lease)
    cell.put("rooms/p/2", {"dp_rank": 0, "epoch": 1, "state": "assigned"}, lease)
    cell.put("rooms/q/3", {"dp_rank": 1, "epoch": 1, "state": "failed", "reason": "no"}, lease)

    def shown(*filters: str) -> list[int]:
        return [int(room["room"]) for room in cell.show("rooms", *filters)["rooms"]]

    assert shown() == [1, 2, 3]
    assert shown("--instance", "p") == [1, 2]
    assert shown("--rank", "1") == [1, 3]
    assert shown("--rank", "0") == [2]
    assert shown("--state", "lost") == [2]
    assert shown("--state", "failed", "--rank", "1") == [3]
    assert shown("--min-age", "99") == []
    assert shown("--instance", "nobody") == []


def test_a_room_s_life_is_shown_step_by_step_when_it_is_looked_up(cell: Cell) -> None:
    cell.put("prefill/p", INSTANCE)
    epoch = cell.put("prefill/p/ranks/1.0.0.0", RANK)
    lease = cell.ctl.grant(100)
    registered = cell.put("rooms/p/7", {"dp_rank": 1, "epoch": epoch, "state": "assigned"}, lease)
    (life,) = cell.show("room", "7")["lives"]
    assert (life["revision"], life["changed_revision"], life["state"]) == (registered, registered, "assigned")
    failed = cell.put("rooms/p/7", {"dp_rank": 1, "epoch": epoch, "state": "failed", "reason": "no memory"}, lease)
    (life,) = cell.show("room", "7")["lives"]
    assert (life["revision"], life["changed_revision"], life["reason"]) == (registered, failed, "no memory")
    told = cell.table("room", "7")
    for shown in (
        f"revision {registered}",
        f"revision {failed}",
        "failed: no memory",
        f"epoch {epoch}",
        f"{lease:x}",
        "dp_rank 1",
    ):
        assert shown in told


def test_a_room_of_an_instance_that_is_gone_is_found_too(cell: Cell) -> None:
    cell.put("rooms/gone/7", {"dp_rank": 1, "epoch": 5, "state": "assigned"})
    cell.put("prefill/p", INSTANCE)
    (life,) = cell.show("room", "7")["lives"]
    assert (life["instance"], life["state"]) == ("gone", "lost")


def test_a_room_without_a_key_is_status_1_and_says_where_to_look(cell: Cell, endpoint: str, root: str) -> None:
    result = CliRunner().invoke(cli, ["room", "7", "--etcd", endpoint, "--root", root])
    assert result.exit_code == 1
    assert "never registered" in result.output and "etcd-pd watch --room 7" in result.output


def test_status_shows_members_alarms_leases_and_the_cell(cell: Cell, endpoint: str) -> None:
    cell.put("prefill/p", INSTANCE)
    epoch = cell.put("prefill/p/ranks/1.0.0.0", RANK)
    lease = cell.ctl.grant(100)
    cell.put("agents/a", {"version": 1}, lease)
    for room in (1, 2):
        cell.put(f"rooms/p/{room}", {"dp_rank": 1, "epoch": epoch, "state": "assigned"}, lease)
    cell.put("rooms/p/3", {"dp_rank": 0, "epoch": 1, "state": "assigned"}, lease)
    found, server = cell.show("status", status=3), cell.ctl.status()
    (member,) = found["etcd"]["members"]
    assert member["leader"] and member["id"] == f"{server.member_id:x}" and member["version"] == server.version
    assert 0 < member["db_size_in_use_bytes"] <= member["db_size_bytes"]
    assert found["etcd"]["leases"] == len(cell.ctl.leases())
    assert found["etcd"]["alarms"] == []
    assert found["prefill"][0]["ranks"][0]["rooms"] == 2
    assert found["rooms"] == {"assigned": 2, "failed": 0, "lost": 1, "unreadable": 0}
    assert found["agents"][0]["id"] == "a" and 90 < found["agents"][0]["seconds_left"] <= 100
    assert [problem["severity"] for problem in found["problems"]] == ["wrong", "degraded"]
    told = cell.table("status")
    assert told.startswith("wrong: prefill p: 1 of 2 rank processes: dp_rank 0 missing  (docs/runbook.md, EtcdPd")
    for shown in ("leader", server.version, " 1 ", "2 assigned, 1 lost", f"{lease:x}"):
        assert shown in told


def test_status_shows_alarms(cell: Cell) -> None:
    cell.ctl.alarm("CORRUPT", active=True)
    try:
        assert cell.show("status", status=3)["etcd"]["alarms"] == [{"member": "embedded", "alarm": "CORRUPT"}]
        assert "ALARM CORRUPT at embedded" in cell.table("status")
    finally:
        cell.ctl.alarm("CORRUPT", active=False)


def test_status_names_leader_and_silent_members_when_one_is_down(etcd_cluster: EtcdCluster, root: str) -> None:
    down = etcd_cluster.followers()[0]
    up = etcd_cluster.others(down)
    down.kill()
    # from one endpoint it finds the others
    flags = ["--etcd", up[0].endpoint, "--root", root, "--etcd-request-timeout-seconds", "3", "--output", "json"]
    result = CliRunner().invoke(cli, ["status", *flags])
    assert result.exit_code == 0, result.output
    members = {member["name"]: member for member in json.loads(result.stdout)["etcd"]["members"]}
    assert len(members) == 3
    assert "error" in members[down.name]
    assert [name for name, member in members.items() if member.get("leader")] == [etcd_cluster.leader(up).name]


def test_an_etcd_that_does_not_answer_is_one_line_and_a_next_step(root: str) -> None:
    flags = ["--etcd", "http://127.0.0.1:1", "--etcd-request-timeout-seconds", "0.2"]
    result = CliRunner().invoke(cli, ["rooms", *flags])
    assert result.exit_code == 1
    error, step = result.output.splitlines()
    assert error.startswith("Error: list: ")
    assert step.startswith("Next: ") and "etcd-pd doctor" in step


def test_the_agent_answers_when_etcd_is_gone(fresh_etcd: EtcdServer, root: str) -> None:
    with AgentProcess(fresh_etcd.endpoint, root) as agent, agent.client() as client:
        announce(client, dp_rank=1)
        client.prefill.register(7)
        wait_for(client, etcd_pd.Registered)
        fresh_etcd.kill()
        wait_until(lambda: "watch stale" in agent.log, "the agent has noticed")
        given = ["--etcd", fresh_etcd.endpoint, "--root", root, "--etcd-request-timeout-seconds", "0.5"]
        environ = {**os.environ, "ETCD_PD_SOCKET": agent.socket_path, "COLUMNS": "200"}

        def ask(*what: str) -> subprocess.CompletedProcess[str]:
            # a process for each, as people have it: grpc's poller outlives the loop of one that found no etcd
            command = [sys.executable, "-m", "etcd_pd", *what, *given]
            return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)

        for what, part in ((("status",), "1 assigned"), (("rooms",), "assigned"), (("room", "7"), "dp_rank 1")):
            shown = ask(*what)
            assert shown.returncode == 3, shown.stdout + shown.stderr
            assert f"etcd does not answer; from the agent on {agent.socket_path}, " in shown.stdout
            assert part in shown.stdout
        (room,) = json.loads(ask("rooms", "--output", "json").stdout)["rooms"]
        assert (room["room"], room["dp_rank"], room["seconds_left"]) == ("7", 1, None)


HOSTILE = "out of [/memory] [errno 110] \x1b[2J\x1b]0;owned\x07 \u202egnp"


@pytest.mark.parametrize("what", [("rooms",), ("room", "7"), ("status",), ("instances",)], ids=lambda what: what[0])
def test_what_others_wrote_is_shown_as_text_when_it_looks_like_markup(cell: Cell, what: tuple[str, ...]) -> None:
    cell.put("prefill/p", {**INSTANCE, "policy": HOSTILE})
    cell.put("prefill/p/ranks/0.0.0.0", {**RANK, "ip": HOSTILE})
    lease = cell.ctl.grant(60)
    cell.put("rooms/p/7", {"dp_rank": 0, "epoch": 5, "state": "failed", "reason": HOSTILE}, lease)
    shown = cell.table(*what)
    assert "\x1b" not in shown and "\x07" not in shown and "\u202e" not in shown
    assert "Traceback" not in shown
    if what[0] in ("rooms", "room"):
        assert r"[/memory] [errno 110] \x1b[2J\x1b]0;owned\x07 \u202egnp" in " ".join(shown.split())


@pytest.mark.parametrize("what", [("status",), ("instances",), ("rooms",), ("room", "7")], ids=lambda what: what[0])
def test_the_cells_that_there_are_are_named_when_the_root_is_wrong(
    cell: Cell, endpoint: str, root: str, what: tuple[str, ...]
) -> None:
    cell.put("prefill/p", INSTANCE)
    EtcdCtl(endpoint).put("/somebody/elses/v1/key", "x")
    result = CliRunner().invoke(cli, [*what, "--etcd", endpoint, "--root", "/mistyped", "--output", "json"])
    assert "nothing is under --root /mistyped; etcd holds the cells " in result.stderr
    assert root in result.stderr and "/somebody" not in result.stderr
    json.loads(result.stdout)


def test_an_empty_etcd_is_no_error_when_nothing_has_begun(fresh_etcd: EtcdServer) -> None:
    result = CliRunner().invoke(cli, ["status", "--etcd", fresh_etcd.endpoint])
    assert result.exit_code == 0
    assert "nothing is under --root /etcd_pd/default, and no other cell in this etcd" in result.stderr
