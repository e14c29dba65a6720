"""What forbids a member of etcd to start: a later generation on its volume, a later cluster, a stranger's cluster."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import yaml

from etcd_pd.config import EtcdSettings
from etcd_pd.core.records import Put
from etcd_pd.errors import StoreError
from etcd_pd.kubernetes.guards import (
    SNAPSHOT_COUNT,
    AnotherCluster,
    OlderEtcd,
    OlderGeneration,
    UnreadableLog,
    check_generation,
)
from etcd_pd.kubernetes.member import prepare
from etcd_pd.kubernetes.settings import MemberSettings
from etcd_pd.store.admin import EtcdAdmin
from etcd_pd.store.etcd import EtcdStore
from tests.helm.chart import Objects, container, environment, template
from tests.helm.members import Cell
from tests.support.etcd_server import versions
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.helm, pytest.mark.integration]


def test_an_older_generation_is_refused_when_the_volume_holds_a_later_one(tmp_path: Path) -> None:
    for name in ("etcd-1", "etcd-3", "etcd-10", "other-99", "etcd-11.bak", "lost+found"):
        (tmp_path / name).mkdir()
    (tmp_path / "etcd-12").write_text("no directory")
    with pytest.raises(OlderGeneration, match=r"holds generation 10 .*is generation 3.*etcd\.generation=10, or 11 to"):
        check_generation(tmp_path / "etcd-3")
    with pytest.raises(OlderGeneration):
        check_generation(tmp_path / "etcd-2")  # nothing of its own is there, and it would begin with an empty etcd


@pytest.mark.parametrize("name", ["etcd-3", "etcd-4", "data"])
def test_a_generation_is_no_matter_when_none_is_later(tmp_path: Path, name: str) -> None:
    check_generation(tmp_path / "absent" / name)
    for each in ("etcd-1", "etcd-3"):
        (tmp_path / each).mkdir()
    check_generation(tmp_path / name)


def test_going_back_to_an_older_generation_touches_nothing_when_a_member_is_prepared(tmp_path: Path) -> None:
    (tmp_path / "etcd-2").mkdir()
    settings = MemberSettings(
        etcd=EtcdSettings(endpoints=("http://127.0.0.1:9",)),
        member="a",
        initial_cluster=("a=http://127.0.0.1:8",),
        data_dir=str(tmp_path / "etcd-1"),
        config_file=str(tmp_path / "etcd.yaml"),
    )
    with pytest.raises(OlderGeneration):
        asyncio.run(prepare(settings))
    assert [entry.name for entry in tmp_path.iterdir()] == ["etcd-2"]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("step", [0, 1])
def test_an_older_etcd_is_refused_until_a_downgrade_when_the_cluster_is_later(
    tmp_path: Path, _docker: None, step: int
) -> None:
    older, later = list(versions())[step : step + 2]
    images, before = versions(), older.removeprefix("v")
    minor = before.rpartition(".")[0]
    with Cell(tmp_path, 3) as cell:
        for name in cell.names:
            cell.prepare(name)
            cell.start(name, images[later])
        cell.member_ids()
        cell.form()

        def refused(name: str) -> bool:
            try:
                assert cell.prepare(name, version=before) == "existing"
            except OlderEtcd as exc:
                assert f"this image is {before}" in str(exc) and f"etcdctl downgrade enable {minor}`" in str(exc)
                return True
            return False

        wait_until(lambda: refused("etcd-2"), f"the members agree on {later}")
        cell.stop("etcd-2")
        assert refused("etcd-2")
        assert cell.prepare("etcd-2", version=later.removeprefix("v")) == "existing"
        assert cell.prepare("etcd-2") == "existing", "of an unknown version"
        kept = cell.data("etcd-2").rename(tmp_path / "kept")
        assert refused("etcd-2"), "nor may it join, having lost its volume"
        kept.rename(cell.data("etcd-2"))
        cell.start("etcd-2", images[later])
        cell.member_ids()
        cell.etcdctl("etcd-0", "downgrade", "enable", minor)
        wait_until(lambda: not refused("etcd-2"), f"the members go down to {minor}", 30)
        for name in cell.names:
            cell.stop(name)
            assert cell.prepare(name, version=before) == "existing"
            cell.start(name, images[older])
            cell.member_ids()


@pytest.mark.timeout(120)
def test_etcd_3_7_is_refused_until_3_6_took_a_snapshot_when_the_data_is_of_3_5(tmp_path: Path, _docker: None) -> None:
    images = {version.removeprefix("v"): image for version, image in versions().items()}
    first, second, third, *_ = images
    with Cell(tmp_path, 1, tls=False) as cell:
        (name,) = cell.names

        def start(version: str, told: str = "") -> None:
            cell.prepare(name, version=told or version)
            cell.start(name, images[version])

        def refused() -> bool:
            try:
                return cell.prepare(name, version=third) != "existing"
            except UnreadableLog as exc:
                assert f"etcd {third} panics: set etcd.image.tag back to 3.6" in str(exc)
                return True

        start(first)
        cell.member_ids()
        assert refused()
        cell.stop(name)
        start(second)
        cell.member_ids()
        assert refused(), "so little was written that there is no snapshot"
        cell.stop(name)
        start(third, told=second)
        wait_until(lambda: "unmarshal should never fail" in cell.logs(name), "etcd panics; else too much is refused")
        cell.stop(name)
        start(second)
        cell.member_ids()
        asyncio.run(_write(cell, SNAPSHOT_COUNT))
        wait_until(lambda: not refused(), "a snapshot")
        cell.stop(name)
        start(third)
        cell.member_ids()


def test_no_snapshots_are_asked_for_when_the_chart_says_how_many_or_the_log_is_of_no_matter(
    tmp_path: Path, _docker: None
) -> None:
    images = {version.removeprefix("v"): image for version, image in versions().items()}
    first, second, *_ = images
    with Cell(tmp_path, 1, tls=False, config={"snapshot-count": 5000}) as cell:
        (name,) = cell.names
        written = tmp_path / f"{name}.yaml"
        assert cell.prepare(name, version=second) == "new"
        assert yaml.safe_load(written.read_text())["snapshot-count"] == 5000
        cell.start(name, images[first])
        cell.member_ids()
        assert cell.prepare(name, version=second) == "existing"
        assert written.read_text().count("snapshot-count") == 1
        assert yaml.safe_load(written.read_text())["snapshot-count"] == 5000


def test_a_version_is_no_matter_when_nobody_tells_the_clusters(tmp_path: Path, _docker: None) -> None:
    with Cell(tmp_path, 3, tls=False) as cell:
        assert cell.prepare("etcd-0", version="3.5.0") == "new"
        cell.start("etcd-0")
        log = cell.data("etcd-0") / "member" / "wal"
        wait_until(lambda: list(log.glob("*.wal")), "a log")
        # two of three are missing, so that the members agree on nothing
        assert cell.prepare("etcd-0", version="3.5.0") == "existing"


def test_a_member_joins_no_other_cluster_when_one_was_formed(tmp_path: Path, _docker: None) -> None:
    with Cell(tmp_path, 3) as cell:
        for name in cell.names:
            cell.prepare(name)
            cell.start(name)
        before = cell.member_ids()
        cell.stop("etcd-2")
        cell.wipe("etcd-2")
        cell.formed.write_text("abc\n")
        with pytest.raises(AnotherCluster, match="cluster abc was formed"):
            cell.prepare("etcd-2")
        assert asyncio.run(_ids(cell)) == set(before.values()), "nobody was removed"
        cell.form()
        assert cell.prepare("etcd-2") == "existing"


async def _write(cell: Cell, entries: int) -> None:
    async with EtcdStore(cell.settings("root")) as store:
        for number in range(entries):
            await store.txn([], [Put(b"/key", b"%d" % number, 0)])


async def _ids(cell: Cell) -> set[int]:
    async with EtcdAdmin(cell.settings("root")) as admin:
        for _ in range(100):
            try:
                return {member.id for member in await admin.members()}
            except StoreError:
                await asyncio.sleep(0.1)
    raise AssertionError("no quorum")


@pytest.mark.parametrize(
    ("image", "told"),
    [
        ({"tag": "v3.6.16-arm64"}, "3.6.16"),
        ({"tag": "debian-trixie"}, ""),
        ({"digest": "sha256:" + "0" * 64}, ""),
    ],
)
def test_a_member_is_told_which_etcd_starts_when_the_tag_says_so(image: dict[str, str], told: str) -> None:
    pod = Objects(template(values={"etcd": {"image": image}})).one("StatefulSet", "etcd")["spec"]["template"]
    settings = environment(container(pod, "member"))
    assert settings["ETCD_PD_ETCD_VERSION"] == told
