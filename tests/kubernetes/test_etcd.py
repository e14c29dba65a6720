"""etcd is upgraded over minor versions under load, rolled back, and brought down by docs/operations.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helm.chart import ROOT, overlay
from tests.support.etcd_server import image
from tests.support.waiting import wait_until

from .conftest import MakeRelease, archive
from .load import ETCD_LOST
from .provider import Provider, run
from .release import ONE, ONE_ENGINE, READY_SECONDS, STEP_SECONDS, Release

pytestmark = [pytest.mark.helm, pytest.mark.chaos, pytest.mark.timeout(1800)]

OLD, NEW = "v3.5.33", "v3.7.3"
AWAIT = """until $root endpoint status --write-out json | tee /dev/stderr | grep '"storageVersion":"3.6'"""
LATER = {**ONE_ENGINE, "etcd": {"image": {"tag": NEW}}}


def etcd_image(version: str) -> str:
    """The image of another etcd than the chart's own."""
    return run([str(ROOT / "scripts" / "etcd-image"), version], 300).split()[-1]


@pytest.fixture(scope="module")
def later() -> str:
    """The image of the later etcd."""
    return etcd_image(NEW)


@pytest.fixture(scope="module")
def etcdctl(later: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The later etcd's client."""
    program = tmp_path_factory.mktemp("etcd") / "etcdctl"
    container = run(["docker", "create", later], 60).strip()
    try:
        run(["docker", "cp", f"{container}:/usr/local/bin/etcdctl", str(program)], 60)
    finally:
        run(["docker", "rm", container], 60)
    return program


@pytest.fixture(scope="module")
def cell(make_release: MakeRelease, provider: Provider, later: str) -> Iterator[Release]:
    """A release of three members, whose nodes have the later etcd too."""
    provider.load(archive("etcd", later))
    assert image().rpartition(":")[2] != NEW
    with make_release("upgraded").installed(ONE_ENGINE) as release:
        yield release


def versions(release: Release) -> set[str]:
    """What the members run."""
    return {each["version"] for each in release.status()["etcd"]["members"]}


def test_requests_are_right_when_etcd_is_upgraded_rolled_back_and_brought_down(cell: Release, etcdctl: Path) -> None:
    old = image().rpartition(":")[2]
    with cell.load() as load:
        cell.follow_guide("Upgrading etcd", ("v3.7.3", NEW))
        cell.await_ready()
        assert versions(cell) == {NEW.removeprefix("v")}

        cell.kube.helm("rollback", cell.name)
        refused, member = f"{cell.full}-etcd-2", "--container=member"
        wait_until(
            lambda: "downgrade enable" in cell.kube.logs(f"pod/{refused}", member),
            "the member says what to do",
            READY_SECONDS,
            every=1.0,
        )

        cell.install(LATER)
        # not every StatefulSet controller replaces a pod that never was ready
        cell.kube.kubectl("delete", "pod", refused, "--ignore-not-found")
        cell.await_ready()
        bring_down(cell, etcdctl, old)
        cell.await_ready()
        assert versions(cell) == {old.removeprefix("v")}
    assert load.wrong() == []


def test_a_single_member_of_3_5_comes_to_3_7_when_its_owner_does_what_the_refusal_says(
    make_release: MakeRelease, provider: Provider, later: str
) -> None:
    provider.load(archive("etcd-old", etcd_image(OLD)))
    provider.load(archive("etcd", later))

    def single(tag: str) -> dict[str, Any]:
        return overlay(ONE, {"etcd": {"image": {"tag": tag}}})

    with make_release("hurried").installed(single(OLD)) as cell:
        cell.install(single(NEW))
        member = f"pod/{cell.full}-etcd-0", "--container=member"
        wait_until(
            lambda: "set etcd.image.tag back to 3.6" in cell.kube.logs(*member),
            "the member says what to do",
            READY_SECONDS,
            every=1.0,
        )
        cell.install(single(image().rpartition(":")[2]))
        # not every StatefulSet controller replaces a pod that never was ready
        cell.kube.kubectl("delete", "pod", f"{cell.full}-etcd-0", "--ignore-not-found")
        cell.await_ready()
        with cell.load() as load:
            wait_until(lambda: load.lasted > 20, "enough was written for a snapshot", STEP_SECONDS, every=0.5)
            cell.install(single(NEW))
            cell.await_ready()
        assert load.wrong(ETCD_LOST) == [], "the only member was away for a while"
        assert versions(cell) == {NEW.removeprefix("v")}
        with cell.load() as load:
            wait_until(lambda: load.lasted > 5, "requests end", STEP_SECONDS, every=0.5)
        assert load.wrong() == []


def bring_down(release: Release, etcdctl: Path, tag: str) -> None:
    """As the guide says, with a pause where a person would look."""
    lines = (
        # not the function k: its process would be a shell, whose end leaves kubectl
        ("k port-forward", f"kubectl -n {release.kube.namespace} port-forward"),
        ("2379 &\n", "2379 >/dev/null 2>&1 &\nforward=$!; trap 'kill $forward' EXIT; sleep 3\n"),
        ("etcdctl --endpoints", f"{etcdctl} --endpoints"),
        ("$root endpoint status --write-out table", f"{AWAIT}; do sleep 1; done"),
        ("v3.6.16", tag),
    )
    release.follow_guide("Going back", *lines)
