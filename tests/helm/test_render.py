"""Helm renders the chart, both versions alike, the same each time, and Kubernetes would take the result."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from kubernetes_validate import validate

from tests.helm.chart import CHART, KUBERNETES, RELEASE, SHAPES, Objects, binaries, containers, rendered, run, template

pytestmark = pytest.mark.helm

#: Kinds that kubernetes-validate does not know either: their version, and the keys that we use of them.
OTHERS = {
    "HTTPRoute": ("gateway.networking.k8s.io/v1", {"parentRefs", "hostnames", "rules"}),
    "ScaledObject": ("keda.sh/v1alpha1", {"scaleTargetRef", "minReplicaCount", "maxReplicaCount", "triggers"}),
}


@pytest.mark.parametrize("helm", ["helm", "helm3"])
@pytest.mark.parametrize("shape", SHAPES)
def test_lint_has_nothing_to_say(helm: str, shape: str) -> None:
    done = run(binaries() / helm, "lint", "--strict", CHART, "--values", CHART / "ci" / f"{shape}.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("shape", SHAPES)
def test_both_helm_versions_render_the_same_and_twice_the_same(shape: str) -> None:
    oldest, newest = ("--kube-version", KUBERNETES[0]), ("--kube-version", KUBERNETES[-1])
    first = template(shape, options=newest)
    assert template(shape, options=newest) == first
    assert template(shape, options=oldest) == first
    assert template(shape, helm="helm3", options=oldest) == first


@pytest.mark.parametrize("shape", SHAPES)
def test_renders_are_tidy_and_hold_no_key(shape: str) -> None:
    text = rendered(shape).text
    assert "PRIVATE KEY" not in text
    assert not [line for line in text.splitlines() if line != line.rstrip()]
    assert not rendered(shape).of("Secret")


def test_an_older_kubernetes_is_refused() -> None:
    done = run(binaries() / "helm", "template", "t", CHART, "--kube-version", "1.28.0")
    assert done.returncode != 0
    assert "kubeVersion" in done.stderr


@pytest.mark.parametrize("shape", SHAPES)
def test_install_works_without_a_cluster(shape: str) -> None:
    values = CHART / "ci" / f"{shape}.yaml"
    done = run(binaries() / "helm", "install", "etcd-pd", CHART, "--dry-run=client", "--values", values)
    assert done.returncode == 0, done.stderr
    assert "Look at the rooms in flight" in done.stdout
    assert ("Send the first request" in done.stdout) == (shape != "existing-secrets")


@pytest.mark.parametrize("version", KUBERNETES)
def test_every_object_fits_the_schema_of_its_kind(version: str) -> None:
    checked = 0
    for shape in SHAPES:
        for each in rendered(shape).all:
            if each["apiVersion"].startswith("monitoring.coreos.com/"):
                _check_monitoring(each)
            elif each["kind"] in OTHERS:
                assert (each["apiVersion"], set(each["spec"])) == OTHERS[each["kind"]]
            else:
                validate(each, version.rpartition(".")[0], strict=True)
                checked += 1
    assert checked > 20 * len(SHAPES)


def _check_monitoring(each: dict[str, Any]) -> None:
    """The operator's kinds, which kubernetes-validate does not know: the fields that we use, where they belong."""
    assert each["apiVersion"] == "monitoring.coreos.com/v1"
    if each["kind"] == "PodMonitor":
        assert set(each["spec"]) == {"selector", "podMetricsEndpoints"}
        assert all(set(point) == {"port", "interval"} for point in each["spec"]["podMetricsEndpoints"])
    elif each["kind"] == "ServiceMonitor":
        assert set(each["spec"]) == {"selector", "endpoints"}
        assert all(set(point) == {"port", "interval"} for point in each["spec"]["endpoints"])
    else:
        assert each["kind"] == "PrometheusRule"
        rules = [rule for group in each["spec"]["groups"] for rule in group["rules"]]
        assert {rule["alert"] for rule in rules} >= {"EtcdPdViewStale", "EtcdPdDatabaseFills", "EtcdPdWritesRefused"}
        assert all(set(rule) == {"alert", "expr", "for", "labels", "annotations"} for rule in rules)


def test_monitoring_follows_its_switches_alone() -> None:
    off = Objects(template("cpu", {"podMonitor": {"enabled": False}, "prometheusRule": {"enabled": False}}))
    assert not off.of("PodMonitor") + off.of("PrometheusRule")
    on = rendered("cpu")
    assert [each["metadata"]["name"] for each in on.of("PodMonitor")] == [
        f"{RELEASE}-etcd-pd-{component}" for component in ("agent", "etcd", "router")
    ]
    for monitor in on.of("PodMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"]
        found = [pod for _, pod in on.pods() if wanted.items() <= pod["metadata"]["labels"].items()]
        assert found
        for pod in found:
            ports = [port["name"] for each in containers(pod) for port in each.get("ports", ())]
            assert [ports.count(point["port"]) for point in monitor["spec"]["podMetricsEndpoints"]] in ([1], [1, 1])


def test_an_external_etcd_has_alerts_of_its_own() -> None:
    (rule,) = Objects(template("external-etcd", {"prometheusRule": {"enabled": True}})).of("PrometheusRule")
    assert [group["name"] for group in rule["spec"]["groups"]] == ["etcd-pd-agents"]


def test_defaults_render_without_any_value() -> None:
    objects = Objects(template())
    assert len(objects.of("Deployment")) == 3
    assert yaml.safe_load(objects.one("ConfigMap", "etcd")["data"]["etcd.yaml"])["auto-compaction-mode"] == "periodic"
