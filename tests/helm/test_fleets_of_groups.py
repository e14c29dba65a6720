"""Fleets of several groups, that somebody scales, and the ways in to their router."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from kubernetes_validate import validate

from tests.helm.chart import KUBERNETES, NAMESPACE, RELEASE, Object, Objects, container, environment, rendered, template

pytestmark = pytest.mark.helm

FULL = f"{RELEASE}-etcd-pd"
GROUPS: dict[str, Any] = {
    "prefill": {"dpSize": 2, "env": [{"name": "A", "value": "1"}], "groups": {"big": {"dpSize": 8}, "small": {}}}
}


def deployments(objects: Objects) -> dict[str, Object]:
    """Engines' Deployments, by the end of their name."""
    found = {each["metadata"]["name"].removeprefix(f"{FULL}-"): each for each in objects.of("Deployment")}
    return {name: each for name, each in found.items() if name != "router"}


def test_each_group_has_its_own_values_and_its_roles_when_a_role_has_groups() -> None:
    found = deployments(Objects(template("cpu", GROUPS)))
    assert found.keys() == {"prefill-big", "prefill-small", "decode"}
    engines = {name: container(each["spec"]["template"], "engine") for name, each in found.items()}
    ranks = {name: environment(each)["ETCD_PD_DP_SIZE"] for name, each in engines.items()}
    assert ranks == {"prefill-big": "8", "prefill-small": "2", "decode": "1"}
    assert all({"name": "A", "value": "1"} in engines[f"prefill-{group}"]["env"] for group in ("big", "small"))
    selectors = {name: each["spec"]["selector"]["matchLabels"] for name, each in found.items()}
    assert "etcd-pd/group" not in selectors["decode"]
    for group in ("big", "small"):
        assert selectors[f"prefill-{group}"]["etcd-pd/group"] == group
        labels = found[f"prefill-{group}"]["spec"]["template"]["metadata"]["labels"]
        assert selectors[f"prefill-{group}"].items() <= labels.items()
        assert labels["etcd-pd/role"] == "prefill", "the router finds them by it"


@pytest.mark.parametrize("kind", ["PodDisruptionBudget", "NetworkPolicy", "ServiceMonitor"])
def test_each_group_has_what_a_fleet_has_when_a_role_has_groups(kind: str) -> None:
    on: dict[str, Any] = {"networkPolicy": {"enabled": True}, "podMonitor": {"enabled": False}}
    objects = Objects(template("cpu", {**GROUPS, **on, "serviceMonitor": {"enabled": True}}))
    names = {each["metadata"]["name"] for each in objects.of(kind)}
    assert {f"{FULL}-prefill-big", f"{FULL}-prefill-small", f"{FULL}-decode"} <= names
    assert f"{FULL}-prefill" not in names


def test_all_groups_drain_and_are_expected_when_a_role_has_groups() -> None:
    values = copy.deepcopy(GROUPS)
    values["prefill"]["groups"]["big"]["terminationGracePeriodSeconds"] = 900
    objects = Objects(template("cpu", {**values, "prometheusRule": {"enabled": True}}))
    job = environment(objects.one("Job", "uninstall")["spec"]["template"]["spec"]["containers"][0])
    names = [f"{FULL}-{name}" for name in ("prefill-big", "prefill-small", "decode")]
    assert job["ETCD_PD_DEPLOYMENTS"].split(",") == names
    assert int(job["ETCD_PD_WAIT_SECONDS"]) > 900
    (rule,) = objects.of("PrometheusRule")
    alerts = {each["alert"]: each["expr"] for group in rule["spec"]["groups"] for each in group["rules"]}
    assert alerts["EtcdPdRanksMissing"].endswith("< 10")


@pytest.mark.parametrize("kind", ["external", "hpa", "keda"])
def test_no_replicas_are_rendered_when_somebody_else_scales(kind: str) -> None:
    scaled = {"autoscaling": {"kind": kind, "target": 64, "minReplicas": 3, "prometheus": "http://prometheus:9090"}}
    objects = Objects(template("cpu", {"decode": scaled, "prometheusRule": {"enabled": True}}))
    found = deployments(objects)
    assert "replicas" not in found["decode"]["spec"]
    assert found["prefill"]["spec"]["replicas"] == 1
    (rule,) = objects.of("PrometheusRule")
    alerts = {each["alert"]: each["expr"] for group in rule["spec"]["groups"] for each in group["rules"]}
    assert alerts["EtcdPdAgentDown"].endswith("< 4"), "the least that there may be"


def test_the_horizontal_autoscaler_asks_for_rooms_of_the_pods_when_it_scales() -> None:
    scaler = rendered("groups").one("HorizontalPodAutoscaler", "decode")["spec"]
    assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": f"{FULL}-decode"}
    (metric,) = scaler["metrics"]
    assert metric["pods"]["metric"]["name"] == "etcd_pd_waits"
    assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": "64"}


def test_keda_asks_prometheus_for_the_groups_rooms_when_it_scales() -> None:
    (scaler,) = rendered("groups").of("ScaledObject")
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": f"{FULL}-prefill-h200"}
    assert scaler["spec"]["scaleTargetRef"] == target
    (trigger,) = scaler["spec"]["triggers"]
    query = f'sum(etcd_pd_rank_rooms{{namespace="{NAMESPACE}",pod=~"{FULL}-prefill-h200-.+"}})'
    assert trigger["metadata"]["query"] == query
    assert (trigger["metricType"], trigger["metadata"]["threshold"]) == ("AverageValue", "400")


@pytest.mark.parametrize(
    ("autoscaling", "named"),
    [
        ({"kind": "hpa"}, "autoscaling.target is needed"),
        ({"kind": "keda", "target": 1}, "autoscaling.prometheus is needed"),
        ({"minReplicas": 20}, "maxReplicas must not be less"),
    ],
)
def test_autoscaling_is_refused_when_something_is_missing(autoscaling: dict[str, Any], named: str) -> None:
    with pytest.raises(AssertionError, match=rf"decode\.groups\.a\.{named}|decode\.groups\.a\.autoscaling\.{named}"):
        template("cpu", {"decode": {"groups": {"a": {"autoscaling": autoscaling}}}})


def test_devices_models_and_probes_are_those_of_the_values_when_given() -> None:
    values = {
        "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "one-gpu"}],
        "model": {"image": {"reference": "registry.example.com/models/tiny:1", "path": "weights"}},
        "probes": {"readiness": {"periodSeconds": 2}},
        "postStart": {"exec": {"command": ["true"]}},
        "extraInitContainers": [{"name": "first", "image": "registry.example.com/first:1"}],
        "topologySpreadConstraints": [{"topologyKey": "zone", "maxSkew": 1, "whenUnsatisfiable": "ScheduleAnyway"}],
    }
    deployment = deployments(Objects(template("cpu", {"decode": values})))["decode"]
    validate(deployment, KUBERNETES[-1].rpartition(".")[0], strict=True)
    pod, engine = deployment["spec"]["template"], container(deployment["spec"]["template"], "engine")
    assert pod["spec"]["resourceClaims"] == values["resourceClaims"]
    assert engine["resources"]["claims"] == [{"name": "gpu"}]
    assert environment(engine)["ETCD_PD_MODEL_PATH"] == "/model/weights"
    (volume,) = [each for each in pod["spec"]["volumes"] if each["name"] == "model"]
    assert volume["image"] == {"reference": "registry.example.com/models/tiny:1", "pullPolicy": "IfNotPresent"}
    assert engine["readinessProbe"]["periodSeconds"] == 2 and engine["readinessProbe"]["timeoutSeconds"] == 5
    assert engine["lifecycle"].keys() == {"preStop", "postStart"}
    assert [each["name"] for each in pod["spec"]["initContainers"]] == ["agent", "first"]
    (spread,) = pod["spec"]["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"] == deployment["spec"]["selector"]["matchLabels"]


def test_the_routers_ways_in_lead_to_its_service_when_they_are_on() -> None:
    objects = rendered("groups")
    port = objects.one("Service", "router")["spec"]["ports"][0]
    (rule,) = objects.one("Ingress", "router")["spec"]["rules"]
    backend = rule["http"]["paths"][0]["backend"]["service"]
    assert (rule["host"], backend) == ("llm.example.com", {"name": f"{FULL}-router", "port": {"name": port["name"]}})
    route = objects.one("HTTPRoute", "router")["spec"]
    assert route["rules"][0]["backendRefs"] == [{"name": f"{FULL}-router", "port": port["port"]}]
    assert route["parentRefs"] == [{"name": "public", "namespace": "gateways"}]


def test_ways_in_are_refused_when_there_is_no_router_or_no_gateway() -> None:
    with pytest.raises(AssertionError, match=r"router\.enabled is needed"):
        template("cpu", {"router": {"enabled": False, "ingress": {"enabled": True}}})
    with pytest.raises(AssertionError, match=r"router\.httpRoute\.parentRefs is needed"):
        template("cpu", {"router": {"httpRoute": {"enabled": True}}})


def test_routers_are_kept_apart_and_evicted_one_by_one_when_there_are_two() -> None:
    objects = rendered("groups")
    selector = objects.one("Deployment", "router")["spec"]["selector"]
    pod = objects.one("Deployment", "router")["spec"]["template"]["spec"]
    (apart,) = pod["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert apart["podAffinityTerm"]["labelSelector"] == selector
    budget = objects.one("PodDisruptionBudget", "router")["spec"]
    assert (budget["maxUnavailable"], budget["selector"]) == (1, selector)
