"""What the objects say to each other: selectors, references, security, upgrades."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import yaml

from tests.helm.chart import (
    CHART,
    NAMESPACE,
    RELEASE,
    SHAPES,
    Objects,
    container,
    containers,
    environment,
    rendered,
    template,
)

pytestmark = pytest.mark.helm

FULL = f"{RELEASE}-etcd-pd"
#: Secrets that a shape takes from elsewhere.
GIVEN = {
    "external-etcd": {"etcd-root", "etcd-prefill", "etcd-decode"},
    "existing-secrets": {"cell-etcd", "cell-root", "cell-prefill", "cell-decode"},
    "sglang": {"huggingface"},
    "groups": {"llm-key"},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_selectors_match_the_pods_that_they_are_for_and_no_others(shape: str) -> None:
    objects = rendered(shape)
    pods = {where: pod["metadata"]["labels"] for where, pod in objects.pods()}
    for each in objects.of("Deployment") + objects.of("StatefulSet"):
        where = f"{each['kind']}/{each['metadata']['name']}"
        assert _matching(each["spec"]["selector"]["matchLabels"], pods) == {where}
        assert not set(each["spec"]["selector"]["matchLabels"]) & {"helm.sh/chart", "app.kubernetes.io/version"}
    for each in objects.of("Service"):
        assert len(_matching(each["spec"]["selector"], pods)) == 1
    for each in objects.of("PodDisruptionBudget"):
        assert len(_matching(each["spec"]["selector"]["matchLabels"], pods)) == 1
    engines = [where for where, labels in pods.items() if "etcd-pd/role" in labels]
    watched = [len(_matching(each["spec"]["selector"]["matchLabels"], pods)) for each in objects.of("PodMonitor")]
    assert watched in ([], [len(engines), 1, 1]), "agents of all fleets, etcd, router"


def _matching(selector: dict[str, str], pods: dict[str, dict[str, str]]) -> set[str]:
    return {where for where, labels in pods.items() if selector.items() <= labels.items()}


@pytest.mark.parametrize("shape", SHAPES)
def test_everything_that_is_referenced_exists_or_is_made_by_a_job(shape: str) -> None:
    objects = rendered(shape)
    accounts = {each["metadata"]["name"] for each in objects.of("ServiceAccount")}
    maps = {each["metadata"]["name"] for each in objects.of("ConfigMap")}
    secrets = GIVEN.get(shape, set()) | _made_secrets(objects)
    for where, pod in objects.pods():
        spec = pod["spec"]
        assert spec["serviceAccountName"] in accounts, where
        volumes = {volume["name"]: volume for volume in spec.get("volumes", ())}
        for volume in volumes.values():
            if "secret" in volume:
                assert volume["secret"]["secretName"] in secrets, where
            if "configMap" in volume and not volume["configMap"].get("optional"):
                assert volume["configMap"]["name"] in maps, where
        claims = {"data"} if where.startswith("StatefulSet/") else set()
        for each in containers(pod):
            names = [variable["name"] for variable in each.get("env", ())]
            assert len(names) == len(set(names)), f"{where} {each['name']} sets a variable twice"
            mounts = {mount["name"] for mount in each.get("volumeMounts", ())}
            assert mounts <= set(volumes) | claims, f"{where} {each['name']}"
            for variable in each.get("env", ()):
                key = variable.get("valueFrom", {}).get("secretKeyRef")
                assert key is None or key["name"] in secrets, where
            _check_ports(each)
    for each in objects.of("Service"):
        _check_service(each, objects)


def _made_secrets(objects: Objects) -> set[str]:
    made: set[str] = set()
    for where, pod in objects.pods():
        if where.startswith(f"Job/{FULL}-certs-"):
            settings = environment(container(pod, "certs"))
            made |= {settings["ETCD_PD_SERVER_SECRET"], settings["ETCD_PD_AUTHORITY_SECRET"]}
            made |= {word.split("=")[1] for word in settings["ETCD_PD_CLIENT_SECRETS"].split(",")}
    return made


def _check_ports(each: dict[str, Any]) -> None:
    ports = {port["name"] for port in each.get("ports", ())}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        if "httpGet" in each.get(probe, {}):
            assert each[probe]["httpGet"]["port"] in ports


def _check_service(service: dict[str, Any], objects: Objects) -> None:
    for _, pod in objects.pods():
        if service["spec"]["selector"].items() <= pod["metadata"]["labels"].items():
            ports = {port["name"] for each in containers(pod) for port in each.get("ports", ())}
            assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


@pytest.mark.parametrize("shape", SHAPES)
def test_pods_have_the_security_level_that_their_shape_names(shape: str) -> None:
    level = re.search(r"# Pod Security level: (\w+)", (CHART / "ci" / f"{shape}.yaml").read_text())
    assert level is not None
    problems = [problem for where, pod in rendered(shape).pods() for problem in _not_restricted(where, pod["spec"])]
    assert bool(problems) == (level[1] == "privileged"), problems


def _not_restricted(where: str, spec: dict[str, Any]) -> list[str]:
    """What the restricted Pod Security Standard objects to."""
    problems = [f"{where} {key}" for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    allowed = {"configMap", "emptyDir", "secret", "persistentVolumeClaim", "projected", "ephemeral", "downwardAPI"}
    problems += [f"{where} volume {v['name']}" for v in spec.get("volumes", ()) if not set(v) - {"name"} <= allowed]
    pod = spec["securityContext"]
    if not pod["runAsNonRoot"] or pod["runAsUser"] == 0:
        problems.append(f"{where} may be root")
    if pod["seccompProfile"] != {"type": "RuntimeDefault"}:
        problems.append(f"{where} seccomp")
    for each in containers({"spec": spec}):
        own = each["securityContext"]
        if own["allowPrivilegeEscalation"] or own["capabilities"] != {"drop": ["ALL"]} or own.get("privileged"):
            problems.append(f"{where} {each['name']} has privileges")
    return problems


@pytest.mark.parametrize("shape", SHAPES)
def test_no_pod_sees_services_as_settings_or_has_a_token_that_it_does_not_need(shape: str) -> None:
    for where, pod in rendered(shape).pods():
        # a Service called etcd-pd would set ETCD_PD_PORT
        assert pod["spec"]["enableServiceLinks"] is False, where
        asks = any(part in where for part in ("-router", "-certs", "-init", "-uninstall"))
        external = shape == "external-etcd" and "-init" in where
        assert pod["spec"]["automountServiceAccountToken"] is (asks and not external), where
    for each in rendered(shape).of("ServiceAccount"):
        assert each["automountServiceAccountToken"] is False
    assert not rendered(shape).of("ClusterRole")


def test_roles_allow_what_is_needed_and_no_more() -> None:
    objects = rendered("cpu")
    router = objects.one("Role", "router")["rules"]
    assert router == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]
    certs = objects.one("Role", "certs")["rules"]
    assert certs[0]["resourceNames"] == [
        f"{FULL}-{name}" for name in ("ca", "etcd-tls", "root-tls", "prefill-tls", "decode-tls")
    ]
    assert [rule["verbs"] for rule in certs] == [["get", "update"], ["create"]]
    for each in objects.of("RoleBinding"):
        name = each["metadata"]["name"]
        assert each["roleRef"]["name"] == name
        assert [(subject["name"], subject["namespace"]) for subject in each["subjects"]] == [(name, NAMESPACE)]


@pytest.mark.parametrize("shape", SHAPES)
def test_with_tls_nothing_but_metrics_and_the_request_of_helm_test_is_plain(shape: str) -> None:
    plain = [line.strip() for line in rendered(shape).text.splitlines() if "http://" in line]
    metrics = ["listen-metrics-urls: http://0.0.0.0:2381"] if shape != "external-etcd" else []
    requests = [f"- http://{FULL}-router:8000"] if shape != "existing-secrets" else []  # which has no router
    assert plain == metrics + requests
    for where, pod in rendered(shape).pods():
        for each in containers(pod):
            settings = environment(each)
            if "ETCD_PD_ETCD" in settings:
                assert all(endpoint.startswith("https://") for endpoint in settings["ETCD_PD_ETCD"].split(",")), where
                mounted = tuple(mount["mountPath"] for mount in each["volumeMounts"])
                for kind in ("CA", "CERT", "KEY"):
                    assert settings[f"ETCD_PD_ETCD_{kind}_FILE"].startswith(mounted), where


def test_etcd_listens_with_certificates_on_both_sides() -> None:
    config = yaml.safe_load(rendered("cpu").one("ConfigMap", "etcd")["data"]["etcd.yaml"])
    for side in ("client-transport-security", "peer-transport-security"):
        assert config[side]["client-cert-auth"] is True
        assert config[side]["trusted-ca-file"] == "/etc/etcd-pd/tls/etcd/ca.crt"
    assert config["quota-backend-bytes"] == 2 * 1024**3
    assert config["listen-client-urls"] == "https://0.0.0.0:2379"


def test_members_are_apart_and_find_each_other_before_they_are_ready() -> None:
    objects = rendered("cpu")
    etcd = objects.one("StatefulSet", "etcd")
    assert etcd["spec"]["podManagementPolicy"] == "Parallel"
    assert objects.one("Service", "etcd-peers")["spec"]["publishNotReadyAddresses"] is True
    assert objects.one("Service", "etcd-peers")["spec"]["clusterIP"] == "None"
    assert etcd["spec"]["serviceName"] == f"{FULL}-etcd-peers"
    spec = etcd["spec"]["template"]["spec"]
    rule = spec["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]
    assert rule["topologyKey"] == "kubernetes.io/hostname"
    assert rule["labelSelector"]["matchLabels"].items() <= etcd["spec"]["template"]["metadata"]["labels"].items()
    names = environment(container(next(pod for where, pod in objects.pods() if "-certs-" in where), "certs"))
    hosts = [word.split("=")[1].split("//")[1].split(":")[0] for word in _initial_cluster(etcd)]
    assert set(hosts) <= set(names["ETCD_PD_SERVER_NAMES"].split(","))
    endpoints = environment(container(objects.instances()["prefill"], "agent"))["ETCD_PD_ETCD"]
    assert [endpoint.split("//")[1].split(":")[0] for endpoint in endpoints.split(",")] == hosts


def _initial_cluster(etcd: dict[str, Any]) -> list[str]:
    return environment(container(etcd["spec"]["template"], "member"))["ETCD_PD_INITIAL_CLUSTER"].split(",")


@pytest.mark.parametrize("shape", SHAPES)
def test_immutable_fields_survive_an_upgrade(shape: str) -> None:
    values = {
        "commonLabels": {"team": "serving"},
        "agent": {"image": {"tag": "9.9.9"}, "logLevel": "debug"},
        "prefill": {"dpSize": 16, "replicas": 7, "podLabels": {"a": "b"}},
        "decode": {"startupSeconds": 3000},
    }
    before, after = rendered(shape), Objects(template(shape, values))
    for kind in ("Deployment", "StatefulSet"):
        for each in before.of(kind):
            later = next(other for other in after.of(kind) if other["metadata"]["name"] == each["metadata"]["name"])
            for field in ("selector", "serviceName", "volumeClaimTemplates", "podManagementPolicy"):
                assert each["spec"].get(field) == later["spec"].get(field)
    _check_jobs(before, after)


def _check_jobs(before: Objects, after: Objects) -> None:
    """A Job's template cannot be changed: where it differs, the name must."""
    earlier = {each["metadata"]["name"]: each["spec"] for each in before.jobs()}
    for each in after.jobs():
        assert earlier.get(each["metadata"]["name"], each["spec"]) == each["spec"]
    assert not set(earlier) & {each["metadata"]["name"] for each in after.jobs()}, "the values above change every Job"


def test_the_number_of_members_is_in_an_immutable_field() -> None:
    one = Objects(template("existing-secrets")).one("StatefulSet", "etcd")["spec"]["volumeClaimTemplates"]
    three = Objects(template("existing-secrets", {"etcd": {"replicas": 3}})).one("StatefulSet", "etcd")["spec"]
    changed = copy.deepcopy(three["volumeClaimTemplates"])
    assert changed != one
    assert changed[0]["metadata"]["labels"]["etcd-pd/members"] == "3"


def test_a_configuration_that_changes_restarts_etcd() -> None:
    def checksum(values: dict[str, Any]) -> str:
        pod = Objects(template("cpu", values)).one("StatefulSet", "etcd")["spec"]["template"]
        return str(pod["metadata"]["annotations"]["checksum/config"])

    assert checksum({}) == checksum({"prefill": {"replicas": 3}})
    assert checksum({}) != checksum({"etcd": {"compactionRetention": "10m"}})


def test_defragmentation_waits_to_be_asked_for_when_it_is_installed() -> None:
    job = rendered("cpu").one("CronJob", "defragment")["spec"]
    assert job["suspend"] is True
    pod = job["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    secrets = [volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume]
    assert secrets == [f"{FULL}-root-tls"]


def test_helm_waits_for_a_job_when_certificates_are_made_and_when_engines_drain() -> None:
    objects = rendered("cpu")
    certs, uninstall = [each for each in objects.of("Job") if "helm.sh/hook" in each["metadata"].get("annotations", {})]
    assert "-certs-" in certs["metadata"]["name"] and uninstall == objects.one("Job", "uninstall")
    assert certs["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade,pre-rollback"
    assert uninstall["metadata"]["annotations"]["helm.sh/hook"] == "pre-delete"
    waits = environment(uninstall["spec"]["template"]["spec"]["containers"][0])["ETCD_PD_WAIT_SECONDS"]
    assert uninstall["spec"]["activeDeadlineSeconds"] > int(waits)


@pytest.mark.parametrize(("hook", "suffix"), [(True, "certs-first"), (False, "certs")])
def test_the_certificates_job_has_what_it_needs_when_it_is_a_hook_and_when_not(hook: bool, suffix: str) -> None:
    objects = Objects(template("cpu", {"tls": {"hook": hook}}))
    (job,) = [each for each in objects.of("Job") if "-certs-" in each["metadata"]["name"]]
    account = job["spec"]["template"]["spec"]["serviceAccountName"]
    needs = [objects.one(kind, suffix) for kind in ("ServiceAccount", "Role", "RoleBinding")]
    assert account == f"{FULL}-{suffix}" == needs[2]["subjects"][0]["name"]
    assert needs[1]["rules"] == objects.one("Role", "certs")["rules"]
    weights = [int(each["metadata"].get("annotations", {}).get("helm.sh/hook-weight", 0)) for each in [*needs, job]]
    # a binding comes after its Role, and the Job after both
    assert weights == ([-2, -2, -1, 0] if hook else [0, 0, 0, 0])


def test_the_test_pod_is_kept_when_it_has_ended() -> None:
    annotations = rendered("cpu").one("Pod", "test")["metadata"]["annotations"]
    assert annotations["helm.sh/hook"] == "test"
    assert annotations["helm.sh/hook-delete-policy"] == "before-hook-creation"


def test_external_etcd_brings_no_etcd() -> None:
    objects = rendered("external-etcd")
    assert not objects.of("StatefulSet") + objects.of("CronJob")
    assert not [each for each in objects.of("NetworkPolicy") if each["metadata"]["name"] == f"{FULL}-etcd"]
    settings = environment(container(objects.instances()["decode"], "agent"))
    assert settings["ETCD_PD_ETCD"].count("https://etcd-") == 3
    assert settings["ETCD_PD_ROOT"] == "/etcd_pd/llama-70b"
    init = next(pod for where, pod in objects.pods() if "-init-" in where)
    assert environment(container(init, "init"))["ETCD_PD_PREFILL_USER"] == "llama-70b-prefill"


def test_passwords_come_from_a_secret() -> None:
    values = {"tls": {"enabled": False}, "auth": {"passwordSecret": "users"}, "podMonitor": {"enabled": False}}
    objects = Objects(template("cpu", values))
    for role, pod in objects.instances().items():
        agent = container(pod, "agent")
        assert environment(agent)["ETCD_PD_ETCD_USERNAME"] == role
        secret = next(each for each in agent["env"] if each["name"] == "ETCD_PD_ETCD_PASSWORD")
        assert secret["valueFrom"]["secretKeyRef"] == {"name": "users", "key": role}
    assert [each["metadata"]["name"] for each in objects.of("CronJob")] == [f"{FULL}-defragment"]
    assert "tls-" not in objects.text


def test_extra_objects_are_templates() -> None:
    note = rendered("existing-secrets").one("ConfigMap", "note")
    assert note["data"] == {"cell": RELEASE}
