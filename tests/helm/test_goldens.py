"""What is made from the chart and committed is what the chart says: README table, schema, k8s/."""

from __future__ import annotations

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
