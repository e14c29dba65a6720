"""An etcd of one's own, and what the shell offers of what it holds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ports
from tests.support.children import child, end
from tests.support.etcdctl import EtcdCtl

pytestmark = pytest.mark.integration
ROOT = "/etcd_pd/default/v1"
BIG = 2**64 - 1


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What every terminal of this test has."""
    monkeypatch.delenv("ETCD_PD_ETCD", raising=False)
    return {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "TMPDIR": str(tmp_path)}


@pytest.fixture
def etcd(environ: dict[str, str]) -> Iterator[str]:
    """The endpoint of a running ``etcd-pd etcd``."""
    command = [sys.executable, "-m", "etcd_pd", "etcd", "--port", str(ports.free_port())]
    with child(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        found = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert found
        yield found[0]
        assert end(process) == 0


def run(environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "etcd_pd", *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=50, check=False)


def offered(environ: dict[str, str], words: str) -> list[str]:
    """What bash would offer after these words."""
    asking = {"_ETCD_PD_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    program = "from etcd_pd.cli.app import cli; cli.main(prog_name='etcd-pd')"
    done = subprocess.run(
        [sys.executable, "-c", program], env={**environ, **asking}, capture_output=True, text=True, timeout=50
    )
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


def test_it_is_found_while_it_runs_and_leaves_nothing(etcd: str, environ: dict[str, str], tmp_path: Path) -> None:
    EtcdCtl(etcd).put(f"{ROOT}/decode/decode-0", "{}")
    done = run(environ, "instances", "--output", "json")
    assert [entry["id"] for entry in json.loads(done.stdout)["decode"]] == ["decode-0"]
    assert f"runs here, so looking at its etcd, {etcd}" in done.stderr
    again = run(environ, "etcd", "--port", "0")
    assert again.returncode == 1 and "runs already: one a user" in again.stderr


def test_nothing_is_left_when_it_was_ended(environ: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "etcd_pd", "etcd", "--port", "0"]
    with child(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout and process.stdout.readline()
        assert end(process) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken_is_named(etcd: str, environ: dict[str, str], tmp_path: Path) -> None:
    elsewhere = {**environ, "XDG_RUNTIME_DIR": str(tmp_path / "other")}
    done = run(elsewhere, "etcd", "--port", etcd.rpartition(":")[2])
    assert done.returncode == 1
    assert f"port: cannot listen on {etcd.removeprefix('http://')}: Address already in use" in done.stderr


def test_the_shell_offers_instances_ranks_and_rooms(etcd: str, environ: dict[str, str]) -> None:
    ctl = EtcdCtl(etcd)
    for name in ("prefill-0", "prefill-1"):
        ctl.put(f"{ROOT}/prefill/{name}", "{}")
    for rank in (0, 2, 11):
        ctl.put(f"{ROOT}/prefill/prefill-0/ranks/{rank}.0.0.0", "{}")
    ctl.put(f"{ROOT}/decode/decode-0", "{}")
    ctl.put(f"{ROOT}/agents/agent-0", "{}")
    for room in (7, 70, BIG):
        ctl.put(f"{ROOT}/rooms/prefill-0/{room}", "{}")
    ctl.put(f"{ROOT}/rooms/prefill-1/71", "{}")
    assert offered(environ, "etcd-pd fail rank pre") == ["prefill-0", "prefill-1"]
    assert offered(environ, "etcd-pd fail rank prefill-0 ") == ["0", "2", "11"]
    assert offered(environ, "etcd-pd rooms --instance ") == ["prefill-0", "prefill-1"]
    assert offered(environ, "etcd-pd watch --instance ") == ["prefill-0", "prefill-1", "decode-0", "agent-0"]
    assert offered(environ, "etcd-pd room 7") == ["7", "70", "71"]
    assert offered(environ, "etcd-pd watch --instance prefill-0 --room ") == [str(BIG), "7", "70"]
    assert offered(environ, f"etcd-pd rooms --etcd {etcd} --root /nothing --instance ") == []


def test_the_shell_offers_a_few_names_when_there_are_many_rooms(etcd: str, environ: dict[str, str]) -> None:
    ctl = EtcdCtl(etcd)
    ctl.put(f"{ROOT}/prefill/prefill-0", "{}")
    for room in range(60):
        ctl.put(f"{ROOT}/rooms/prefill-0/{room}", "{}")
    assert len(offered(environ, "etcd-pd room ")) == 50
