"""Instances of several pods: a LeaderWorkerSet in place of a Deployment. Rendered: no test has run its controller."""

from __future__ import annotations

from typing import Any

import pytest
from kubernetes_validate import validate

from tests.helm.chart import (
    KUBERNETES,
    NAMESPACE,
    RELEASE,
    Object,
    Objects,
    container,
    environment,
    notes,
    overlay,
    template,
)

pytestmark = pytest.mark.helm

FULL = f"{RELEASE}-etcd-pd"
SEVERAL: dict[str, Any] = {"podsPerInstance": 2, "replicas": 3, "dpSize": 1, "args": ["--tp-size=16"]}
VALUES: dict[str, Any] = {"prefill": SEVERAL}
SCALED = {"maxReplicas": 9, "target": 64, "prometheus": "http://prometheus:9090"}


@pytest.fixture(scope="module")
def objects() -> Objects:
    """Prefills of two pods, decodes of one."""
    return Objects(template("sglang", VALUES))


def set_of(objects: Objects, role: str) -> Object:
    """The role's LeaderWorkerSet."""
    return objects.one("LeaderWorkerSet", role)


def pod_of(objects: Objects, role: str) -> Object:
    """The template of its pods."""
    found: Object = set_of(objects, role)["spec"]["leaderWorkerTemplate"]["workerTemplate"]
    return found


def test_a_leader_worker_set_takes_the_deployments_place_when_an_instance_has_several_pods(objects: Objects) -> None:
    made = set_of(objects, "prefill")
    assert made["apiVersion"] == "leaderworkerset.x-k8s.io/v1"
    spec = made["spec"]
    assert spec.keys() == {"replicas", "rolloutStrategy", "leaderWorkerTemplate"}
    assert spec["leaderWorkerTemplate"].keys() == {"size", "restartPolicy", "workerTemplate"}
    assert (spec["replicas"], spec["leaderWorkerTemplate"]["size"]) == (3, 2)
    assert spec["leaderWorkerTemplate"]["restartPolicy"] == "RecreateGroupOnPodRestart"
    strategy = {"type": "RollingUpdate", "rollingUpdateConfiguration": {"maxSurge": 0, "maxUnavailable": 1}}
    assert spec["rolloutStrategy"] == strategy
    assert {each["metadata"]["name"] for each in objects.of("Deployment")} == {f"{FULL}-decode", f"{FULL}-router"}
    pod = {"apiVersion": "v1", "kind": "Pod", **pod_of(objects, "prefill")}
    validate({**pod, "metadata": {**pod["metadata"], "name": "p"}}, KUBERNETES[-1].rpartition(".")[0], strict=True)


def test_each_pod_knows_its_place_and_registers_for_one_instance_when_there_are_several(objects: Objects) -> None:
    engine = container(pod_of(objects, "prefill"), "engine")
    place = ["--nnodes=2", "--node-rank=$(LWS_WORKER_INDEX)", "--dist-init-addr=$(LWS_LEADER_ADDRESS):20000"]
    assert [word for word in engine["command"] if word in place] == place
    assert environment(engine)["ETCD_PD_INSTANCE"] == "$(LWS_LEADER_ADDRESS)"
    agent = container(pod_of(objects, "prefill"), "agent")
    assert environment(agent)["ETCD_PD_AGENT_ID"] == "$(POD_NAME)-agent", "each pod has an agent of its own"
    alone = container(objects.one("Deployment", "decode")["spec"]["template"], "engine")
    assert not [word for word in alone["command"] if "node" in word or "dist-init" in word]


def test_the_router_finds_leaders_alone_when_instances_have_several_pods(objects: Objects) -> None:
    args = container(objects.one("Deployment", "router")["spec"]["template"], "router")["args"]
    prefill, decode = (args.index(f"--{role}-selector") for role in ("prefill", "decode"))
    leader = "leaderworkerset.sigs.k8s.io/worker-index=0"
    assert leader in args[prefill:decode] and leader not in args[decode:]
    labels = pod_of(objects, "prefill")["metadata"]["labels"]
    words = dict(word.split("=") for word in args[prefill + 1 : decode] if word != leader)
    assert words.items() <= labels.items()


def test_policies_budgets_and_alerts_hold_for_all_pods_when_instances_have_several() -> None:
    objects = Objects(
        template("sglang", {**VALUES, "prometheusRule": {"enabled": True}, "podMonitor": {"enabled": True}})
    )
    labels = pod_of(objects, "prefill")["metadata"]["labels"]
    for kind in ("PodDisruptionBudget", "NetworkPolicy"):
        spec = objects.one(kind, "prefill")["spec"]
        selector = spec.get("selector") or spec["podSelector"]
        assert selector["matchLabels"].items() <= labels.items(), kind
    (rule,) = objects.of("PrometheusRule")
    alerts = {each["alert"]: each["expr"] for group in rule["spec"]["groups"] for each in group["rules"]}
    assert alerts["EtcdPdAgentDown"].endswith("< 7"), "three instances of two pods, and a decode"
    assert alerts["EtcdPdRanksMissing"].endswith("< 3")


def test_instances_drain_by_their_set_when_a_release_with_several_pods_each_goes() -> None:
    both = Objects(template("sglang", {"prefill": SEVERAL, "decode": SEVERAL}))
    for objects, deployments in ((Objects(template("sglang", VALUES)), f"{FULL}-decode"), (both, None)):
        job = environment(objects.one("Job", "uninstall")["spec"]["template"]["spec"]["containers"][0])
        assert job.get("ETCD_PD_DEPLOYMENTS") == deployments
        sets = job["ETCD_PD_LEADER_WORKER_SETS"].split(",")
        rules = {rule["apiGroups"][0]: rule for rule in objects.one("Role", "uninstall")["rules"]}
        rule = rules["leaderworkerset.x-k8s.io"]
        assert (rule["resources"], rule["resourceNames"]) == (["leaderworkersets"], sets)
        assert ("apps" in rules) is bool(deployments)


@pytest.mark.parametrize("kind", ["hpa", "keda", "external"])
def test_instances_are_scaled_as_a_whole_when_somebody_else_scales(kind: str) -> None:
    objects = Objects(template("sglang", {"prefill": {**SEVERAL, "autoscaling": {"kind": kind, **SCALED}}}))
    assert "replicas" not in set_of(objects, "prefill")["spec"]
    target = {"apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet", "name": f"{FULL}-prefill"}
    for scaler in (*objects.of("HorizontalPodAutoscaler"), *objects.of("ScaledObject")):
        assert scaler["spec"]["scaleTargetRef"] == target
    if kind == "keda":
        (trigger,) = objects.of("ScaledObject")[0]["spec"]["triggers"]
        leaders = f'namespace="{NAMESPACE}",pod=~"{FULL}-prefill-[0-9]+"'
        assert trigger["metadata"]["query"] == f"sum(etcd_pd_rank_rooms{{{leaders}}})"


def test_the_notes_name_a_leader_when_decodes_have_several_pods() -> None:
    # the values of ci/sglang.yaml, as notes() takes no shape
    model = {"engine": "sglang", "image": {"repository": "example.com/sglang"}, "model": {"hostPath": "/weights"}}
    said = notes({"prefill": model, "decode": {**model, "podsPerInstance": 2}})
    assert f"leaderworkerset/{FULL}-decode" in said and f"rollout status deployment/{FULL}-prefill" in said
    assert f"exec pod/{FULL}-decode-0 -c agent" in said


@pytest.mark.parametrize(
    ("shape", "values", "named"),
    [
        ("cpu", {"podsPerInstance": 2}, r"prefill\.podsPerInstance: an instance of the reference engine is one pod"),
        ("sglang", {"updateStrategy": {"type": "Recreate"}}, r"prefill\.updateStrategy\.type: a LeaderWorkerSet"),
        ("sglang", {"podsPerInstance": 1, "groups": {"a": {}, "b": {"podsPerInstance": 2}}}, r"prefill\.groups: pods"),
        ("sglang", {"groups": {"twelve-chars": {}}}, r"is too long for the pods of a LeaderWorkerSet"),
    ],
)
def test_several_pods_are_refused_when_something_does_not_go_with_them(
    shape: str, values: dict[str, Any], named: str
) -> None:
    long = {"fullnameOverride": "a-name-of-forty-characters-and-no-more-x"} if "too long" in named else {}
    with pytest.raises(AssertionError, match=named):
        template(shape, {**long, "prefill": values if shape == "cpu" else overlay(SEVERAL, values)})
