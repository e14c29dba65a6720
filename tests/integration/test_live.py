"""``etcd-pd watch`` and ``etcd-pd top`` beside an etcd in which things happen."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from etcd_pd.reference.local.embedded import EmbeddedEtcd
from tests.support.children import child
from tests.support.etcd_server import EtcdServer
from tests.support.etcdctl import EtcdCtl

RANK = {"incarnation": "i1", "ip": "10.0.0.1", "port": 7000, "state": "serving"}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with EmbeddedEtcd.start() as server:
        yield server.endpoint


class Running:
    """A command that goes on, and what it says."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def line(self) -> str:
        """Its next line."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def object(self) -> dict[str, Any]:
        """Its next line, as JSON."""
        found: dict[str, Any] = json.loads(self.line())
        return found


@contextmanager
def running(*arguments: str) -> Iterator[Running]:
    """Run ``etcd-pd``, from when it has seen the cell."""
    command = [sys.executable, "-m", "etcd_pd", *arguments]
    with child(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        if arguments[0] == "watch":
            assert process.stderr is not None
            assert process.stderr.readline().startswith("watching ")
        yield Running(process)


def assigned(epoch: int) -> str:
    return json.dumps({"dp_rank": 1, "epoch": epoch, "state": "assigned"})


def test_watch_shows_a_room_s_life_as_it_happens(endpoint: str, root: str) -> None:
    ctl = EtcdCtl(endpoint)
    with running("watch", "--etcd", endpoint, "--root", root, "--count", "4") as watch:
        assert watch.line().split()[2:5] == ["synced", "watch", endpoint]
        epoch = ctl.put(f"{root}/v1/prefill/p/ranks/1.0.0.0", json.dumps(RANK))
        assert watch.line().split()[1:] == [
            str(epoch),
            "up",
            "rank",
            "p",
            "dp_rank=1",
            f"epoch={epoch}",
            "10.0.0.1:7000",
        ]
        revision = ctl.put(f"{root}/v1/rooms/p/7", assigned(epoch))
        assert watch.line().split()[1:6] == [str(revision), "registered", "room", "p", "7"]
        ctl.delete(f"{root}/v1/rooms/p/7")
        assert watch.line().split()[2:6] == ["gone", "room", "p", "7"]
        assert watch.process.wait(10) == 0


def test_watch_filters_and_speaks_json(endpoint: str, root: str) -> None:
    ctl = EtcdCtl(endpoint)
    ctl.put(f"{root}/v1/rooms/p/7", assigned(5))
    flags = ("--etcd", endpoint, "--root", root, "--output", "json", "--all", "--kind", "room", "--room", "7")
    with running("watch", *flags) as watch:
        assert (found := watch.object()) | {"text": "", "revision": 0} == {
            "revision": 0,
            "what": "registered",
            "kind": "room",
            "name": "p",
            "room": "7",
            "dp_rank": 1,
            "epoch": 5,
            "text": "",
        }
        ctl.put(f"{root}/v1/prefill/p/ranks/1.0.0.0", json.dumps(RANK))
        ctl.put(f"{root}/v1/rooms/p/8", assigned(5))
        ctl.put(f"{root}/v1/rooms/q/7", assigned(5))
        assert (found := watch.object())["name"] == "q" and found["room"] == "7"


@pytest.mark.integration
def test_watch_goes_on_over_a_restart_and_says_so(etcd: EtcdServer, root: str) -> None:
    with running("watch", "--etcd", etcd.endpoint, "--root", root, "--output", "json") as watch:
        assert watch.object()["what"] == "synced"
        etcd.kill()
        assert watch.object()["what"] == "stale"
        etcd.start()
        etcd.ctl.put(f"{root}/v1/rooms/p/7", assigned(5))
        told = [watch.object() for _ in range(2)]
        assert sorted(one["what"] for one in told) == ["registered", "synced"]


def test_top_counts_rooms_by_rank(endpoint: str, root: str) -> None:
    ctl = EtcdCtl(endpoint)
    epoch = ctl.put(f"{root}/v1/prefill/p/ranks/1.0.0.0", json.dumps(RANK))
    for number in range(3):
        ctl.put(f"{root}/v1/rooms/p/{number}", assigned(epoch))
    flags = ("--etcd", endpoint, "--root", root, "--interval", "0.2")
    with running("top", *flags, "--output", "json") as top:
        while (look := top.object())["watch"] != "synced":
            pass
        (row,) = look["ranks"]
        assert (row["instance"], row["dp_rank"], row["state"], row["rooms"]) == ("p", 1, "serving", 3)
        assert row["registered"] == 0 and row["held_seconds_p50"] is None
        ctl.put(f"{root}/v1/rooms/p/9", assigned(epoch))
        while not (row := top.object()["ranks"][0])["registered"]:
            pass
        assert row["rooms"] == 4 and row["rooms_per_second"] > 0
        ctl.delete(f"{root}/v1/rooms/p/9")
        while (row := top.object()["ranks"][0])["held_seconds_p50"] is None:
            pass
        assert row["rooms"] == 3
    with running("top", *flags, "--count", "1") as top:
        assert "3 rooms in flight" in (text := top.process.communicate(timeout=20)[0])
        assert "serving" in text and top.process.returncode == 0


@pytest.mark.parametrize("command", ["watch", "top"])
def test_an_etcd_that_is_not_there_is_said_at_once(command: str, root: str) -> None:
    arguments = [command, "--etcd", "http://127.0.0.1:1", "--etcd-request-timeout-seconds", "0.2"]
    done = subprocess.run(
        [sys.executable, "-m", "etcd_pd", *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert "Error: list: " in done.stderr and "Next: " in done.stderr
