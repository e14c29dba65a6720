"""`etcd-pd etcd-init` against real etcd: who may do what, with certificates and with passwords."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from etcd_pd.agent.etcd_health import EtcdHealth
from etcd_pd.config import EtcdSettings
from etcd_pd.core.keys import Keys
from etcd_pd.core.records import Delete, Put
from etcd_pd.errors import ConfigError, StoreError, StoreRejected
from etcd_pd.kubernetes.roles import UserOfAnotherCell, initialize
from etcd_pd.kubernetes.settings import InitSettings
from etcd_pd.store.etcd import EtcdStore
from etcd_pd.wire.values import Rank
from tests.helm.members import Cell

pytestmark = [pytest.mark.helm, pytest.mark.integration, pytest.mark.every_etcd]

ROOT = "/etcd_pd/prod/cell"
KEYS = Keys(ROOT)
ROOM, RANK = KEYS.room("p-0", 7), KEYS.rank("p-0", Rank(0))


def test_roles_hold_and_may_be_made_again(tmp_path: Path, _docker: None) -> None:
    with Cell(tmp_path, 1) as cell:
        cell.prepare("etcd-0")
        cell.start("etcd-0")
        cell.member_ids()
        settings = InitSettings(etcd=cell.settings("root"), root=ROOT, instances=("p-0",))
        asyncio.run(initialize(settings))
        asyncio.run(initialize(settings))
        asyncio.run(_check_roles(cell.settings("prefill"), cell.settings("decode")))


def test_a_user_of_another_cell_is_refused_when_cells_share_an_etcd(tmp_path: Path, _docker: None) -> None:
    with Cell(tmp_path, 1) as cell:
        cell.prepare("etcd-0")
        cell.start("etcd-0")
        cell.member_ids()
        first = InitSettings(etcd=cell.settings("root"), root=ROOT)
        asyncio.run(initialize(first))
        second = replace(first, root="/etcd_pd/prod/other")
        with pytest.raises(UserOfAnotherCell, match=f"user prefill has roles in {ROOT} too"):
            asyncio.run(initialize(second))
        with pytest.raises(StoreRejected, match="permission denied"):
            asyncio.run(_read(cell.settings("prefill"), Keys("/etcd_pd/prod/other").room("p-0", 7)))
        asyncio.run(initialize(replace(second, prefill_user="other-prefill", decode_user="other-decode")))


async def _check_roles(prefill: EtcdSettings, decode: EtcdSettings) -> None:
    async with EtcdStore(prefill) as writer, EtcdStore(decode) as reader:
        lease = (await writer.grant(60)).lease_id
        for key in (ROOM, RANK, KEYS.prefill("p-0"), KEYS.agent("a")):
            assert (await writer.txn([], [Put(key, b"{}", lease)])).succeeded
        assert len((await reader.list(KEYS.prefix)).kvs) == 4
        for key in (KEYS.decode("d-0"), KEYS.agent("b")):
            await reader.txn([], [Put(key, b"{}", 0)])
        for refused in (
            Put(ROOM, b"x", 0),
            Delete(ROOM),
            Put(KEYS.prefill("p-0"), b"x", 0),
            Put(b"/elsewhere", b"", 0),
        ):
            with pytest.raises(StoreRejected, match="permission denied"):
                await reader.txn([], [refused])
        with pytest.raises(StoreRejected, match="permission denied"):
            await reader.revoke(lease)
        with pytest.raises(StoreRejected, match="permission denied"):
            await writer.txn([], [Put(KEYS.decode("d-0"), b"x", 0)])
        with pytest.raises(StoreRejected, match="permission denied"):
            await reader.list(b"/etcd_pd/prod/other/v1/")
        assert (await reader.read([ROOM])).kvs[0].value == b"{}"
        for store in (writer, reader):
            health = EtcdHealth(store)
            await health.look()
            assert health.alarms == {}, "agents may ask for alarms"


def test_an_instance_of_its_own_writes_its_own_keys_alone(tmp_path: Path, _docker: None) -> None:
    with Cell(tmp_path, 1) as cell:
        cell.prepare("etcd-0")
        cell.start("etcd-0")
        cell.member_ids()
        # the prefill user's certificate stands for the instance here: its common name is the user
        settings = InitSettings(
            etcd=cell.settings("root"), root=ROOT, prefill_user="all", decode_user="decode", instances=("prefill",)
        )
        asyncio.run(initialize(settings))

        async def check() -> None:
            async with EtcdStore(cell.settings("prefill")) as store:
                own = (KEYS.prefill("prefill"), KEYS.rank("prefill", Rank(0)), KEYS.room("prefill", 7))
                for key in own:
                    assert (await store.txn([], [Put(key, b"{}", 0)])).succeeded
                for key in (KEYS.prefill("prefill-2"), KEYS.rank("prefill-2", Rank(0)), KEYS.room("prefill-2", 7)):
                    with pytest.raises(StoreRejected, match="permission denied"):
                        await store.txn([], [Put(key, b"{}", 0)])

        asyncio.run(check())


def test_passwords_do_too_and_may_change(tmp_path: Path, _docker: None) -> None:
    with Cell(tmp_path, 1, tls=False) as cell:
        cell.prepare("etcd-0")
        cell.start("etcd-0")
        cell.member_ids()
        root = replace(cell.settings("root"), username="root", password="r")
        settings = InitSettings(etcd=root, root=ROOT, root_password="r", prefill_password="p", decode_password="d")
        asyncio.run(initialize(settings))
        asyncio.run(initialize(settings))
        nobody = cell.settings("prefill")
        prefill = replace(nobody, username="prefill", password="p")
        asyncio.run(_check_roles(prefill, replace(nobody, username="decode", password="d")))
        asyncio.run(initialize(replace(settings, prefill_password="new")))
        with pytest.raises(StoreRejected):
            asyncio.run(_read(prefill))
        asyncio.run(_read(replace(prefill, password="new")))
        with pytest.raises(StoreError):
            asyncio.run(_read(nobody))
        assert "'r'" not in repr(settings)


async def _read(settings: EtcdSettings, key: bytes = ROOM) -> None:
    async with EtcdStore(settings) as store:
        await store.read([key])


def test_strangers_are_refused(tmp_path: Path, _docker: None) -> None:
    with Cell(tmp_path / "cell", 1) as cell, Cell(tmp_path / "other", 1) as other:
        cell.prepare("etcd-0")
        cell.start("etcd-0")
        cell.member_ids()
        stranger = other.settings("prefill", cell.endpoints)
        with pytest.raises(StoreError):
            asyncio.run(_read(stranger))
        with pytest.raises(StoreError):
            asyncio.run(_read(replace(stranger, ca_file=cell.settings("root").ca_file)))


def test_etcd_that_does_not_come_is_an_error() -> None:
    settings = InitSettings(etcd=EtcdSettings(endpoints=("http://127.0.0.1:9",)), wait_seconds=0.1)
    with pytest.raises(StoreError):
        asyncio.run(initialize(settings))


@pytest.mark.parametrize("wrong", [{"root": "x"}, {"prefill_user": "root"}, {"instances": ("a/b",)}])
def test_settings_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        InitSettings(**wrong)  # type: ignore[arg-type]
