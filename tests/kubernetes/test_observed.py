"""What an operator looks at: events, metrics, probes and logs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import pytest

from tests.helm.chart import Objects, dashboard_queries, template
from tests.support.waiting import wait_until

from .kube import Object, name
from .load import ETCD_LOST
from .release import STEP_SECONDS, Release

pytestmark = [pytest.mark.helm, pytest.mark.timeout(1800)]

AGENT, MEMBER = 9479, 2381
#: As long as etcd is away, seconds: probes come every five, and the third that fails makes a pod NotReady.
AWAY_SECONDS = 30.0
#: What a log says, in this order: regular expressions.
STARTED = (
    r"agent starting .*session_ttl_seconds=5 ",
    r"session lease granted lease=\w+ ttl=5",
    r"watch synced revision=\d",
)
WATCH_STORY = (
    r"WARNING .*watch stale revision=\d+: .*https://\S+-etcd-\d\.",
    r"INFO .*summary .*watch=stale",
    r"INFO .*watch synced revision=\d",
)
LEASE_STORY = (
    r"WARNING .*session lease not renewed left=.*https://\S+-etcd-\d\.",
    r"INFO .*summary .*session=suspect",
    r"WARNING .*session lease renewed late|ERROR .*session lease lost",
)


@pytest.mark.quick
def test_no_mount_failed_when_the_release_was_installed(release: Release) -> None:
    events = release.kube.get("events")["items"]
    assert {each["reason"] for each in events} >= {"Created", "Started"}
    failed = [each["message"] for each in events if each["reason"] == "FailedMount"]
    # all else is Kubernetes' own race with a node that has not heard of an object, or of a pod's end
    assert [message for message in failed if "not found" in message] == []


@pytest.mark.quick
def test_metrics_are_there_when_alerts_and_the_dashboard_ask_for_them(release: Release) -> None:
    with release.router():  # counters of requests are there once there was one
        pass
    (rule,) = Objects(template("cpu")).of("PrometheusRule")
    asked = {group["name"]: " ".join(each["expr"] for each in group["rules"]) for group in rule["spec"]["groups"]}
    where = {"etcd-pd-agents": (agents(release), AGENT), "etcd-pd-etcd": (release.members(), MEMBER)}
    assert asked.keys() - where.keys() == {"etcd-pd-certificates"}, "whose metrics are kube-state-metrics'"
    for group, (pods, port) in where.items():
        names = set(re.findall(r"\b(\w+)\{", asked[group])) - {"up"}
        assert names
        # what agents ask of etcd now and then is missing until they have asked
        wait_until(lambda: names <= shown(release, pods, port), f"{group} shows {names}", STEP_SECONDS, every=0.5)  # noqa: B023
    states = set(re.findall(r"(\w+\{state=\"\w+\")", asked["etcd-pd-agents"]))
    assert states <= {
        line.partition("}")[0] for pod in agents(release) for line in page(release, pod, AGENT).splitlines()
    }
    charted = {metric for query in dashboard_queries() for metric in re.findall(r"\b(\w+)\{", query)}
    engines = {metric for pod in agents(release) for metric in names_on(release.engine_page(name(pod), "/metrics"))}
    there = shown(release, agents(release), AGENT) | shown(release, release.members(), MEMBER) | engines
    assert charted <= there


@pytest.mark.chaos
def test_no_pod_turns_not_ready_and_logs_say_what_broke_when_etcd_is_away(release: Release) -> None:
    etcd, others = f"statefulset/{release.full}-etcd", [*agents(release), *router(release)]
    before = logs(release)
    with release.load() as load:
        release.kube.kubectl("scale", etcd, "--replicas=0")
        wait_until(lambda: not release.members(), "etcd is away", STEP_SECONDS, every=0.5)
        left = load.lasted
        wait_until(lambda: load.lasted > left + AWAY_SECONDS, "probes come", STEP_SECONDS, every=0.5)
        release.kube.kubectl("scale", etcd, "--replicas=3")
        release.await_ready()
    assert load.wrong(ETCD_LOST) == []
    assert readiness(others) == readiness([*agents(release), *router(release)])
    for pod, story in [(pod, story) for pod in before for story in (WATCH_STORY, LEASE_STORY)]:
        wait_until(lambda: tells(logs(release)[pod][len(before[pod]) :], story), f"{pod} says {story}", STEP_SECONDS)  # noqa: B023
    for pod, text in logs(release).items():
        assert tells(before[pod], STARTED), before[pod]
        assert "Traceback" not in text


def agents(release: Release) -> list[Object]:
    """The pods with an agent."""
    return [*release.fleet("prefill"), *release.fleet("decode")]


def router(release: Release) -> list[Object]:
    """The router's pods."""
    return release.kube.pods(release.selector("router"))


def readiness(pods: Iterable[Object]) -> dict[str, str]:
    """Since when each pod is as ready as it is."""
    conditions = {name(pod): {each["type"]: each for each in pod["status"]["conditions"]} for pod in pods}
    return {pod: f"{each['Ready']['status']} {each['Ready']['lastTransitionTime']}" for pod, each in conditions.items()}


def logs(release: Release) -> dict[str, str]:
    """What `kubectl logs POD` shows of each pod with an agent."""
    return {name(pod): release.kube.logs(f"pod/{name(pod)}") for pod in agents(release)}


def shown(release: Release, pods: Sequence[Object], port: int) -> set[str]:
    """The metrics of some pods."""
    return {metric for pod in pods for metric in names_on(page(release, pod, port))}


def names_on(text: str) -> set[str]:
    """The metrics on a page."""
    return {re.split(r"[{ ]", line)[0] for line in text.splitlines() if line and not line.startswith("#")}


def page(release: Release, pod: Object, port: int) -> str:
    """A pod's page of metrics."""
    path = f"/api/v1/namespaces/{release.kube.namespace}/pods/{name(pod)}:{port}/proxy/metrics"
    return release.kube.kubectl("get", "--raw", path)


def tells(log: str, story: Sequence[str]) -> bool:
    """Whether a log has a line for each pattern, in this order."""
    rest = iter(log.splitlines())
    return all(any(re.search(pattern, line) for line in rest) for pattern in story)
