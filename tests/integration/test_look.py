"""``etcd-pd rooms`` and ``etcd-pd instances`` against keys that the test wrote itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from etcd_pd.cli.app import cli
from etcd_pd.embedded import EmbeddedEtcd
from tests.support.etcdctl import EtcdCtl

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

    def show(self, what: str) -> dict[str, Any]:
        """The command's JSON."""
        result = CliRunner().invoke(cli, [what, *self._flags, "--output", "json"])
        assert result.exit_code == 0, result.output
        found: dict[str, Any] = json.loads(result.output)
        return found

    def table(self, what: str) -> str:
        """The command's table."""
        return CliRunner().invoke(cli, [what, *self._flags]).output


@pytest.fixture
def cell(endpoint: str, root: str) -> Cell:
    return Cell(endpoint, root)


def test_rooms_show_rank_state_lease_and_time_left(cell: Cell) -> None:
    epoch = cell.put("prefill/p/ranks/1.0.0.0", RANK)
    lease = cell.ctl.grant(100)
    revision = cell.put(f"rooms/p/{2**63 - 1}", {"dp_rank": 1, "epoch": epoch, "state": "assigned"}, lease)
    (room,) = cell.show("rooms")["rooms"]
    assert 90 < room.pop("seconds_left") <= 100
    assert room == {
        "instance": "p",
        "room": 2**63 - 1,
        "dp_rank": 1,
        "epoch": epoch,
        "state": "assigned",
        "reason": "",
        "revision": revision,
        "lease": f"{lease:x}",
    }
    table = cell.table("rooms")
    for shown in ("9223372036854775807", f"{lease:x}", "assigned", "p"):
        assert shown in table


def test_rooms_tell_failed_lost_and_unreadable_ones(cell: Cell) -> None:
    cell.put("rooms/p/1", {"dp_rank": 0, "epoch": 5, "state": "failed", "reason": "out of memory"})
    cell.put("rooms/p/2", {"dp_rank": 0, "epoch": 999_999, "state": "assigned"})
    cell.put("rooms/p/3", "garbage")
    cell.put("rooms/p/not-a-room", {})
    rooms = cell.show("rooms")["rooms"]
    assert [(room["room"], room["state"]) for room in rooms] == [(1, "failed"), (2, "lost"), (3, "unreadable")]
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
    for shown in ("0.0.0.0", "draining", "10.0.0.2:31001"):
        assert shown in table


def test_an_empty_cell_is_shown_as_such(cell: Cell) -> None:
    assert cell.show("rooms")["rooms"] == []
    assert cell.show("instances")["prefill"] == []
    assert "0 rooms" in cell.table("rooms")


def test_an_etcd_that_does_not_answer_is_one_line(root: str) -> None:
    flags = ["--etcd", "http://127.0.0.1:1", "--etcd-request-timeout-seconds", "0.2"]
    result = CliRunner().invoke(cli, ["rooms", *flags])
    assert result.exit_code == 1
    assert result.output.startswith("Error: list: ") and result.output.count("\n") == 1
