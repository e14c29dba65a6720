"""What values say of every pod: resources, where it runs, as whom, its labels and annotations."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.helm.chart import SHAPES, Object, Objects, container, containers, rendered, template

pytestmark = pytest.mark.helm

#: Containers that a ResourceQuota on requests and limits admits without a LimitRange.
JOBS = {"certs", "init", "defragment", "uninstall", "test"}
SMALL = JOBS | {"agent-prefill", "agent-decode", "router", "member", "client"}
OTHERS = {"engine", "agent", "etcd"}


def _all(objects: Objects) -> Iterator[tuple[str, Object]]:
    for where, pod in objects.pods():
        yield from ((where, each) for each in containers(pod))


def _ends(objects: Objects) -> dict[str, Object]:
    """The pods of Jobs, of the CronJob, and of `helm test`."""
    return {where: pod for where, pod in objects.pods() if where.startswith(("Job/", "CronJob/", "Pod/"))}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_container_has_requests_and_what_is_small_limits_when_no_value_is_given(shape: str) -> None:
    for where, each in _all(rendered(shape)):
        resources = each["resources"]
        assert {"cpu", "memory"} <= resources["requests"].keys(), f"{where} {each['name']}"
        assert each["name"] in SMALL | OTHERS
        if each["name"] in SMALL:
            assert {"cpu", "memory"} <= resources["limits"].keys(), f"{where} {each['name']}"


def test_pods_that_end_run_where_and_as_their_values_say() -> None:
    taint = {"key": "jobs", "operator": "Exists"}
    values = {
        "jobs": {
            "resources": {"limits": {"cpu": "3"}},
            "nodeSelector": {"pool": "small"},
            "tolerations": [taint],
            "annotations": {"of": "the-job"},
            "podAnnotations": {"note": "1"},
            "podLabels": {"team": "serving"},
            "podSecurityContext": {"supplementalGroups": [7]},
            "securityContext": {"runAsNonRoot": True},
        }
    }
    objects = Objects(template("sglang", values))
    pods = _ends(objects)
    assert sorted(where.partition("/")[0] for where in pods) == ["CronJob", "CronJob", "Job", "Job", "Job", "Pod"]
    for where, pod in pods.items():
        spec, metadata = pod["spec"], pod["metadata"]
        assert (spec["nodeSelector"], spec["tolerations"]) == ({"pool": "small"}, [taint]), where
        assert metadata["annotations"].items() >= {"note": "1", "linkerd.io/inject": "disabled"}.items()
        assert metadata["labels"].items() >= {"team": "serving", "sidecar.istio.io/inject": "false"}.items()
        assert spec["securityContext"]["supplementalGroups"] == [7]
        assert spec["containers"][0]["securityContext"]["runAsNonRoot"] is True
        assert spec["containers"][0]["resources"]["limits"] == {"cpu": "3", "memory": "512Mi"}
    for kind in ("Job", "CronJob"):
        for job in objects.of(kind):
            assert job["metadata"]["annotations"]["of"] == "the-job"
    for name, pod in (("client", objects.instances()["decode"]), ("member", _template(objects, "etcd"))):
        assert container(pod, name)["resources"]["limits"]["cpu"] == "3"
        assert container(pod, name)["securityContext"]["runAsNonRoot"] is True


def _template(objects: Objects, name: str) -> Object:
    pod: Object = objects.one("StatefulSet" if name == "etcd" else "Deployment", name)["spec"]["template"]
    return pod


@pytest.mark.parametrize("part", ["etcd", "prefill", "decode", "router"])
def test_a_security_context_goes_before_the_charts_when_a_value_gives_one(part: str) -> None:
    own = {"readOnlyRootFilesystem": False, "capabilities": {"add": ["SYS_PTRACE"]}}
    pod = {"runAsUser": 1000, "fsGroupChangePolicy": "Always", "seLinuxOptions": {"level": "s0"}}
    objects = Objects(template(values={part: {"securityContext": own, "podSecurityContext": pod}}))
    found = _template(objects, part)
    main = found["spec"]["containers"][0]["securityContext"]
    assert main == {"allowPrivilegeEscalation": False, **own, "capabilities": {"drop": ["ALL"], "add": ["SYS_PTRACE"]}}
    assert found["spec"]["securityContext"].items() >= pod.items()
    assert found["spec"]["securityContext"]["runAsGroup"] == 65532


def test_agents_have_their_security_context_when_a_value_gives_one() -> None:
    objects = Objects(template(values={"agent": {"securityContext": {"privileged": False}}}))
    agents = [each for _, each in _all(objects) if each["name"].startswith("agent")]
    assert len(agents) == 4
    assert all(agent["securityContext"]["privileged"] is False for agent in agents)


def test_no_user_or_group_is_asked_for_when_the_platform_gives_them() -> None:
    text = template("cpu", {"openshift": True})
    assert not re.search(r"runAsUser|runAsGroup|fsGroup:|supplementalGroups", text)
    for where, pod in Objects(text).pods():
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True, where


def test_no_key_is_there_twice_when_labels_and_annotations_have_the_charts_own_keys() -> None:
    own: dict[str, Any] = {
        "podLabels": {"app.kubernetes.io/component": "mine", "team": "serving"},
        "podAnnotations": {"kubectl.kubernetes.io/default-container": "mine", "checksum/config": "mine"},
    }
    values = {
        "commonLabels": {"app.kubernetes.io/name": "mine", "team": "common"},
        **{part: own for part in ("etcd", "router", "jobs", "decode")},
        "prefill": {"podAnnotations": {"sglang.ai/bootstrap-port": "1"}, "podLabels": {"etcd-pd/role": "mine"}},
        "podMonitor": {"enabled": True, "labels": {"app.kubernetes.io/component": "mine"}},
        "prometheusRule": {"enabled": True, "labels": {"team": "rules"}},
        "grafanaDashboard": {"enabled": True, "label": "app.kubernetes.io/name", "labelValue": "mine"},
    }
    text = template(values=values)
    list(YAML(typ="safe").load_all(text))  # unlike PyYAML it refuses a key that is there twice
    objects = Objects(text)
    for each in objects.all:
        assert each["metadata"]["labels"]["app.kubernetes.io/name"] == "etcd-pd", "selectors need it"
    for where, pod in objects.pods():
        labels = pod["metadata"]["labels"]
        assert "mine" not in labels.values(), where
        assert labels["team"] == ("common" if where.endswith("-prefill") else "serving")
    assert _template(objects, "etcd")["metadata"]["annotations"] == own["podAnnotations"]
    assert objects.instances()["prefill"]["metadata"]["annotations"]["sglang.ai/bootstrap-port"] == "1"
    assert objects.one("PrometheusRule", "")["metadata"]["labels"]["team"] == "rules"
