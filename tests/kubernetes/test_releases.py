"""A release is installed, upgraded, rolled back, scaled and removed, in namespaces with rules of their own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from tests.helm.chart import ROOT
from tests.support.etcd_server import image
from tests.support.waiting import wait_until

from .conftest import MakeRelease, archive
from .kube import ready
from .provider import HOME, Provider, run
from .release import ONE, STEP_SECONDS, Release

pytestmark = [pytest.mark.helm, pytest.mark.chaos, pytest.mark.timeout(1800)]

#: The tag that scripts/first-images gives.
FIRST = "0.1.0.dev1"
QUOTA = {
    "apiVersion": "v1",
    "kind": "ResourceQuota",
    "metadata": {"name": "all"},
    "spec": {"hard": {"requests.cpu": "8", "requests.memory": "16Gi", "limits.cpu": "32", "limits.memory": "64Gi"}},
}
RANGE = {
    "apiVersion": "v1",
    "kind": "LimitRange",
    "metadata": {"name": "all"},
    "spec": {"limits": [{"type": "Container", "default": {"cpu": "2", "memory": "2Gi"}}]},
}


def assert_serves(release: Release) -> None:
    """Requests are right."""
    with release.load() as load:
        wait_until(lambda: len(load.answers) > 10, "requests end", STEP_SECONDS, every=0.2)
    assert load.wrong() == []


def test_the_manifests_serve_when_kubectl_applies_them(make_release: MakeRelease, tmp_path: Path) -> None:
    release = make_release("etcd-pd", "etcd-pd")
    release.full = release.name  # a release with the chart's name is called that alone
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    etcd, _, tag = image().rpartition(":")
    named = {f"registry.example.com/team/etcd-pd/{part}": f"etcd-pd/{part}" for part in ("agent", "engine")}
    images = [{"name": old, "newName": new} for old, new in named.items()]
    mine = {"resources": ["k8s"], "images": [*images, {"name": "quay.io/coreos/etcd", "newName": etcd, "newTag": tag}]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(mine))
    release.kube.kubectl("apply", "--kustomize", str(tmp_path))
    try:
        release.await_ready()
        assert_serves(release)
    finally:
        release.kube.kubectl("delete", "--kustomize", str(tmp_path), seconds=300)


def test_an_installation_serves_when_another_was_there_before(make_release: MakeRelease) -> None:
    release = make_release("again")
    release.install(ONE)
    release.await_ready()
    release.uninstall(volumes=False)
    with release.installed(ONE):  # its volumes are still there
        assert_serves(release)
    with release.installed(ONE):  # with new ones
        assert_serves(release)


def test_a_plain_installation_serves_when_a_generation_was_raised_before(make_release: MakeRelease) -> None:
    release = make_release("raised")
    with release.installed({**ONE, "etcd": {"replicas": 1, "generation": 3}}):
        pass
    with release.installed(ONE):
        assert_serves(release)


def test_two_releases_serve_when_they_share_a_namespace(make_release: MakeRelease) -> None:
    first, second = make_release("shared", "one"), make_release("shared", "two")
    with first.installed(ONE), second.installed(ONE):
        assert_serves(first)
        assert_serves(second)


def test_a_release_serves_when_quota_and_limit_range_hold(make_release: MakeRelease) -> None:
    release = make_release("limited")
    release.kube.apply(QUOTA)
    release.kube.apply(RANGE)
    with release.installed(ONE):
        assert_serves(release)


def test_a_release_serves_when_the_platform_chooses_users(make_release: MakeRelease) -> None:
    # what OpenShift's admission adds where a pod names no user
    given = {"podSecurityContext": {"runAsUser": 1000680000, "runAsGroup": 0, "fsGroup": 1000680000}}
    parts = {part: {**ONE.get(part, {}), **given} for part in ("etcd", "prefill", "decode", "router", "jobs")}
    with make_release("platform").installed({"openshift": True, **parts}) as release:
        assert_serves(release)


def test_helm_waits_until_requests_are_served_when_asked_to(make_release: MakeRelease) -> None:
    release = make_release("waited")
    try:
        release.install(ONE, "--wait", "--rollback-on-failure", "--timeout", "5m")
        assert all(ready(pod) for role in ("prefill", "decode") for pod in release.fleet(role))
        assert_serves(release)
    finally:
        release.uninstall()


def test_a_fleet_comes_back_when_it_was_scaled_to_nothing(release: Release) -> None:
    deployment = f"deployment/{release.full}-prefill"
    release.kube.kubectl("scale", deployment, "--replicas=0")
    wait_until(lambda: not release.fleet("prefill"), "no prefill is left", STEP_SECONDS, every=0.5)
    release.kube.kubectl("scale", deployment, "--replicas=2")
    release.await_ready()
    assert_serves(release)


def test_requests_are_right_when_decode_capacity_is_added_and_taken_away(release: Release) -> None:
    with release.load() as load:
        release.follow_guide("Adding decode capacity", ("replicas=8", "replicas=3"))
        release.await_ready()
        assert len(release.fleet("decode")) == 3
        release.install()
        release.await_ready()
    assert load.wrong() == []


def test_requests_are_right_when_an_upgrade_is_rolled_back(release: Release) -> None:
    with release.load() as load:
        release.install({"decode": {"podAnnotations": {"example.com/try": "1"}}})
        release.await_ready()
        release.kube.helm("rollback", release.name)
        release.await_ready()
    assert load.wrong() == []


@pytest.mark.parametrize("words", [("--reuse-values",), ("--reset-then-reuse-values",), ()])
def test_requests_are_right_when_release_0_1_0_is_upgraded(
    make_release: MakeRelease, first_chart: Path, words: tuple[str, ...]
) -> None:
    release = make_release("old")
    first = {"image": {"tag": FIRST, "pullPolicy": "Never"}}
    two = {**first, "replicas": 2}
    # three members: the upgrade replaces one at a time, and agents of 0.1.0 do not bear an etcd that is away
    values = {"agent": first, "router": first, "prefill": two, "decode": two}
    with release.installed(values, str(first_chart)):
        with release.load(again=True) as load:  # its router, which is the way in, is replaced too
            if words:
                release.upgrade(*words)
            else:
                release.install()
            release.await_ready()
        assert load.wrong() == []


@pytest.fixture(scope="module")
def first_chart(provider: Provider, kubeconfig: Path) -> Path:
    """The chart of 0.1.0, whose images the nodes have."""
    run([str(ROOT / "scripts" / "first-images")], 1200)
    names = [f"etcd-pd/{name}:{FIRST}" for name in ("agent", "engine")]
    provider.load(archive("first", *names))
    return HOME / "v0.1.0" / "helm" / "etcd-pd"
