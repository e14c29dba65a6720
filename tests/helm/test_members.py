"""`etcd-pd etcd-member` before real etcd: new members form a cluster, and one that lost its volume joins again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from etcd_pd.core.records import Put
from etcd_pd.errors import ConfigError, StoreError
from etcd_pd.kubernetes.member import ClusterLost, MembersDiffer
from etcd_pd.kubernetes.settings import MemberSettings
from etcd_pd.store.etcd import EtcdStore
from tests.helm.members import Cell

pytestmark = [pytest.mark.helm, pytest.mark.integration, pytest.mark.every_etcd]


def test_a_member_that_lost_its_volume_joins_again_and_nothing_is_lost(tmp_path: Path, _docker: None) -> None:
    with Cell(tmp_path, 3) as cell:
        assert [cell.prepare(name) for name in cell.names] == ["new"] * 3
        for name in cell.names:
            cell.start(name)
        before = cell.member_ids()
        cell.form()
        _put(cell, b"/kept", b"here")

        cell.stop("etcd-2")
        assert cell.prepare("etcd-2") == "existing", "its data is there"
        cell.wipe("etcd-2")
        assert cell.prepare("etcd-2") == "existing"
        assert cell.prepare("etcd-2") == "existing", "the init container may run again"
        cell.start("etcd-2")
        after = cell.member_ids()
        assert after["etcd-2"] != before["etcd-2"], "somebody new, who has voted for nothing yet"
        assert {name: after[name] for name in cell.names[:2]} == {name: before[name] for name in cell.names[:2]}

        # the new member counts: with another one gone, it makes the quorum
        cell.stop("etcd-0")
        assert _get(cell, b"/kept", cell.endpoints[2]) == b"here"


def test_a_database_without_a_log_is_put_aside_when_the_first_start_failed(tmp_path: Path, _docker: None) -> None:
    with Cell(tmp_path, 1) as cell:
        leftover = cell.data("etcd-0") / "member" / "snap" / "db"
        leftover.parent.mkdir(parents=True)
        leftover.write_bytes(b"half a page")
        assert cell.prepare("etcd-0") == "new"
        cell.start("etcd-0")
        assert list(cell.member_ids()) == ["etcd-0"]
        (kept,) = cell.data("etcd-0").glob("member.without-wal-*/snap/db")
        assert kept.read_bytes() == b"half a page"
        assert cell.prepare("etcd-0") == "existing"


def test_data_is_left_alone_when_its_log_cannot_be_looked_at(tmp_path: Path, _docker: None) -> None:
    with Cell(tmp_path, 1) as cell:
        member = cell.data("etcd-0") / "member"
        member.mkdir(parents=True)
        (member / "wal").write_text("no directory: root may read all others")
        with pytest.raises(NotADirectoryError):
            cell.prepare("etcd-0")
        assert (member / "wal").exists()


def test_without_an_answer_a_formed_cluster_is_waited_for_and_never_started_anew(tmp_path: Path, _docker: None) -> None:
    with Cell(tmp_path, 3) as cell:
        cell.formed.write_text("1")
        with pytest.raises(StoreError, match="the cluster was formed before"):
            cell.prepare("etcd-1", wait=0.5)
        cell.formed.unlink()
        assert cell.prepare("etcd-1") == "new"


def test_a_cluster_without_quorum_is_waited_for(tmp_path: Path, _docker: None) -> None:
    with Cell(tmp_path, 3) as cell:
        for name in cell.names:
            cell.prepare(name)
            cell.start(name)
        cell.member_ids()
        for name in cell.names[1:]:
            cell.stop(name)
        cell.wipe("etcd-1")
        # even where nobody has said yet that it was formed: one of the others is there and says so
        with pytest.raises(StoreError):
            cell.prepare("etcd-1", wait=1.0)


def test_a_member_that_comes_late_is_not_thrown_out(tmp_path: Path, _docker: None) -> None:
    with Cell(tmp_path, 3) as cell:
        for name in cell.names[:2]:
            cell.prepare(name)
            cell.start(name)
        assert _get(cell, b"/none", cell.endpoints[0]) is None
        assert cell.prepare("etcd-2") == "existing"
        cell.start("etcd-2")
        assert len(cell.member_ids()) == 3


def test_renewed_certificates_serve_the_next_connection(tmp_path: Path, _docker: None) -> None:
    with Cell(tmp_path, 1) as cell:
        cell.prepare("etcd-0")
        cell.start("etcd-0")
        cell.member_ids()
        asyncio.run(_renew(cell))


async def _renew(cell: Cell) -> None:
    async with EtcdStore(cell.settings("prefill")) as store:
        await store.list(b"/")
        cell.stop("etcd-0")
        cell.make_certificates()  # by another authority: the old ones are no good any more
        cell.start("etcd-0")
        deadline = asyncio.get_running_loop().time() + 20
        while True:
            try:
                await store.list(b"/")
                break
            except StoreError:
                assert asyncio.get_running_loop().time() < deadline
                await asyncio.sleep(0.1)


def test_other_members_than_the_configured_ones_are_an_error(tmp_path: Path, _docker: None) -> None:
    with Cell(tmp_path, 3) as cell:
        for name in cell.names:
            cell.prepare(name)
            cell.start(name)
        cell.member_ids()
        cell.stop("etcd-2")
        cell.wipe("etcd-2")
        cell._peers["etcd-2"] = cell._peers["etcd-2"].replace("127.0.0.3", "127.0.0.9")
        cell.endpoints = (*cell.endpoints[:2], cell.endpoints[2].replace("127.0.0.3", "127.0.0.9"))
        with pytest.raises(MembersDiffer, match="127.0.0.3"):
            cell.prepare("etcd-2")


def test_one_member_alone_starts_a_cluster_once(tmp_path: Path, _docker: None) -> None:
    with Cell(tmp_path, 1) as cell:
        assert cell.prepare("etcd-0") == "new"
        cell.start("etcd-0")
        assert list(cell.member_ids()) == ["etcd-0"]
        cell.form()
        assert cell.prepare("etcd-0") == "existing"
        cell.stop("etcd-0")
        cell.wipe("etcd-0")
        with pytest.raises(ClusterLost, match=r"needs a new etcd\.generation"):
            cell.prepare("etcd-0")


@pytest.mark.parametrize(
    "wrong",
    [
        {"initial_cluster": ("a",), "member": "a"},
        {"initial_cluster": ("a=http://a:2380",), "member": "b"},
        {"initial_cluster": ("a=http://a:2380",), "member": "a", "etcd_version": "v3.6"},
    ],
)
def test_settings_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        MemberSettings(**wrong)  # type: ignore[arg-type]


def _put(cell: Cell, key: bytes, value: bytes) -> None:
    async def put() -> None:
        async with EtcdStore(cell.settings("root")) as store:
            await store.txn([], [Put(key, value, 0)])

    asyncio.run(put())


def _get(cell: Cell, key: bytes, endpoint: str) -> bytes | None:
    async def get() -> bytes | None:
        async with EtcdStore(cell.settings("root", (endpoint,))) as store:
            for _ in range(100):
                try:
                    found = (await store.read([key])).kvs
                    return found[0].value if found else None
                except StoreError as exc:
                    last = exc
                    await asyncio.sleep(0.1)
            raise last

    return asyncio.run(get())
