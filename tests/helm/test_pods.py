"""The rendered pods run: certificates, etcd, roles, agents, engines, and the real router that discovers them.

One cell for all tests here; each leaves it healthy for the next.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from etcd_pd.wire.limits import MAX_ROOM
from tests.e2e.running import Reply, generation, get_json, post
from tests.helm.chart import NAMESPACE, RELEASE, Objects, dashboard_queries, template
from tests.helm.cluster.machine import Machine
from tests.helm.cluster.pod import Pod
from tests.support.continuations import continue_texts
from tests.support.etcd_server import image as etcd_image, remove_leftovers
from tests.support.waiting import wait_until

# Every wait has an end of its own; making the images, where make has not done so, takes the longest.
pytestmark = [pytest.mark.helm, pytest.mark.e2e, pytest.mark.timeout(1500)]

START_SECONDS = 200.0
STEP_SECONDS = 60.0
AGENTS = {"app.kubernetes.io/component": "agent"}
PREFILLS = {"prefill-0", "prefill-1"}
TEXTS = [f"The harbour wakes before the town does, for the {number}th time. " * number for number in range(1, 9)]
NEW_TOKENS = 12
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


class Cell(Machine):
    """The chart installed: what a client and an operator do with it."""

    def short(self, pod: str) -> str:
        """A pod's name without the release's."""
        return pod.removeprefix(f"{RELEASE}-etcd-pd-")

    @property
    def members(self) -> list[Pod]:
        """The pods of etcd."""
        return [self.find(f"etcd-{number}") for number in range(3)]

    @property
    def others(self) -> list[Pod]:
        """The pods that must not care whether etcd is there."""
        return [pod for pod in self.pods.values() if pod.restart == "Always" and pod not in self.members]

    @property
    def agents(self) -> list[Pod]:
        """The pods with an agent."""
        return [pod for pod in self.pods.values() if AGENTS.items() <= pod.template["metadata"]["labels"].items()]

    def ask(self, text: str) -> Reply:
        """A request through the router."""
        return post(f"http://{self.find('router').ip}:8000/generate", generation(text, NEW_TOKENS))

    def agents_live(self) -> bool:
        """Whether every agent says that its session is live and its view is synced."""
        wanted = {'etcd_pd_session_state{state="live"} 1.0', 'etcd_pd_watch_state{state="synced"} 1.0'}
        return all(wanted <= set(scrape(f"http://{pod.ip}:9479/metrics")) for pod in self.agents)

    def serving(self) -> set[str]:
        """The prefill instances that some requests came to; empty where one failed."""
        with ThreadPoolExecutor(4) as pool:
            replies = list(pool.map(self.ask, TEXTS[:4]))
        if any(reply.status != 200 for reply in replies):
            return set()
        return {self.short(reply.told["instance"]) for reply in replies}

    def kubectl_logs(self) -> dict[str, str]:
        """What `kubectl logs -l app.kubernetes.io/component=agent` shows: the container that an annotation names."""
        chosen = "kubectl.kubernetes.io/default-container"
        return {pod.name: pod.logs(pod.template["metadata"]["annotations"][chosen]) for pod in self.agents}

    def cli(self, *words: str) -> Any:
        """What a command of etcd-pd prints as JSON, run beside an agent as NOTES.txt says."""
        code, output = self.find("decode-0").execute("agent", ["etcd-pd", *words, "--output", "json"])
        assert code == 0, output
        return json.loads(output)


def values() -> dict[str, Any]:
    """What differs from the shape in ci/: images that need no registry, and a quicker end."""
    repository, _, tag = etcd_image().partition(":")
    drain = {"drain": {"delaySeconds": 1, "timeoutSeconds": 20}}
    here = {"image": {"pullPolicy": "Never"}}
    return {
        "global": {"imageRegistry": ""},
        "etcd": {"image": {"repository": repository, "tag": tag}},
        "agent": here,
        "prefill": {"replicas": 2, **drain, **here},
        "decode": {"replicas": 1, **drain, **here},
        "router": here,
    }


@pytest.fixture(scope="module")
def cell(images: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cell]:
    """The shape `cpu`, installed and ready."""
    remove_leftovers()
    objects, directory = Objects(template("cpu", values())), tmp_path_factory.mktemp("node")
    with Cell(objects, NAMESPACE, directory, images["base"]) as cell:
        cell.wait(cell.settled, "all pods are ready and all Jobs have ended", START_SECONDS)
        cell.wait(lambda: cell.serving() == PREFILLS, "the router knows both prefill pods", STEP_SECONDS)
        yield cell


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    """The model's own continuation of each text, in this process."""
    return continue_texts(TEXTS, NEW_TOKENS)


def test_nobody_asked_kubernetes_for_more_than_its_role_allows(cell: Cell) -> None:
    assert cell.api.refused == []
    assert [pod for pod in cell.pods.values() if pod.phase == "Succeeded"] == [cell.find("certs"), cell.find("init")]
    assert {name for kind, name in cell.api.store.objects if kind == "secrets"} == {
        f"{RELEASE}-etcd-pd-{name}" for name in ("ca", "etcd-tls", "root-tls", "prefill-tls", "decode-tls")
    }


def test_answers_through_the_router_are_the_models_own(cell: Cell, expected: list[list[int]]) -> None:
    with ThreadPoolExecutor(len(TEXTS)) as pool:
        replies = list(pool.map(cell.ask, TEXTS))
    assert [reply.body["output_ids"] for reply in replies] == expected
    assert {reply.told["source"] for reply in replies} == {"registry"}
    assert {cell.short(reply.told["instance"]) for reply in replies} == PREFILLS
    assert {reply.told["dp_rank"] for reply in replies} == {0, 1}


def test_the_pod_of_helm_test_succeeds(cell: Cell) -> None:
    said = cell.run_to_end("test", cell.objects.one("Pod", "test"), STEP_SECONDS)
    assert "rooms registered with one certificate and resolved with the other" in said


def test_certificates_are_looked_after_and_left_alone_while_they_are_good(cell: Cell) -> None:
    before = cell.api.store.data(f"{RELEASE}-etcd-pd-prefill-tls")
    job = cell.objects.one("CronJob", "certs")["spec"]["jobTemplate"]
    said = cell.run_to_end("nightly", job["spec"]["template"], STEP_SECONDS)
    assert "every certificate is good" in said
    assert cell.api.store.data(f"{RELEASE}-etcd-pd-prefill-tls") == before


def test_decode_is_notified_when_a_prefill_pod_is_deleted(cell: Cell) -> None:
    victim, decode = cell.find("prefill-1"), cell.find("decode-0")
    url, room = f"http://{decode.ip}:30000", random.randint(0, MAX_ROOM)
    body = generation("Whom do I wait for?", bootstrap_host=victim.ip, bootstrap_port=8998, bootstrap_room=room)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(post, f"{url}/generate", body)
        wait_until(lambda: requests_at(url) == 1, "decode waits for the room")
        cell.delete(victim.name)
        reply = waiting.result()
    assert (reply.status, reply.error) == (500, "PrefillLost")
    assert {each["id"] for each in cell.cli("instances")["prefill"]} == {f"{RELEASE}-etcd-pd-prefill-0"}
    cell.wait(lambda: cell.serving() == {"prefill-0"}, "the router knows the pod that is left", STEP_SECONDS)

    replacement = cell.add(f"{RELEASE}-etcd-pd-prefill-2", victim.template)
    cell.wait(lambda: cell.serving() == {"prefill-0", "prefill-2"}, f"{replacement} serves", START_SECONDS)


def test_a_member_whose_volume_is_lost_joins_again_with_all_data(cell: Cell) -> None:
    victim = cell.find("etcd-1")
    before = cell.cli("status")
    cell.delete(victim.name)
    shutil.rmtree(cell.claim(victim.name))
    cell.wait(lambda: bool(cell.serving()), "two of three members are enough", STEP_SECONDS)

    cell.add(victim.name, victim.template, cell.objects.one("StatefulSet", "etcd"))
    cell.wait(lambda: cell.pods[victim.name].ready, "the member is ready", STEP_SECONDS)
    after = cell.cli("status")
    assert after["etcd"]["cluster_id"] == before["etcd"]["cluster_id"]
    assert after["etcd"]["revision"] > before["etcd"]["revision"]
    ids = [{each["name"]: each["id"] for each in status["etcd"]["members"]} for status in (before, after)]
    assert {name for name, id in ids[1].items() if ids[0][name] != id} == {victim.name}
    assert [each["id"] for each in after["prefill"]] == [each["id"] for each in before["prefill"]]
    cell.wait(lambda: bool(cell.serving()), "requests are served", STEP_SECONDS)


def test_an_etcd_that_lost_every_volume_is_made_anew_under_running_engines(cell: Cell) -> None:
    restarts = {pod: pod.restarts for pod in cell.others}
    cell.delete(cell.find("init").name)
    for member in cell.members:
        cell.delete(member.name)
        shutil.rmtree(cell.claim(member.name))

    # helm upgrade --set etcd.generation=2
    cell.objects = Objects(template("cpu", values() | {"etcd": {**values()["etcd"], "generation": 2}}))
    cell.api.apply(cell.objects.all)
    cell.apply(cell.objects.one("StatefulSet", "etcd"))
    (job,) = [each for each in cell.objects.of("Job") if "-init-" in each["metadata"]["name"]]
    cell.apply(job)
    cell.wait(cell.settled, "etcd and the Job that makes its roles are done", STEP_SECONDS)
    cell.wait(cell.agents_live, "agents have found the new etcd", STEP_SECONDS)
    cell.wait(lambda: cell.serving() == {"prefill-0", "prefill-2"}, "all prefill pods serve again", STEP_SECONDS)
    assert {pod: pod.restarts for pod in cell.others} == restarts


def shown(port: int, pods: Sequence[Pod]) -> set[str]:
    """The metrics of some pods."""
    return {name for pod in pods for name in metrics_of(f"http://{pod.ip}:{port}/metrics")}


def test_alerts_ask_for_metrics_that_are_there(cell: Cell) -> None:
    (rule,) = cell.objects.of("PrometheusRule")
    asked = {group["name"]: " ".join(each["expr"] for each in group["rules"]) for group in rule["spec"]["groups"]}
    ports = {"etcd-pd-agents": (9479, cell.agents), "etcd-pd-etcd": (2381, cell.members)}
    assert asked.keys() - ports.keys() == {"etcd-pd-certificates"}, "whose metrics are kube-state-metrics'"
    for group in ports:
        text = asked[group]
        names = set(re.findall(r"\b(\w+)\{", text)) - {"up"}
        # what agents ask of etcd now and then is missing until they have asked
        cell.wait(lambda: names <= shown(*ports[group]), f"{group} shows {names}", STEP_SECONDS)  # noqa: B023
        assert names
    states = set(re.findall(r"(\w+\{state=\"\w+\")", asked["etcd-pd-agents"]))
    assert states <= {line.partition("}")[0] for pod in cell.agents for line in scrape(f"http://{pod.ip}:9479/metrics")}


def test_the_dashboard_asks_for_metrics_that_are_there(cell: Cell) -> None:
    ports = {9479: cell.agents, 30000: cell.agents, 2381: cell.members}
    asked = {name for query in dashboard_queries() for name in re.findall(r"\b(\w+)\{", query)}
    there = {name for port, pods in ports.items() for name in shown(port, pods)}
    assert asked and asked <= there


def test_no_pod_turns_not_ready_and_the_logs_say_what_broke_when_etcd_is_down(cell: Cell) -> None:
    others, before = cell.others, cell.kubectl_logs()
    probed, restarts = {pod: pod.probed for pod in others}, {pod: pod.restarts for pod in others}
    for member in cell.members:
        cell.hold_down(member, "etcd")
    # three failed probes make a pod NotReady
    cell.wait(lambda: all(pod.probed > probed[pod] + 4 for pod in others), "probes while etcd is down", STEP_SECONDS)

    def since(pod: str) -> str:
        return cell.kubectl_logs()[pod][len(before[pod]) :]

    assert len(before) == 3
    stories = [(pod, story) for pod in before for story in (WATCH_STORY, LEASE_STORY)]
    for pod, (*outage, _) in stories:
        # a summary comes every 10 s, the probes may be through before it
        cell.wait(lambda: tells(since(pod), outage), f"{pod} tells {outage}", STEP_SECONDS)  # noqa: B023
    for member in cell.members:
        cell.let_go(member)
    cell.wait(cell.settled, "etcd is back", STEP_SECONDS)
    cell.wait(lambda: cell.serving() == {"prefill-0", "prefill-2"}, "all prefill pods serve again", STEP_SECONDS)
    assert [pod for pod in others if pod.became_not_ready] == []
    assert {pod: pod.restarts for pod in others} == restarts

    for pod, story in stories:
        # requests may be served before the last agent has found its way back
        cell.wait(lambda: tells(since(pod), story), f"{pod} tells {story}", STEP_SECONDS)  # noqa: B023
    for pod in before:
        assert_told(before[pod], STARTED)
        assert "Traceback" not in since(pod)


def requests_at(url: str) -> int:
    """How many requests an engine has."""
    load: Any = get_json(f"{url}/get_load")
    return int(load[0]["num_reqs"])


def scrape(url: str) -> list[str]:
    """The lines of a page of metrics."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return [line for line in answer.read().decode().splitlines() if not line.startswith("#")]


def metrics_of(url: str) -> set[str]:
    """The names on a page of metrics."""
    return {re.split(r"[{ ]", line)[0] for line in scrape(url)}


def assert_told(log: str, story: Sequence[str]) -> None:
    """The log has a line for each pattern, in this order."""
    assert tells(log, story), f"not all of {story} in their places in:\n{log}"


def tells(log: str, story: Sequence[str]) -> bool:
    """Whether it has."""
    rest = iter(log.splitlines())
    return all(any(re.search(pattern, line) for line in rest) for pattern in story)
