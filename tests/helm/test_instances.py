"""The engine pods: prefill and decode alike, with what their values say where it belongs."""

from __future__ import annotations

from typing import Any

import pytest

from etcd_pd.cli.options import _options
from etcd_pd.config import AgentSettings
from etcd_pd.reference.engine.settings import DecodeSettings, PrefillSettings
from tests.helm.chart import RELEASE, SHAPES, Objects, container, containers, environment, rendered, template

pytestmark = pytest.mark.helm


@pytest.mark.parametrize("shape", sorted({*SHAPES} - {"groups"}))
def test_roles_differ_in_name_certificate_bootstrap_and_what_the_agent_follows_alone(shape: str) -> None:
    same = {"decode": {"replicas": rendered(shape).one("Deployment", "prefill")["spec"]["replicas"]}}
    if shape == "cpu":
        same["decode"]["dpSize"] = 2
    objects = Objects(template(shape, same))
    prefill, decode = (objects.one("Deployment", role) for role in ("prefill", "decode"))
    del prefill["spec"]["template"]["metadata"]["annotations"]["sglang.ai/bootstrap-port"]
    engine = container(prefill["spec"]["template"], "engine")
    engine["env"] = [each for each in engine["env"] if not each["name"].startswith("ETCD_PD_BOOTSTRAP_")]
    agent = container(prefill["spec"]["template"], "agent")
    agent["env"].remove({"name": "ETCD_PD_PREFILL_ONLY", "value": "true"})
    assert _renamed(prefill) == decode


def test_prefill_agents_hear_of_rooms_where_something_in_their_pods_asks() -> None:
    objects = Objects(template("", {"agent": {"prefillOnly": False}}))
    for role in ("prefill", "decode"):
        agent = container(objects.one("Deployment", role)["spec"]["template"], "agent")
        assert "ETCD_PD_PREFILL_ONLY" not in environment(agent)


def _renamed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _renamed(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_renamed(each) for each in value]
    return value.replace("prefill", "decode") if isinstance(value, str) else value


@pytest.mark.parametrize("shape", SHAPES)
def test_the_agent_is_a_native_sidecar_that_never_asks_etcd_in_a_probe(shape: str) -> None:
    for role, pod in rendered(shape).instances().items():
        agent = next(each for each in pod["spec"]["initContainers"] if each["name"] == "agent")
        assert agent["restartPolicy"] == "Always"
        assert agent["resources"]["requests"].keys() == {"cpu", "memory"}
        for probe, word in (("startupProbe", "started"), ("livenessProbe", "alive"), ("readinessProbe", "ready")):
            assert agent[probe]["exec"]["command"] == ["python3", "-m", "etcd_pd.client.health", word]
        sockets = {environment(each)["ETCD_PD_SOCKET"] for each in containers(pod) if each["name"] != "client"}
        assert sockets == {"/run/etcd-pd/agent.sock"}
        assert environment(agent)["ETCD_PD_ETCD_CERT_FILE"] == f"/etc/etcd-pd/tls/{role}/tls.crt"


@pytest.mark.parametrize("shape", SHAPES)
def test_engines_write_only_to_volumes_and_stop_after_their_rooms(shape: str) -> None:
    for role, pod in rendered(shape).instances().items():
        engine = container(pod, "engine")
        assert engine["securityContext"]["readOnlyRootFilesystem"] is (shape != "gpu-rdma"), role
        mounts = {mount["mountPath"] for mount in engine["volumeMounts"]}
        assert {"/tmp", "/cache", "/dev/shm", "/run/etcd-pd"} <= mounts
        assert environment(engine)["HOME"] == "/cache"
        command = engine["lifecycle"]["preStop"]["exec"]["command"]
        assert command[:3] == ["python3", "-m", "etcd_pd.client.drain"]
        seconds = sum(int(word.partition("=")[2]) for word in command[3:])
        assert pod["spec"]["terminationGracePeriodSeconds"] > seconds


@pytest.mark.parametrize("shape", SHAPES)
def test_rollouts_give_up_a_gpu_first_and_wait_for_the_weights(shape: str) -> None:
    for each in rendered(shape).of("Deployment"):
        spec = each["spec"]
        if "etcd-pd/role" not in spec["template"]["metadata"]["labels"]:
            continue
        assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
        probe = container(spec["template"], "engine")["startupProbe"]
        assert spec["progressDeadlineSeconds"] > probe["periodSeconds"] * probe["failureThreshold"]
    for each in rendered(shape).of("PodDisruptionBudget"):
        if "etcd-pd/role" in each["spec"]["selector"]["matchLabels"]:
            assert each["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


@pytest.mark.parametrize("shape", SHAPES)
def test_every_variable_is_a_setting_of_the_process_that_reads_it(shape: str) -> None:
    known = {
        "agent": _variables(AgentSettings),
        "prefill": _variables(PrefillSettings),
        "decode": _variables(DecodeSettings),
    }
    for role, pod in rendered(shape).instances().items():
        assert _own(container(pod, "agent")) <= known["agent"]
        if container(pod, "engine")["command"][0] == "etcd-pd":
            assert _own(container(pod, "engine")) <= known[role]


def _variables(cls: type[Any]) -> set[str]:
    return {f"ETCD_PD_{name.upper()}" for name, _, _ in _options(cls)} | {"ETCD_PD_LOG_LEVEL", "ETCD_PD_LOG_FORMAT"}


def _own(each: dict[str, Any]) -> set[str]:
    return {variable["name"] for variable in each["env"] if variable["name"].startswith("ETCD_PD_")}


def test_gpu_values_land_in_the_pod() -> None:
    deployment = rendered("gpu").one("Deployment", "prefill")
    assert deployment["spec"]["replicas"] == 2
    spec = deployment["spec"]["template"]["spec"]
    engine = container(deployment["spec"]["template"], "engine")
    assert engine["resources"] == {
        "requests": {"cpu": "8", "memory": "64Gi"},
        "limits": {"memory": "64Gi", "nvidia.com/gpu": 1},
    }
    assert (spec["runtimeClassName"], spec["priorityClassName"]) == ("nvidia", "inference")
    assert spec["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert spec["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    assert volumes["model"]["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
    assert environment(engine)["ETCD_PD_MODEL_PATH"] == "/model/llama-3-8b"
    assert environment(engine)["ETCD_PD_DEVICE"] == "cuda"
    assert engine["startupProbe"]["failureThreshold"] * engine["startupProbe"]["periodSeconds"] == 1800
    terms = spec["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert terms[0]["topologyKey"] == "topology.kubernetes.io/zone"
    assert (
        terms[0]["labelSelector"]["matchLabels"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    )


def test_rdma_and_host_network_values_land_in_the_pod() -> None:
    for role, pod in rendered("gpu-rdma").instances().items():
        spec, engine = pod["spec"], container(pod, "engine")
        assert (spec["hostNetwork"], spec["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")
        assert engine["resources"]["limits"] == {"nvidia.com/gpu": 8, "rdma/ib": 8}
        assert engine["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
        assert spec["securityContext"]["runAsUser"] == 0
        term = spec["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]
        labels = pod["metadata"]["labels"]
        assert term["topologyKey"] == "kubernetes.io/hostname"
        # of both roles: they have the same ports
        assert term["labelSelector"]["matchLabels"].items() <= labels.items()
        assert "etcd-pd/role" not in term["labelSelector"]["matchLabels"]
        assert f"--disaggregation-mode={role}" in engine["command"]
        assert engine["args"] == ["--tp-size=8", "--enable-dp-attention"]


def test_sglang_gets_the_client_its_plug_in_and_its_metadata() -> None:
    for role, pod in rendered("sglang").instances().items():
        client, agent = pod["spec"]["initContainers"]
        engine = container(pod, "engine")
        assert client["command"] == ["python3", "-m", "etcd_pd.kubernetes.client_copy", "/etcd-pd/python"]
        assert client["image"] == agent["image"]
        assert engine["image"] == "docker.io/lmsysorg/sglang:v0.5.23"
        settings = environment(engine)
        assert settings["PYTHONPATH"] == "/etcd-pd/python"
        assert settings["ETCD_PD_SOCKET"] == environment(agent)["ETCD_PD_SOCKET"]
        shared = [each["name"] for each in client["volumeMounts"] if each["mountPath"] == "/etcd-pd/python"]
        assert shared == [each["name"] for each in engine["volumeMounts"] if each["mountPath"] == "/etcd-pd/python"]
        assert "--model-path=meta-llama/Llama-3.1-8B-Instruct" in engine["command"]
        assert "--host=$(POD_IP)" in engine["command"]
        token = next(each for each in engine["env"] if each["name"] == "HF_TOKEN")
        assert token["valueFrom"]["secretKeyRef"] == {"name": "huggingface", "key": "token"}, role
        assert environment(agent)["ETCD_PD_LOG_FORMAT"] == "json"


def test_images_are_named_by_registry_tag_or_digest() -> None:
    digest = "sha256:" + "0" * 64
    values = {
        "agent": {"image": {"registry": "registry.example.com/ml", "tag": "1.2.3"}},
        "prefill": {"image": {"registry": "registry.example.com", "digest": digest, "tag": "ignored"}},
        "imagePullSecrets": [{"name": "pull"}],
    }
    pod = Objects(template(values=values)).instances()["prefill"]
    assert container(pod, "agent")["image"] == "registry.example.com/ml/etcd-pd/agent:1.2.3"
    assert container(pod, "engine")["image"] == f"registry.example.com/etcd-pd/engine@{digest}"
    assert pod["spec"]["imagePullSecrets"] == [{"name": "pull"}]


def test_extra_parts_are_added() -> None:
    values = {
        "prefill": {
            "command": ["my-engine"],
            "args": ["--fast"],
            "env": [{"name": "NCCL_DEBUG", "value": "INFO"}],
            "extraContainers": [{"name": "exporter", "image": "x"}],
            "extraVolumes": [{"name": "scratch", "emptyDir": {}}],
            "extraVolumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
            "podLabels": {"team": "serving"},
            "podAnnotations": {"note": "1"},
        }
    }
    pod = Objects(template(values=values)).instances()["prefill"]
    engine = container(pod, "engine")
    assert (engine["command"], engine["args"]) == (["my-engine"], ["--fast"])
    assert environment(engine)["NCCL_DEBUG"] == "INFO"
    assert container(pod, "exporter")["image"] == "x"
    assert pod["metadata"]["labels"]["team"] == "serving"
    assert pod["metadata"]["annotations"]["note"] == "1"
    assert {"name": "scratch", "mountPath": "/scratch"} in engine["volumeMounts"]


def test_one_label_finds_every_agents_log() -> None:
    for pod in rendered("cpu").instances().values():
        assert pod["metadata"]["labels"]["app.kubernetes.io/component"] == "agent"
        assert pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"] == "agent"


def test_the_router_looks_for_both_roles_in_its_namespace_alone() -> None:
    objects = rendered("cpu")
    router = container(objects.one("Deployment", "router")["spec"]["template"], "router")
    args = router["args"]
    assert f"--service-discovery-namespace={'prod'}" in args
    assert "--health-check-interval-secs=5" in args
    for role, pod in objects.instances().items():
        start = args.index(f"--{role}-selector") + 1
        words = dict(word.split("=") for word in args[start : start + 3])
        assert words.items() <= pod["metadata"]["labels"].items()
        assert words["etcd-pd/role"] == role
        port = next(each["containerPort"] for each in container(pod, "engine")["ports"])
        assert f"--service-discovery-port={port}" in args
    annotations = objects.instances()["prefill"]["metadata"]["annotations"]
    assert (
        annotations["sglang.ai/bootstrap-port"]
        == environment(container(objects.instances()["prefill"], "engine"))["ETCD_PD_BOOTSTRAP_PORT"]
    )
    assert not [each for each in rendered("existing-secrets").all if each["metadata"]["name"].endswith("-router")]
    assert RELEASE in args[args.index("--prefill-selector") + 1]


def test_engines_are_restarted_for_themselves_and_sent_no_requests_without_their_agent() -> None:
    for engine, alive in (("reference", "/liveness"), ("sglang", "/health")):
        model = {"engine": engine, "image": {"repository": f"example.com/{engine}"}, "model": {"hostPath": "/weights"}}
        for role, pod in Objects(template("", {"prefill": model, "decode": model})).instances().items():
            probes = container(pod, "engine")
            paths = {name: probes[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
            assert paths == {"startup": alive, "liveness": alive, "readiness": "/health"}, role
