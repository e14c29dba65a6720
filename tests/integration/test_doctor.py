"""``etcd-pd doctor`` on nodes that are well, and on nodes that are not."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from etcd_pd.cli.app import cli
from etcd_pd.client.health import check
from etcd_pd.config import EtcdSettings
from etcd_pd.core.records import is_refused
from etcd_pd.kubernetes.roles import initialize
from etcd_pd.kubernetes.settings import InitSettings
from tests.helm.members import Cell
from tests.support.agents import AgentProcess
from tests.support.etcd_server import EtcdServer
from tests.support.waiting import wait_until

pytestmark = pytest.mark.integration


def doctor(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["doctor", *arguments, "--etcd-request-timeout-seconds", "1"])


def findings(result: Result) -> dict[str, dict[str, Any]]:
    """What it found, by check."""
    return {finding["check"]: finding for finding in json.loads(result.output)}


def flags_of(settings: EtcdSettings) -> list[str]:
    """The flags for an etcd with TLS."""
    pairs = {
        "--etcd": ",".join(settings.endpoints),
        "--etcd-ca-file": settings.ca_file,
        "--etcd-cert-file": settings.cert_file,
        "--etcd-key-file": settings.key_file,
    }
    return [word for pair in pairs.items() for word in pair]


def test_a_healthy_node_passes_and_keeps_nothing_of_it(etcd: EtcdServer, root: str) -> None:
    with AgentProcess(etcd.endpoint, root) as agent:
        wait_until(lambda: not check("ready", agent.socket_path), "the agent has seen etcd")
        wait_until(lambda: etcd.ctl.get_prefix(root), "the agent is in etcd")
        leases, keys = set(etcd.ctl.leases()), etcd.ctl.get_prefix(root)
        flags = ("--etcd", etcd.endpoint, "--root", root, "--socket", agent.socket_path)
        result = doctor(*flags, "--output", "json")
        assert result.exit_code == 0, result.output
        found = findings(result)
        quorum = found["quorum"] if is_refused(etcd.ctl.status().version) else {}
        assert {finding["status"] for finding in found.values() if finding != quorum} == {"ok"}, result.output
        assert list(found) == [
            "agent socket",
            f"etcd {etcd.endpoint}",
            "tls",
            "quorum",
            "alarms",
            "roles",
            "lease",
            "cell",
            "register and resolve",
        ]
        assert "10 rooms there and back" in found["register and resolve"]["text"]
        wait_until(lambda: etcd.ctl.get_prefix(root) == keys, "what it announced and registered is gone")
        assert len(set(etcd.ctl.leases()) - leases) <= 1  # the agent's bucket of the rooms that came and went
        assert doctor(*flags).output.startswith("ok   agent socket: ")


def test_an_agent_of_prefill_engines_alone_is_asked_for_its_half(etcd: EtcdServer, root: str) -> None:
    with AgentProcess(etcd.endpoint, root, "prefill-0", "--prefill-only") as agent:
        wait_until(lambda: not check("ready", agent.socket_path), "the agent has seen etcd")
        result = doctor("--etcd", etcd.endpoint, "--root", root, "--socket", agent.socket_path, "--output", "json")
        assert result.exit_code == 0, result.output
        found = findings(result)["register and resolve"]
        assert found["status"] == "ok" and "10 rooms registered by an agent that resolves none" in found["text"]


def test_without_an_agent_etcd_is_checked_all_the_same(etcd: EtcdServer, root: str, tmp_path: Path) -> None:
    flags = ("--etcd", etcd.endpoint, "--root", root, "--socket", str(tmp_path / "none.sock"))
    result = doctor(*flags, "--output", "json")
    assert result.exit_code == 1
    found = findings(result)
    assert found["agent socket"]["status"] == "fail" and "etcd-pd agent" in found["agent socket"]["hint"]
    assert found["register and resolve"]["status"] == "skip"
    assert found["lease"]["status"] == "ok"


def test_hints_are_shown_when_asked_for(tmp_path: Path) -> None:
    flags = ("--etcd", "http://127.0.0.1:1", "--socket", str(tmp_path / "none.sock"))
    plain, hinted = doctor(*flags).output, doctor(*flags, "--fix-hints").output
    assert "->" not in plain and "etcd-pd doctor --fix-hints" in plain
    assert "-> start one: etcd-pd agent" in hinted and "-> nothing to connect to" in hinted


def test_a_socket_that_nobody_serves_is_distinguished_when_its_file_is_there(tmp_path: Path) -> None:
    path, plain = tmp_path / "dead.sock", tmp_path / "plain"
    plain.write_text("")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(path))
        for name, said in ((path, "does its agent live"), (plain, "remove it")):
            found = findings(doctor("--etcd", "http://127.0.0.1:1", "--socket", str(name), "--output", "json"))
            assert said in found["agent socket"]["hint"]


def test_an_alarm_fails(fresh_etcd: EtcdServer, root: str) -> None:
    fresh_etcd.ctl.alarm("NOSPACE", active=True)
    found = findings(doctor("--etcd", fresh_etcd.endpoint, "--root", root, "--output", "json"))
    assert found["alarms"]["status"] == "fail" and "NOSPACE" in found["alarms"]["text"]
    assert "defragment" in found["alarms"]["hint"]


def test_an_etcd_that_is_frozen_is_found_out(etcd: EtcdServer, root: str) -> None:
    etcd.pause()
    result = doctor("--etcd", etcd.endpoint, "--root", root, "--output", "json")
    etcd.unpause()
    assert result.exit_code == 1
    found = findings(result)
    assert found[f"etcd {etcd.endpoint}"]["status"] == "fail"
    assert {found[name]["status"] for name in ("tls", "quorum", "alarms", "roles", "lease")} == {"skip"}


def test_tls_and_roles_are_found_when_etcd_has_them(tmp_path: Path, _docker: None) -> None:
    root = "/etcd_pd/prod/cell"
    with Cell(tmp_path, 1) as cell:
        cell.prepare("etcd-0")
        cell.start("etcd-0")
        cell.member_ids()
        asyncio.run(initialize(InitSettings(etcd=cell.settings("root"), root=root, instances=("p-0",))))

        def look(user: str, *more: str) -> dict[str, dict[str, Any]]:
            return findings(doctor(*flags_of(cell.settings(user)), "--root", root, *more, "--output", "json"))

        prefill, decode = look("prefill"), look("decode")
        for found in (prefill, decode):
            assert found["tls"]["status"] == "ok" and "client certificate sent" in found["tls"]["text"]
            assert found["lease"]["status"] == "ok"
        assert prefill["roles"]["text"].endswith("write rooms, prefill, agents: the prefill role")
        assert decode["roles"]["text"].endswith("write decode, agents: the decode role")
        elsewhere = findings(doctor(*flags_of(cell.settings("decode")), "--root", "/other", "--output", "json"))
        assert elsewhere["roles"]["status"] == "fail" and "etcd-init" in elsewhere["roles"]["hint"]


def test_a_stranger_s_certificate_is_named_as_such(tmp_path: Path, _docker: None) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with Cell(tmp_path / "one", 1) as cell, Cell(tmp_path / "two", 1) as other:
        cell.prepare("etcd-0")
        cell.start("etcd-0")
        cell.member_ids()
        settings = other.settings("root")
        flags = flags_of(settings)
        flags[1] = ",".join(cell.endpoints)
        found = findings(doctor(*flags, "--output", "json"))
        endpoint = found[f"etcd {cell.endpoints[0]}"]
        assert endpoint["status"] == "fail" and "certificate" in endpoint["hint"]
