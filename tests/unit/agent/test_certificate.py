"""When a certificate ends, compared with what the package cryptography reads."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from etcd_pd.agent.certificate import certificate_end
from etcd_pd.agent.families import families
from etcd_pd.kubernetes.authority import Identity, issue, make_authority, valid_until
from tests.support.agent_in_memory import InMemory

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=timezone.utc)


@pytest.mark.parametrize("days", [1, 365, 365 * 30])
def test_the_end_is_read_when_a_file_holds_a_certificate(tmp_path: Path, days: int) -> None:
    authority = make_authority("authority", NOW, timedelta(days=365 * 40))
    pair = issue(authority, Identity("prefill", ("a" * 60, "10.0.0.1")), NOW, timedelta(days=days))
    path = tmp_path / "tls.crt"
    path.write_bytes(b"a word before\n" + pair.certificate + authority.certificate)
    assert certificate_end(str(path)) == valid_until(pair.certificate).timestamp()
    assert certificate_end(str(path)) == (NOW + timedelta(days=days)).timestamp()


@pytest.mark.parametrize("text", ["", "none", "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"])
def test_there_is_no_end_when_a_file_holds_no_certificate(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tls.crt"
    path.write_text(text)
    assert certificate_end(str(path)) is None
    assert certificate_end(str(tmp_path / "missing")) is None
    assert certificate_end("") is None


def test_there_is_no_end_when_a_certificate_is_cut_off_anywhere(tmp_path: Path) -> None:
    pair = make_authority("authority", NOW, timedelta(days=9))
    path = tmp_path / "tls.crt"
    lines = pair.certificate.decode().splitlines(keepends=True)
    for kept in range(1, len(lines) - 1):
        path.write_text("".join([*lines[:kept], lines[-1]]))
        assert certificate_end(str(path)) in (None, (NOW + timedelta(days=9)).timestamp())


@pytest.mark.parametrize("given", [True, False])
def test_a_scrape_shows_the_end_when_the_agent_has_a_certificate(tmp_path: Path, given: bool) -> None:
    agent = InMemory(tmp_path).agent
    path = tmp_path / "tls.crt"
    path.write_bytes(make_authority("prefill", NOW, timedelta(days=9)).certificate)
    agent.certificate_file = str(path) if given else ""
    (family,) = (each for each in families(agent) if each.name == "etcd_pd_certificate_expiry_timestamp_seconds")
    assert [sample.value for sample in family.samples] == [(NOW + timedelta(days=9)).timestamp()] * given
