"""The chart installed on the cluster: what its owner does with it."""

from __future__ import annotations

import json
import re
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.helm.chart import CHART, ROOT, overlay
from tests.support.waiting import wait_until

from .kube import Kube, Object, name, ready
from .load import TEXTS, Load, body
from .provider import FAMILY, Provider, run

GUIDE = ROOT / "docs" / "operations.md"
#: How long until everything is ready: images are there, a tiny model is made, on two cores.
READY_SECONDS = 400.0
STEP_SECONDS = 120.0
#: The parts of the values with an image of ours.
OURS = ("agent", "prefill", "decode", "router")
#: Values of a cell with one engine on each side; and with one member of etcd too, which is there in half the time.
ONE_ENGINE: dict[str, Any] = {"prefill": {"replicas": 1}, "decode": {"replicas": 1}}
ONE = {"etcd": {"replicas": 1}, **ONE_ENGINE}
#: What the router needs where there is IPv6 alone.
SIDECAR = {"discovery": "sidecar"} if FAMILY == "ipv6" else {}
SMALL = {"requests": {"cpu": "50m", "memory": "64Mi"}}

#: Run in an engine's container: it listens on its pod's address, which `kubectl port-forward` does not reach.
ENGINE_PAGE = """
import os, sys, urllib.request
host = f"[{os.environ['POD_IP']}]" if ":" in os.environ["POD_IP"] else os.environ["POD_IP"]
with urllib.request.urlopen(f"http://{host}:30000{sys.argv[1]}") as answer:
    print(answer.read().decode())
"""


class Release:
    """A release of the chart.

    Args:
        kube: where.
        provider: of that cluster.
        name: its name.
        etcd: etcd's image, as REPOSITORY:TAG.
        expected: the right continuation of each of the load's texts.
    """

    def __init__(self, kube: Kube, provider: Provider, name: str, etcd: str, expected: list[list[int]]) -> None:
        self.kube, self._provider, self.name, self._etcd, self.expected = kube, provider, name, etcd, expected
        self.full = f"{name}-etcd-pd"

    def values(self, more: Mapping[str, Any] | None = None) -> str:
        """The values of every installation here, with more on top, as YAML: small pods, images that the nodes have."""
        repository, _, tag = self._etcd.rpartition(":")
        never = {"image": {"pullPolicy": "Never"}}
        fleet = {
            **never,
            "replicas": 2,
            "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}},
            "drain": {"delaySeconds": 3, "timeoutSeconds": 20},
            "terminationGracePeriodSeconds": 60,
        }
        etcd = {"registry": "", "repository": repository, "tag": tag, "pullPolicy": "Never"}
        found: dict[str, Any] = {
            "etcd": {"image": etcd, "resources": SMALL, "quota": "256Mi", "storage": {"size": "1Gi"}},
            "agent": {**never, "resources": SMALL},
            "prefill": {**fleet, "dpSize": 2},
            "decode": fleet,
            # without the key where it is not needed: the chart of 0.1.0 does not know it
            "router": {**never, "healthCheckIntervalSeconds": 1, **SIDECAR},
        }
        return yaml.safe_dump(overlay(found, more or {}))

    def install(self, more: Mapping[str, Any] | None = None, *words: str, chart: str = str(CHART)) -> str:
        """`helm upgrade --install` with the values of all and more; what it printed."""
        return self._apply(self.values(more), chart, "--install", *words)

    @contextmanager
    def installed(self, more: Mapping[str, Any] | None = None, chart: str = str(CHART)) -> Iterator[Release]:
        """The release, installed and ready, and gone afterwards."""
        try:
            self.install(more, chart=chart)
            self.await_ready()
            yield self
        finally:
            self.uninstall()

    def upgrade(self, *words: str) -> str:
        """`helm upgrade` with nothing but the images given, and what a word says of the values that were."""
        images = {"image": {"tag": "", "pullPolicy": "Never"}}
        return self._apply(yaml.safe_dump({part: images for part in OURS}), str(CHART), *words)

    def _apply(self, values: str, chart: str, *words: str) -> str:
        path = self.kube.kubeconfig.parent / f"{self.name}-values.yaml"
        path.write_text(values)
        return self.kube.helm("upgrade", self.name, chart, "--values", str(path), *words, seconds=600)

    def uninstall(self, volumes: bool = True) -> None:
        """`helm uninstall`, until its pods are gone; and the members' volumes."""
        self.kube.helm("uninstall", self.name, "--wait", "--ignore-not-found", seconds=300)
        # the pod of `helm test` is a hook, which Helm leaves
        self.kube.kubectl("delete", "pod", "--selector", self.selector("test"), "--ignore-not-found")
        mine = self.selector()
        wait_until(lambda: not self.kube.get("pods", selector=mine)["items"], "its pods are gone", STEP_SECONDS)
        if volumes:
            self.kube.kubectl("delete", "pvc", "--selector", self.selector(), "--wait=false")
            self.recycle_volumes()

    def recycle_volumes(self) -> None:
        """Wait until no volume that was claimed is about to go, and make those that were lost usable again."""

        def gone() -> bool:
            claims = self.kube.get("pvc", selector=self.selector())["items"]
            return not any("deletionTimestamp" in each["metadata"] for each in claims)

        wait_until(gone, "the volumes that were deleted are gone", STEP_SECONDS, every=0.5)
        self._provider.recycle()

    def generation(self) -> int:
        """The value etcd.generation."""
        found = json.loads(self.kube.helm("get", "values", self.name, "--all", "--output", "json"))
        return int(found["etcd"]["generation"])

    def selector(self, component: str = "") -> str:
        """The labels of its objects, or of one component's."""
        return f"app.kubernetes.io/instance={self.name}" + (
            f",app.kubernetes.io/component={component}" if component else ""
        )

    def fleet(self, role: str) -> list[Object]:
        """The pods of prefill or decode."""
        return self.kube.pods(f"app.kubernetes.io/instance={self.name},etcd-pd/role={role}")

    def members(self) -> list[Object]:
        """The pods of etcd."""
        return self.kube.pods(self.selector("etcd"))

    def await_ready(self, seconds: float = READY_SECONDS) -> None:
        """Wait until every workload has as many ready pods as it shall have, of its newest template alone."""

        def settled() -> bool:
            workloads = [
                each
                for kind in ("deployment", "statefulset")
                for each in self.kube.get(kind, selector=self.selector())["items"]
            ]
            return bool(workloads) and all(map(_settled, workloads))

        try:
            wait_until(settled, f"{self.name} is ready", seconds, every=0.5)
        except AssertionError as exc:
            raise AssertionError(f"{exc}; {self._states()}") from None

    def _states(self) -> list[str]:
        return [f"{name(pod)}: {'ready' if ready(pod) else 'not ready'}" for pod in self.kube.pods(self.selector())]

    @contextmanager
    def router(self) -> Iterator[str]:
        """The router's URL, once it answers with right tokens."""
        with self.kube.forward(f"service/{self.full}-router", 8000) as url:
            wait_until(lambda: _answers(url) == self.expected[0], "the router answers", STEP_SECONDS, every=0.5)
            yield url

    @contextmanager
    def load(self, rate: float = 4.0, *, again: bool = False) -> Iterator[Load]:
        """A load on the router."""
        with self.router() as url, Load(url, self.expected, rate, again=again) as load:
            yield load

    def restarts(self, pod: str, container: str) -> int:
        """How often a container of a pod has been started again."""
        status = self.kube.get("pod", pod)["status"]
        both = [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]
        return int(next(each["restartCount"] for each in both if each["name"] == container))

    def engine_page(self, pod: str, path: str) -> str:
        """What an engine answers to a GET."""
        return self.kube.execute(pod, "engine", "python3", "-c", ENGINE_PAGE, path)

    def kill_rank(self, pod: str) -> None:
        """SIGKILL for one rank of an engine."""
        pid = json.loads(self.engine_page(pod, "/server_info"))["etcd_pd"]["ranks"][0]["pid"]
        self.kube.execute(pod, "engine", "python3", "-c", f"import os; os.kill({pid}, 9)")

    def follow_guide(self, heading: str, *substitutes: tuple[str, str]) -> str:
        """Run the commands that docs/operations.md prints under a heading, as it prints them; what they said.

        Args:
            heading: of the section.
            substitutes: what stands there, and what this cluster calls it.
        """
        section = re.split(rf"\n##+ {heading}\n", GUIDE.read_text())[1].partition("\n## ")[0]
        commands = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
        assert commands, f"docs/operations.md has no commands under {heading!r}"
        text = commands[0].replace("helm/etcd-pd", str(CHART))
        known = (
            ("R-etcd-pd", self.full),
            ("upgrade R ", f"upgrade {self.name} "),
            ("instance=R", f"instance={self.name}"),
        )
        for old, new in (*known, ("-n N", f"-n {self.kube.namespace}"), *substitutes):
            text = text.replace(old, new)
        script = f'k() {{ kubectl -n {self.kube.namespace} "$@"; }}\n{text}'
        with tempfile.TemporaryDirectory() as directory:  # some lines write keys
            return run(["bash", "-euo", "pipefail", "-c", script], 300, self.kube.environ, directory=Path(directory))

    def status(self) -> Object:
        """What `etcd-pd status` says in a decode pod."""
        pod = name(self.fleet("decode")[0])
        command = "etcd-pd status --output json || test $? = 3"  # what is wrong is for the test to judge
        found: Object = json.loads(self.kube.execute(pod, "agent", "sh", "-c", command))
        return found


def _settled(workload: Object) -> bool:
    status = workload["status"]
    if status.get("observedGeneration") != workload["metadata"]["generation"]:
        return False
    counts = {status.get(key, 0) for key in ("updatedReplicas", "readyReplicas", "replicas")}
    return counts == {workload["spec"]["replicas"]}


def _answers(url: str) -> list[int] | None:
    request = urllib.request.Request(
        f"{url}/generate", data=json.dumps(body(TEXTS[0])).encode(), headers={"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: list[int] = json.load(answer)["output_ids"]
            return found
    except OSError:
        return None
