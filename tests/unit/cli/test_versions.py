"""Which releases of etcd the doctor refuses: those that the chart does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import pytest

from etcd_pd.cli import checks
from etcd_pd.cli.checks import FAIL, OK, WARN
from etcd_pd.config import EtcdSettings
from etcd_pd.core.records import ACCEPTED, MemberStatus, is_refused
from etcd_pd.store.admin import EtcdAdmin, Member

CHART = Path(__file__).parents[3] / "helm" / "etcd-pd" / "templates" / "validate.yaml"


class OneMember:
    """An etcd of one member without users."""

    async def members(self) -> list[Member]:
        return [Member(1, "etcd-0", (), ("http://etcd:2379",))]

    async def auth_enabled(self) -> bool:
        return False


def test_the_doctor_and_the_chart_accept_the_same_releases() -> None:
    said = re.search(r'semverCompare "([^"]+)"', CHART.read_text())
    assert said
    first = re.findall(r">=(\d+)\.(\d+)\.(\d+)", said[1])
    assert {(int(major), int(minor)): int(patch) for major, minor, patch in first} == ACCEPTED


@pytest.mark.parametrize("version", ["3.4.40", "3.5.1", "3.5.29", "3.6.10", "3.7.0"])
def test_a_release_is_refused_when_it_is_older(version: str) -> None:
    assert is_refused(version)


@pytest.mark.parametrize("version", ["3.5.30", "3.5.30-rc.1", "3.6.11", "3.7.1", "3.8.0", "4.0.0", "unknown"])
def test_a_release_is_not_refused_when_it_is_newer_or_unknown(version: str) -> None:
    assert not is_refused(version)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("version", "endpoint", "status"),
    [
        ("3.5.1", "http://etcd:2379", FAIL),
        ("3.5.1", "http://127.0.0.1:2379", WARN),
        ("3.5.33", "http://etcd:2379", OK),
    ],
)
async def test_an_old_etcd_fails_unless_it_is_on_this_machine(
    version: str, endpoint: str, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer(settings: EtcdSettings, members: list[Member]) -> dict[int, Any]:
        return {1: MemberStatus(1, version, 1, 0, 0, 0, 0, False)}

    monkeypatch.setattr(checks, "ask_members", answer)
    found = await checks._quorum(cast(EtcdAdmin, OneMember()), EtcdSettings(endpoints=(endpoint,)))
    assert found.status == status
    assert (f"etcd {version} is too old" in found.text) is (status != OK)
    assert ("upgrade etcd to" in found.hint) is (status != OK)
