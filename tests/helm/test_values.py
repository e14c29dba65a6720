"""Values: the schema is closed, wrong combinations are all named at once, and the agent's settings are all there."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest
import yaml

from etcd_pd.config import AgentSettings, EtcdSettings, option_name
from tests.helm.chart import CHART, Objects, container, environment, notes, template, try_template

pytestmark = pytest.mark.helm


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"etcd": {"replicas": 2}}, "replicas"),
        ({"etcd": {"replicas": "3"}}, "replicas"),
        ({"etcd": {"replica": 3}}, "replica"),
        ({"prefil": {}}, "prefil"),
        ({"prefill": {"engine": "vllm"}}, "engine"),
        ({"decode": {"gpu": {"cnt": 1}}}, "cnt"),
        ({"decode": {"shmSize": "16 GB"}}, "shmSize"),
        ({"decode": {"model": {"claim": {"path": "x"}}}}, "name"),
        ({"agent": {"settings": {"sessionTtlSeconds": 1}}}, "sessionTtlSeconds"),
        ({"agent": {"settings": {"noSuchSetting": 1}}}, "noSuchSetting"),
        ({"agent": {"image": {"digest": "sha256:abc"}}}, "digest"),
        ({"root": "no-slash"}, "root"),
        ({"etcd": {"external": {"endpoints": ["etcd:2379"]}}}, "endpoints"),
        ({"router": {"serviceType": "Ingress"}}, "serviceType"),
        ({"imagePullSecrets": ["name"]}, "imagePullSecrets"),
        ({"prefill": {"maxUnavailable": "half"}}, "maxUnavailable"),
        ({"decode": {"updateStrategy": {"maxSurge": "101%"}}}, "maxSurge"),
        ({"serviceAccount": {"name": "-x"}}, "serviceAccount"),
        ({"networkPolicy": {"apiServerPorts": []}}, "apiServerPorts"),
    ],
)
@pytest.mark.parametrize("helm", ["helm", "helm3"])
def test_the_schema_refuses(helm: str, values: dict[str, Any], named: str) -> None:
    done = try_template(values=values, helm=helm)
    assert done.returncode != 0
    assert named in done.stderr


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"etcd": {"storage": {"size": "5Gi"}}}, "etcd.storage.size (5Gi) must be at least three times etcd.quota"),
        ({"etcd": {"quota": "3000Mi"}}, "etcd.storage.size (8Gi) must be at least three times etcd.quota (3000Mi)"),
        *(
            ({"etcd": {"image": {"tag": tag}}}, f"etcd.image.tag ({tag}) must be 3.5.30, 3.6.11, 3.7.1 or newer")
            for tag in ("v3.4.42", "v3.5.29", "3.6.4-0", "v3.6.10-arm64", "v3.7.0")
        ),
        ({"etcd": {"extraConfig": {"data-dir": "/x"}}}, "etcd.extraConfig.data-dir is set by the chart"),
        ({"etcd": {"extraConfig": {"name": "x"}}}, "etcd.extraConfig.name is set by the chart"),
        ({"etcd": {"external": {"endpoints": ["http://etcd:2379"]}}}, "does not fit tls.enabled=true"),
        ({"etcd": {"external": {"endpoints": ["https://etcd:2379"]}}}, "tls.existingSecrets.prefill is needed"),
        ({"tls": {"existingSecrets": {"root": "x"}}}, "give all of etcd, root, prefill and decode, or none"),
        (
            {"tls": {"existingSecrets": {"root": "x"}, "certManager": {"issuer": {"name": "ca"}}}},
            "tls.existingSecrets: leave them empty with tls.certManager.issuer",
        ),
        ({"tls": {"enabled": False}}, "auth.passwordSecret is needed where tls.enabled is false"),
        ({"tls": {"renewBeforeDays": 365}}, "tls.renewBeforeDays must be less than tls.validityDays"),
        ({"tls": {"validityDays": 3650}}, "tls.validityDays must be less than tls.authorityValidityDays"),
        ({"agent": {"settings": {"sessionTtlSeconds": 4}}}, "sessionTtlSeconds must be above"),
        ({"enginePort": 8998}, "enginePort, bootstrapPort and agent.metricsPort must differ"),
        ({"decode": {"drain": {"timeoutSeconds": 110}}}, "decode.terminationGracePeriodSeconds must be at least 130"),
        ({"decode": {"model": {"claim": {"name": "m"}, "hostPath": "/m"}}}, "decode.model: give one of"),
        ({"prefill": {"engine": "sglang"}}, "prefill.model is needed with engine sglang"),
        ({"prefill": {"engine": "sglang"}}, "prefill.image must be SGLang's"),
        ({"prefill": {"model": {"huggingFace": {"repository": "a/b"}}}}, "the reference engine asks no hub"),
        ({"prefill": {"hostNetwork": True}}, "networkPolicy.nodeCidrs is needed with prefill.hostNetwork"),
        ({"decode": {"rdma": {"ipcLock": True}}}, "decode.rdma.ipcLock needs decode.runAsUser 0"),
        (
            {"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}},
            "podMonitor.enabled and serviceMonitor.enabled: choose one",
        ),
        (
            {"prefill": {"hostNetwork": True, "affinity": {"podAntiAffinity": {}}}},
            "prefill.affinity.podAntiAffinity is set by prefill.hostNetwork",
        ),
        (
            {"prefill": {"topologyKey": "zone", "affinity": {"podAffinity": {}}}},
            "prefill.affinity.podAffinity is set by prefill.topologyKey",
        ),
    ],
)
def test_validate_refuses(values: dict[str, Any], problem: str) -> None:
    done = try_template(values=values)
    assert done.returncode != 0
    assert problem in done.stderr


OURS = {"imageRegistry": ""}
NEVER = {"image": {"pullPolicy": "Never"}}
SGLANG = {
    "engine": "sglang",
    "image": {"registry": "docker.io", "repository": "lmsysorg/sglang"},
    "model": {"hostPath": "/weights"},
}


@pytest.mark.parametrize(
    ("values", "homeless"),
    [
        ({}, "agent.image, decode.image, prefill.image, router.image"),
        ({"router": {"enabled": False}}, "agent.image, decode.image, prefill.image"),
        ({"prefill": SGLANG, "decode": SGLANG, "router": NEVER}, "agent.image"),
        (
            {"agent": {"image": {"repository": "team/agent"}}, "prefill": NEVER, "decode": NEVER},
            "agent.image, router.image",
        ),
    ],
)
def test_the_chart_refuses_and_names_make_push_when_an_image_of_ours_has_no_registry(
    values: dict[str, Any], homeless: str
) -> None:
    done = try_template(values={"global": OURS, **values})
    assert done.returncode != 0
    assert f"global.imageRegistry is needed, or a registry for {homeless}: " in done.stderr
    assert "make push REGISTRY=" in done.stderr


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ({"registry": "registry.example.com"}, "registry.example.com/etcd-pd/agent"),
        ({"repository": "registry.example.com/a/b"}, "registry.example.com/a/b"),
        ({"repository": "localhost/agent"}, "localhost/agent"),
        ({"repository": "registry:5000/agent"}, "registry:5000/agent"),
        ({"pullPolicy": "Never"}, "etcd-pd/agent"),
    ],
)
def test_an_image_of_ours_needs_no_global_registry_when_it_has_a_home(image: dict[str, str], name: str) -> None:
    values = {"global": OURS, "agent": {"image": image}, "prefill": NEVER, "decode": NEVER, "router": NEVER}
    agent = container(Objects(template(values=values)).instances()["prefill"], "agent")
    assert agent["image"].rpartition(":")[0] == name


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({}, "registry.example.com/team/coreos/etcd"),
        ({"global": OURS}, "quay.io/coreos/etcd"),
        ({"etcd": {"image": {"registry": "mirror.example.com"}}}, "mirror.example.com/coreos/etcd"),
        ({"etcd": {"image": {"repository": "quay.io/coreos/etcd"}}}, "quay.io/coreos/etcd"),
        ({"global": OURS, "etcd": {"image": {"repository": "team/etcd"}}}, "team/etcd"),
    ],
)
def test_etcds_image_comes_from_quay_when_no_registry_is_given(values: dict[str, Any], name: str) -> None:
    ours = {part: {"image": {"registry": "registry.example.com"}} for part in ("agent", "prefill", "decode", "router")}
    etcd = Objects(template(values={**ours, **values})).one("StatefulSet", "etcd")
    assert container(etcd["spec"]["template"], "etcd")["image"] == f"{name}:v3.6.16"


def test_validate_names_every_problem_at_once() -> None:
    values = {"etcd": {"storage": {"size": "1Gi"}}, "tls": {"enabled": False}, "prefill": {"hostNetwork": True}}
    done = try_template(values=values)
    assert "3 of the values do not fit together" in done.stderr


@pytest.mark.parametrize(
    ("tag", "warned"),
    [
        *(("v3.5.30", True), ("v3.5.32-amd64", True), ("v3.5.33", False)),
        *(("3.6.13", True), ("3.6.14-0", False), ("v3.6.16", False), ("v3.7.1", False), ("v3.8.0", False)),
        ("debian-trixie", False),
    ],
)
def test_notes_warn_when_users_can_watch_past_the_roles_of_etcd(tag: str, warned: bool) -> None:
    values = {"etcd": {"image": {"tag": tag}}}
    assert f"coreos/etcd:{tag}" in template(values=values)
    assert (f"WARNING: etcd.image.tag is {tag}." in notes(values)) is warned


def test_agent_settings_are_spelled_as_everywhere_and_have_the_same_defaults() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())["agent"]["settings"]
    known: dict[str, Any] = {}
    for cls in (AgentSettings, EtcdSettings):
        known |= {_camel(option_name(field)): field.default for field in fields(cls)}
    assert set(values) <= set(known)
    # in a pod there is time to wait for etcd's roles
    differ = {name for name, value in values.items() if float(value) != float(known[name])}
    assert differ == {"startupTimeoutSeconds"}
    agent = container(Objects(template()).instances()["prefill"], "agent")
    for name in values:
        assert float(environment(agent)[f"ETCD_PD_{_snake(name).upper()}"]) == float(values[name])


def test_every_value_is_described_and_used() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    text = "".join(path.read_text() for path in (CHART / "templates").rglob("*") if path.is_file())
    for path, entry in _leaves(schema, schema, ""):
        assert entry.get("description"), f"{path} has no comment"
        assert path.rpartition(".")[2] in text, f"no template uses {path}"


def _leaves(schema: Any, root: Any, path: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, entry in schema["properties"].items():
        where = f"{path}.{name}".strip(".")
        if where.startswith(("global", "agent.settings")):
            continue
        instance = entry.get("$ref") == "#/$defs/instance"
        target = root["$defs"]["instance"] if instance else entry
        if "properties" in target:
            found += _leaves(target, root, where)
        else:
            found.append((where, entry))
    return found


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
