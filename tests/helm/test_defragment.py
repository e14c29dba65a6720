"""`etcd-pd etcd-defragment` against real etcd: a full one takes writes again, and only root may ask for it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import tenacity

from etcd_pd.config import EtcdSettings
from etcd_pd.core.keys import Keys
from etcd_pd.core.records import Put
from etcd_pd.errors import StoreBusy, StoreError, StoreRejected, StoreUnavailable
from etcd_pd.kubernetes.defragment import defragment
from etcd_pd.kubernetes.roles import initialize
from etcd_pd.kubernetes.settings import InitSettings
from etcd_pd.store import etcdrpc as rpc
from etcd_pd.store.admin import EtcdAdmin
from tests.helm.members import Cell

pytestmark = [pytest.mark.helm, pytest.mark.integration, pytest.mark.every_etcd]

ROOT = "/etcd_pd/prod/cell"
KEY = Keys(ROOT).room("p-0", 7)
QUOTA = 8 << 20


@pytest.fixture
def full(tmp_path: Path, _docker: None) -> Iterator[Cell]:
    """A cell with roles, whose etcd has raised NOSPACE."""
    with Cell(tmp_path, 1, config={"quota-backend-bytes": QUOTA}) as cell:
        cell.prepare("etcd-0")
        cell.start("etcd-0")
        cell.member_ids()
        asyncio.run(initialize(InitSettings(etcd=cell.settings("root"), root=ROOT)))
        _fill(cell.settings("prefill"))
        yield cell


def _fill(settings: EtcdSettings) -> None:
    """Write until etcd refuses: it compares with the size of its last commit, which a fast disk outruns."""
    with pytest.raises(StoreBusy):
        asyncio.run(_write(settings, 32 * QUOTA))


async def _write(settings: EtcdSettings, total: int) -> None:
    """Write one key again and again: all but the last is history. Members may be electing a leader meanwhile."""
    piece = bytes(1 << 18)
    async with EtcdAdmin(settings) as store:
        for _ in range(0, total, len(piece)):
            async for attempt in tenacity.AsyncRetrying(
                retry=tenacity.retry_if_exception(_is_unanswered),
                stop=tenacity.stop_after_delay(60),
                wait=tenacity.wait_fixed(0.1),
                reraise=True,
            ):
                with attempt:
                    assert (await store.txn([], [Put(KEY, piece, 0)])).succeeded


def _is_unanswered(error: BaseException) -> bool:
    return isinstance(error, StoreUnavailable) and not isinstance(error, StoreBusy)


async def _look(settings: EtcdSettings) -> tuple[list[str], int]:
    async with EtcdAdmin(settings) as admin:
        return [alarm for _, alarm in await admin.alarms()], (await admin.status()).db_size


def test_writes_are_taken_again_when_a_full_etcd_was_defragmented(full: Cell) -> None:
    root = full.settings("root")
    alarms, before = asyncio.run(_look(root))
    assert alarms == ["NOSPACE"]
    asyncio.run(defragment(root))
    alarms, after = asyncio.run(_look(root))
    assert alarms == []
    assert after < before / 4
    asyncio.run(_write(full.settings("prefill"), QUOTA // 4))
    asyncio.run(defragment(root))  # it may be done at any time


def test_nothing_is_done_when_somebody_else_than_root_asks(full: Cell) -> None:
    with pytest.raises(StoreRejected):
        asyncio.run(defragment(full.settings("prefill")))
    assert asyncio.run(_look(full.settings("root")))[0] == ["NOSPACE"]


def test_another_alarm_stays_when_members_hold_different_data(full: Cell) -> None:
    root = full.settings("root")
    (member,) = full.member_ids().values()
    asyncio.run(_raise_corrupt(root, member))
    with pytest.raises(StoreError):
        asyncio.run(defragment(root))
    assert "CORRUPT" in asyncio.run(_look(root))[0]


def test_the_others_are_defragmented_when_the_leader_is_lost(tmp_path: Path, _docker: None) -> None:
    with Cell(tmp_path, 3, config={"quota-backend-bytes": QUOTA}) as cell:
        for name in cell.names:
            cell.prepare(name)
            cell.start(name)
        ids = cell.member_ids()
        root = cell.settings("root")
        asyncio.run(_write(root, QUOTA // 2))
        leader = asyncio.run(_leader(root))
        lost = next(name for name in cell.names if ids[name] == leader)
        cell.stop(lost)
        left = tuple(url for name, url in zip(cell.names, cell.endpoints, strict=True) if name != lost)
        _fill(cell.settings("root", left))
        with pytest.raises(StoreError):
            asyncio.run(defragment(root))
        for endpoint in left:
            alarms, size = asyncio.run(_look(cell.settings("root", (endpoint,))))
            assert alarms == []
            assert size < QUOTA / 4


async def _leader(settings: EtcdSettings) -> int:
    async with EtcdAdmin(settings) as admin:
        return (await admin.status()).leader


async def _raise_corrupt(settings: EtcdSettings, member: int) -> None:
    async with EtcdAdmin(settings) as admin:
        request = rpc.AlarmRequest(action=rpc.AlarmRequest.ACTIVATE, memberID=member, alarm=rpc.AlarmType.CORRUPT)
        await admin._calls.call("alarm", "Maintenance", "Alarm", request)
