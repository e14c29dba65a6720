"""The images and the chart go into a registry, and the chart that comes out of it names that registry's images."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.helm.chart import ROOT, binaries
from tests.helm.conftest import script
from tests.support.children import child
from tests.support.ports import free_port
from tests.support.waiting import wait_until

from .provider import listens, run

pytestmark = [pytest.mark.helm, pytest.mark.chaos, pytest.mark.timeout(1800)]


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """A registry on loopback, as HOST:PORT."""
    program, address = script("debian-program", "docker-registry", "docker-registry")[-1], f"127.0.0.1:{free_port()}"
    storage = {"filesystem": {"rootdirectory": str(tmp_path / "registry")}}
    config = tmp_path / "registry.yaml"
    config.write_text(yaml.safe_dump({"version": 0.1, "storage": storage, "http": {"addr": address}}))
    with child([program, "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        host, _, port = address.partition(":")
        wait_until(lambda: listens(host, int(port)), "the registry listens", 30)
        yield address


def test_the_chart_names_its_registrys_images_when_it_was_pushed_with_them(registry: str, tmp_path: Path) -> None:
    team = f"{registry}/team"
    said = run(["make", "--directory", str(ROOT), "push", f"REGISTRY={team}"], 1200)
    assert f"helm install NAME oci://{team}/charts/etcd-pd" in said
    pulled = run([str(binaries() / "helm"), "template", "pd", f"oci://{team}/charts/etcd-pd", "--plain-http"], 60)
    named = {line.split("image: ")[1].strip() for line in pulled.splitlines() if " image: " in line}
    ours = {image for image in named if "etcd-pd/" in image}
    assert {image.rpartition(":")[0] for image in named - ours} == {"quay.io/coreos/etcd"}
    assert {image.rpartition(":")[0] for image in ours} == {f"{team}/etcd-pd/agent", f"{team}/etcd-pd/engine"}
    for image in ours:
        run(["docker", "image", "rm", image], 60)
        run(["docker", "pull", "--quiet", image], 300)
        run(["docker", "image", "rm", image], 60)
