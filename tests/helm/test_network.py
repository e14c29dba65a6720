"""NetworkPolicies: what they let in and out is what docs/security.md says, row by row."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.helm.chart import CHART, ROOT, SHAPES, Object, Objects, overlay, rendered, template

pytestmark = pytest.mark.helm

#: Who speaks to whom: from, to, port; None: any port.
Flow = tuple[str, str, int | None]

EGRESS = {"networkPolicy": {"egress": True}}
#: Peers that are known by a value alone.
MONITORING, CLIENTS = ({"podSelector": {"matchLabels": {"who": who}}} for who in ("monitoring", "clients"))
DNS, KUBERNETES = {"ipBlock": {"cidr": "10.1.0.10/32"}}, {"ipBlock": {"cidr": "10.2.0.1/32"}}
KNOWN = {
    "networkPolicy": {
        "egress": True,
        "monitoringFrom": [MONITORING],
        "ingressFrom": [CLIENTS],
        "dnsTo": [DNS],
        "apiServerCidrs": ["10.2.0.1/32"],
    },
}
OUTSIDE = [("monitoring", MONITORING), ("clients", CLIENTS), ("DNS", DNS), ("Kubernetes", KUBERNETES)]
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((shape, {}) for shape in SHAPES),
    ("cpu", {"podMonitor": {"enabled": False}, "router": {"enabled": False}}),
    ("sglang", {"serviceMonitor": {"enabled": True}, "enginePort": 31000, "router": {"port": 81}}),
    ("gpu", {"serviceMonitor": {"enabled": True}, "agent": {"metricsPort": 9000}}),
]


@pytest.mark.parametrize(("shape", "values"), VARIANTS)
def test_policies_say_what_the_table_says_when_rendered(shape: str, values: dict[str, Any]) -> None:
    objects = Objects(template(shape, {**values, **KNOWN}))
    merged = _merged(shape, values)
    wanted = set(_table(objects, merged))
    hosts = {role for role in ("prefill", "decode") if merged[role]["hostNetwork"]}
    let_in = {flow for flow in wanted if flow[1] in _components(objects) - hosts}
    let_out = {flow for flow in wanted if flow[0] in _components(objects) - hosts}
    assert _flows(objects, "ingress") == let_in
    assert _flows(objects, "egress") == let_out


def _table(objects: Objects, values: dict[str, Any]) -> Iterator[Flow]:
    """The rows that hold for these values, each pair by itself."""
    text = (ROOT / "docs" / "security.md").read_text().partition("## Who speaks to whom in the chart")[2]
    holds = {
        "": True,
        "no router": not values["router"]["enabled"],
        "engine sglang": "sglang" in (values["prefill"]["engine"], values["decode"]["engine"]),
        "monitored": values["podMonitor"]["enabled"] or values["serviceMonitor"]["enabled"],
        "own etcd": not values["etcd"]["external"]["endpoints"],
        "external etcd": bool(values["etcd"]["external"]["endpoints"]),
        "Hugging Face": bool(values["prefill"]["model"]["huggingFace"]),
    }
    known = _components(objects) | {"clients", "monitoring", "Kubernetes", "anywhere", "DNS"}
    for row in re.findall(r"^\| (.*) \|$", text, re.MULTILINE)[1:]:
        sources, targets, ports, why, where = (cell.strip() for cell in row.split("|"))
        assert why
        for source in sorted(_components(objects)) if sources == "everybody" else sources.split(", "):
            for target in targets.split(", "):
                if holds[where] and {source, target} <= known:
                    yield from ((source, target, port) for port in _ports(ports, values))


def _ports(words: str, values: dict[str, Any]) -> list[int | None]:
    if words == "any":
        return [None]
    if not words.startswith("`"):
        return [int(word) for word in words.split(", ")]
    found: Any = values
    for key in words.strip("`").split("."):
        found = found[key]
    return [int(str(each).rpartition(":")[2]) for each in (found if isinstance(found, list) else [found])]


def _merged(shape: str, values: dict[str, Any]) -> dict[str, Any]:
    """What Helm makes of the defaults, a file of ci/ and these values."""
    merged: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    for more in (yaml.safe_load((CHART / "ci" / f"{shape}.yaml").read_text()), values):
        merged = overlay(merged, more)
    return merged


def _components(objects: Objects) -> set[str]:
    return {_component(pod["metadata"]["labels"]) for _, pod in objects.pods()}


def _component(labels: dict[str, str]) -> str:
    return labels.get("etcd-pd/role", labels["app.kubernetes.io/component"])


def _flows(objects: Objects, direction: str) -> set[Flow]:
    """What the policies allow, by who is held by them."""
    side = {"ingress": "from", "egress": "to"}[direction]
    found: set[Flow] = set()
    for policy in objects.of("NetworkPolicy"):
        (held,) = _matching(objects, policy["spec"]["podSelector"])
        assert f"-{held}" in policy["metadata"]["name"]
        for rule in policy["spec"].get(direction, ()):
            ports = {port["port"] for port in rule["ports"]} if "ports" in rule else {None}
            others = [other for peer in rule.get(side, [{}]) for other in _who(objects, peer)]
            pairs = [(other, held) if direction == "ingress" else (held, other) for other in others]
            found |= {(*pair, port) for pair in pairs for port in ports}
    return found


def _who(objects: Objects, peer: Object) -> set[str]:
    """Whom a peer means; nodes are the pods that their network stands for, and are there by another peer."""
    named = {name for name, outside in OUTSIDE if outside == peer}
    if named or not peer or peer.get("ipBlock", {}).get("cidr") == "10.0.0.0/16":
        return named if peer else {"anywhere"}
    return _matching(objects, peer["podSelector"])


def _matching(objects: Objects, selector: Object) -> set[str]:
    labels = [pod["metadata"]["labels"] for _, pod in objects.pods()]
    assert {"app.kubernetes.io/name", "app.kubernetes.io/instance"} <= set(selector["matchLabels"]), "another release's"
    return {
        _component(each)
        for each in labels
        if selector["matchLabels"].items() <= each.items()
        and all(each.get(one["key"]) in one["values"] for one in selector.get("matchExpressions", ()))
    }


@pytest.mark.parametrize("shape", SHAPES)
def test_every_pod_is_held_by_one_policy_when_it_is_not_on_its_nodes_network(shape: str) -> None:
    objects = rendered(shape)
    pods = {where: pod for where, pod in objects.pods() if not pod["spec"].get("hostNetwork")}
    for where, pod in pods.items():
        labels = pod["metadata"]["labels"]
        selectors = [each["spec"]["podSelector"]["matchLabels"] for each in objects.of("NetworkPolicy")]
        assert len([each for each in selectors if each.items() <= labels.items()]) == 1, where


def test_everybody_may_send_requests_and_scrape_when_nobody_is_named() -> None:
    flows = _flows(rendered("cpu"), "ingress")
    from_anywhere = {(target, port) for source, target, port in flows if source == "anywhere"}
    agents = {(role, port) for role in ("prefill", "decode") for port in (30000, 9479)}
    assert from_anywhere == {("router", 8000), ("router", 29000), ("etcd", 2381)} | agents


def test_engines_take_requests_from_the_router_alone_when_nothing_scrapes_them() -> None:
    flows = _flows(rendered("external-etcd"), "ingress")
    assert {source for source, target, port in flows if target == "decode" and port == 30000} == {"router"}


def test_only_members_of_etcd_are_limited_in_whom_they_reach_when_egress_is_off() -> None:
    limited = [each for each in rendered("cpu").of("NetworkPolicy") if "Egress" in each["spec"]["policyTypes"]]
    assert [each["metadata"]["name"].rpartition("-")[2] for each in limited] == ["etcd"]
    for each in Objects(template("cpu", EGRESS)).of("NetworkPolicy"):
        assert each["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_dns_is_asked_over_both_protocols_and_at_openshifts_port_when_egress_is_limited() -> None:
    for each in Objects(template("cpu", EGRESS)).of("NetworkPolicy"):
        asked = {(port["port"], port["protocol"]) for port in each["spec"]["egress"][0]["ports"]}
        assert asked == {(port, protocol) for port in (53, 5353) for protocol in ("UDP", "TCP")}


def test_engines_alone_have_further_rules_when_these_are_given() -> None:
    rule = {"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "ports": [{"port": 4318}]}
    objects = Objects(template("cpu", {"networkPolicy": {"egress": True, "engineEgress": [rule]}}))
    having = [each for each in objects.of("NetworkPolicy") if rule in each["spec"]["egress"]]
    assert [each["metadata"]["name"].rpartition("-")[2] for each in having] == ["prefill", "decode"]


def test_an_etcd_of_somebody_elses_is_reached_at_its_ports_when_egress_is_limited() -> None:
    objects = Objects(template("external-etcd", EGRESS))
    reached = {source for source, target, port in _flows(objects, "egress") if port == 2379 and target == "anywhere"}
    assert reached == {"prefill", "decode", "init", "test"}


def test_nodes_stand_for_engines_when_these_are_on_the_host_network() -> None:
    objects = Objects(template("gpu-rdma", EGRESS))
    nodes = {"ipBlock": {"cidr": "10.0.0.0/16"}}
    etcd, router = (objects.one("NetworkPolicy", name)["spec"] for name in ("etcd", "router"))
    assert [nodes in rule.get("from", ()) for rule in etcd["ingress"]] == [True, False, False]
    assert [nodes in rule.get("to", ()) for rule in router["egress"]] == [False, False, True]


def test_no_policy_is_made_when_they_are_off() -> None:
    values = {"networkPolicy": {"enabled": False}, "prefill": {"hostNetwork": True}}
    assert not Objects(template("cpu", values)).of("NetworkPolicy")
