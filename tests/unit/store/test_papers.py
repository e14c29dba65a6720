"""Certificates, passwords and tokens: read anew whenever they are needed, and kept while they cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from etcd_pd.config import EtcdSettings
from etcd_pd.errors import StoreUnavailable
from etcd_pd.store.papers import Papers


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("one\n")
    return path


def test_a_password_is_read_again_when_its_file_changes(file: Path) -> None:
    papers = Papers(EtcdSettings(username="u", password_file=str(file)))
    assert papers.password() == "one"
    file.write_text("two")
    assert papers.password() == "two"


def test_a_token_is_read_again_when_its_file_changes(file: Path) -> None:
    papers = Papers(EtcdSettings(token_file=str(file)))
    assert papers.has_secret and papers.token() == "one"
    file.write_text("two\n")
    assert papers.token() == "two"


def test_the_last_password_stands_when_its_file_is_away(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    papers = Papers(EtcdSettings(username="u", password_file=str(file)))
    papers.password()
    file.unlink()
    assert papers.password() == "one"
    assert "cannot read" in caplog.text and "one" not in caplog.text


def test_the_error_names_the_file_when_it_never_could_be_read(file: Path) -> None:
    settings = EtcdSettings(username="u", password_file=str(file))
    file.unlink()
    with pytest.raises(StoreUnavailable, match=f"cannot read '{file}'"):
        Papers(settings).password()


def test_the_last_certificates_stand_when_their_files_are_away(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("ca_file", "cert_file", "key_file")}
    for path in files.values():
        path.write_text("pem")
    settings = EtcdSettings(endpoints=("https://etcd:2379",), **{name: str(path) for name, path in files.items()})  # type: ignore[arg-type]
    papers = Papers(settings)
    papers.credentials()
    for path in files.values():
        path.unlink()
    papers.credentials()
    with pytest.raises(StoreUnavailable, match="ca_file"):
        Papers(settings).credentials()


def test_nothing_is_shown_when_there_are_no_secrets() -> None:
    papers = Papers(EtcdSettings())
    assert not papers.has_secret and papers.token() == "" and papers.password() == ""
