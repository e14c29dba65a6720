"""What is made from the chart and committed is what the chart says: README table, schema, k8s/."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.helm.chart import ROOT, Objects, binaries, run

pytestmark = pytest.mark.helm


def test_made_files_are_up_to_date() -> None:
    done = run(ROOT / "scripts" / "manifests", "--check")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("directory", ["k8s", "k8s/cpu", "k8s/gpu"])
def test_kustomize_takes_them(directory: str) -> None:
    done = run(binaries() / "kubectl", "kustomize", ROOT / directory)
    assert done.returncode == 0, done.stderr
    objects = Objects(done.stdout)
    assert len(objects.all) > 20
    assert objects.of("Namespace")[0]["metadata"]["name"] == "etcd-pd"
    assert {each["metadata"].get("namespace", "etcd-pd") for each in objects.all} == {"etcd-pd"}
    assert not objects.of("Secret")
    assert "helm.sh/hook" not in done.stdout
    kinds = {each["kind"] for each in yaml.safe_load_all(done.stdout)}
    assert "Pod" not in kinds
    assert not re.search(r"helm\.sh/chart|managed-by", done.stdout), "Helm does not manage them"


def test_kustomize_names_the_registry_of_every_image_of_ours_when_its_comment_is_followed(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    file = tmp_path / "k8s" / "kustomization.yaml"
    file.write_text(
        re.sub(r"^# (images:|  - )", r"\1", file.read_text(), flags=re.MULTILINE).replace("YOURS", "mine:5000")
    )
    done = run(binaries() / "kubectl", "kustomize", tmp_path / "k8s")
    assert done.returncode == 0, done.stderr
    assert "registry.example.com/team/etcd-pd" not in done.stdout
    assert {"mine:5000/etcd-pd/agent:", "mine:5000/etcd-pd/engine:"} <= set(re.findall(r"mine:5000\S+:", done.stdout))
