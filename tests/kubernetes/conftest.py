"""Fixtures: one cluster for the run, with the images on its nodes, and one release for a module."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helm.conftest import images as images
from tests.support.continuations import continue_texts
from tests.support.etcd_server import image as etcd_image

from .kube import Kube
from .load import NEW_TOKENS, TEXTS
from .provider import FAMILY, HOME, Folder, NoCluster, Provider, find, run
from .release import Release

SAVE_SECONDS = 600.0
MakeRelease = Callable[..., Release]


@pytest.fixture(scope="session")
def provider() -> Provider:
    """Where clusters come from; where they come from nowhere the run ends, well only if that was said to be meant."""
    try:
        return find()
    except NoCluster as exc:
        pytest.exit(str(exc), returncode=0 if os.environ.get("ETCD_PD_NO_CLUSTER") == "1" else 1)


@pytest.fixture(scope="session")
def kubeconfig(provider: Provider, images: dict[str, str]) -> Iterator[Path]:
    """A cluster whose nodes have the images."""
    ours = archive("images", images["agent"], images["engine"], etcd_image())
    try:
        found = provider.up(FAMILY)
        provider.load(ours)
        yield found
    finally:
        provider.down()


def archive(file: str, *names: str) -> Path:
    """An archive with these images, made once for each of their builds."""
    HOME.mkdir(parents=True, exist_ok=True)
    archive, stamp = HOME / f"{file}.tar", HOME / f"{file}.ids"
    inspected = ["docker", "image", "inspect", "--format", "{{.Id}}", *names]
    ids = run(inspected, 60)
    if not (archive.exists() and stamp.exists() and stamp.read_text() == ids):
        run(["docker", "save", "--output", str(archive), *names], SAVE_SECONDS)
        stamp.write_text(ids)
    return archive


@pytest.fixture(scope="session")
def expected() -> list[list[int]]:
    """The model's own continuation of each of the load's texts."""
    return continue_texts(TEXTS, NEW_TOKENS)


@pytest.fixture(scope="session")
def make_release(kubeconfig: Path, provider: Provider, expected: list[list[int]]) -> Iterator[MakeRelease]:
    """A release that is not installed yet, by namespace and name. Its namespace admits restricted pods alone."""
    made: dict[str, Kube] = {}

    def make(namespace: str, name: str = "pd") -> Release:
        kube = made[namespace] = Kube(kubeconfig, namespace)
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}})
        return Release(kube, provider, name, etcd_image(), expected)

    yield make
    for namespace, kube in made.items():
        kube.kubectl("delete", "namespace", namespace, "--wait=false", "--ignore-not-found")


@pytest.fixture(scope="module")
def release(make_release: MakeRelease) -> Iterator[Release]:
    """The chart, installed and ready: three members, two prefills of two ranks, two decodes, a router."""
    with make_release("cell").installed() as release:
        yield release


@pytest.fixture(scope="session")
def nodes(provider: Provider) -> Folder:
    """Nodes that a test may take off the network, and whose processes it may kill."""
    assert isinstance(provider, Folder), "this cluster's nodes are not the test's own: set ETCD_PD_KUBERNETES"
    return provider
