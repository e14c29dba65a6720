"""What Prometheus is told to scrape: ports that are there, each once."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helm.chart import NAMESPACE, Object, Objects, container, containers, rendered, template

pytestmark = pytest.mark.helm

POD, SERVICE = {"podMonitor": {"enabled": True}}, {"serviceMonitor": {"enabled": True}}
#: Every pod's port that is scraped where engines have metrics of their own.
ALL = {("prefill", 9479), ("decode", 9479), ("prefill", 30000), ("decode", 30000), ("etcd", 2381), ("router", 29000)}


def _scraped(objects: Objects) -> list[tuple[str, int]]:
    """The role or component of each pod, and the port's number, once for each time that it is scraped."""
    found = []
    for each in objects.of("PodMonitor"):
        for pod in _pods(objects, each["spec"]["selector"]["matchLabels"]):
            found += [_target(pod, point["port"]) for point in each["spec"]["podMetricsEndpoints"]]
    for each in objects.of("ServiceMonitor"):
        wanted = each["spec"]["selector"]["matchLabels"]
        for service in objects.of("Service"):
            if wanted.items() <= service["metadata"]["labels"].items():
                assert service["metadata"]["namespace"] == each["metadata"]["namespace"] == NAMESPACE
                ports = {port["name"]: port["targetPort"] for port in service["spec"]["ports"]}
                for pod in _pods(objects, service["spec"]["selector"]):
                    found += [_target(pod, ports[point["port"]]) for point in each["spec"]["endpoints"]]
    return found


def _pods(objects: Objects, selector: dict[str, str]) -> list[Object]:
    return [pod for _, pod in objects.pods() if selector.items() <= pod["metadata"]["labels"].items()]


def _target(pod: Object, name: str) -> tuple[str, int]:
    labels = pod["metadata"]["labels"]
    (number,) = (
        port["containerPort"] for each in containers(pod) for port in each.get("ports", ()) if port["name"] == name
    )
    return labels.get("etcd-pd/role", labels["app.kubernetes.io/component"]), number


@pytest.mark.parametrize("shape", ["cpu", "sglang"])
@pytest.mark.parametrize("values", [POD, {"podMonitor": {"enabled": False}, **SERVICE}])
def test_each_port_with_metrics_is_scraped_once_when_monitors_are_on(shape: str, values: dict[str, Any]) -> None:
    scraped = _scraped(Objects(template(shape, values)))
    assert len(scraped) == len(set(scraped))
    assert set(scraped) == ALL


def test_nothing_is_made_for_scraping_when_monitors_are_off() -> None:
    objects = rendered("sglang")
    assert not objects.of("PodMonitor") + objects.of("ServiceMonitor")
    assert not [each for each in objects.of("Service") if each["metadata"]["name"].endswith("-metrics")]


def test_services_have_no_address_and_pods_that_are_not_ready_when_they_are_for_scraping() -> None:
    services = [each for each in rendered("gpu").of("Service") if each["metadata"]["name"].endswith("-metrics")]
    assert len(services) == 4
    for each in services:
        assert each["spec"]["clusterIP"] == "None"
        assert each["spec"]["publishNotReadyAddresses"] is True


@pytest.mark.parametrize("values", [POD, SERVICE, {}])
def test_sglang_is_told_to_have_metrics_when_it_is_scraped(values: dict[str, Any]) -> None:
    for pod in Objects(template("sglang", values)).instances().values():
        assert ("--enable-metrics" in container(pod, "engine")["command"]) is bool(values)


def test_an_engine_is_not_scraped_when_its_command_is_not_the_charts() -> None:
    values = {role: {"command": ["serve"]} for role in ("prefill", "decode")}
    assert set(_scraped(Objects(template("sglang", {**values, **POD})))) == {each for each in ALL if each[1] != 30000}


@pytest.mark.parametrize(("kind", "section"), [("PodMonitor", "podMonitor"), ("ServiceMonitor", "serviceMonitor")])
def test_monitors_have_their_labels_and_interval_when_these_are_given(kind: str, section: str) -> None:
    values = {"enabled": True, "labels": {"release": "prometheus"}, "interval": "30s"}
    monitors = Objects(template("sglang", {section: values})).of(kind)
    assert monitors
    for each in monitors:
        points = each["spec"].get("podMetricsEndpoints", each["spec"].get("endpoints"))
        assert each["metadata"]["labels"]["release"] == "prometheus"
        assert {point["interval"] for point in points} == {"30s"}
