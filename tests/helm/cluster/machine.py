"""Makes pods of rendered workloads, keeps them going, and takes everything away in the end."""

from __future__ import annotations

import shutil
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import docker
from docker.types import IPAMConfig, IPAMPool

from etcd_pd.cluster.kubernetes import Object
from tests.helm.chart import Objects
from tests.helm.cluster.api import ApiServer
from tests.helm.cluster.pod import Pod, World
from tests.support.etcd_server import _LABEL, _owner

STEP_SECONDS = 0.2
#: A private network of the tests' own.
SUBNET, GATEWAY = "10.213.77.0/24", "10.213.77.1"


class Machine:
    """A cluster of one node.

    Args:
        objects: what was rendered.
        namespace: where to.
        directory: for volumes.
        sandbox_image: any image with Python, to hold pods' networks.
    """

    def __init__(self, objects: Objects, namespace: str, directory: Path, sandbox_image: str) -> None:
        self.objects = objects
        self._docker = docker.from_env()
        labels = {_LABEL: _owner()}
        self._network = self._docker.networks.create(
            f"etcd-pd-test-{time.monotonic_ns()}",
            driver="bridge",
            ipam=IPAMConfig(pool_configs=[IPAMPool(subnet=SUBNET, gateway=GATEWAY)]),
            labels=labels,
        )
        self.api = ApiServer(GATEWAY, objects.all, directory)
        self._world = World(self._docker, self.api, self._network, namespace, directory, labels, sandbox_image)
        self.pods: dict[str, Pod] = {}
        self.lock = threading.RLock()
        self._stopped = threading.Event()
        self._kubelet = threading.Thread(target=self._run, name="kubelet", daemon=True)
        self.errors: list[str] = []

    def __enter__(self) -> Machine:
        try:
            self.api.start()
            for each in self.objects.of("ConfigMap"):
                self.api.store.create("configmaps", each)
            for each in self.objects.all:
                if each["kind"] in ("StatefulSet", "Deployment", "Job"):
                    self.apply(each)
            self._kubelet.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        if self._kubelet.is_alive():
            self._kubelet.join()
        for pod in self.pods.values():
            pod.remove()
        self.api.stop()
        self._network.remove()
        self._docker.close()
        shutil.rmtree(self._world.directory, ignore_errors=True)

    def apply(self, workload: Object) -> list[str]:
        """Make the pods of a workload, or a single pod; their names."""
        name, spec = workload["metadata"]["name"], workload["spec"]
        if workload["kind"] == "Pod":
            return [self.add(name, workload)]
        count = spec.get("replicas", 1)
        if workload["kind"] == "StatefulSet":
            return [self.add(f"{name}-{number}", spec["template"], workload) for number in range(count)]
        return [self.add(f"{name}-{number}", spec["template"]) for number in range(count)]

    def add(self, name: str, template: Object, stateful_set: Object | None = None) -> str:
        """Make one pod."""
        aliases = self._aliases(name, template, stateful_set)
        claims = {}
        for claim in (stateful_set or {}).get("spec", {}).get("volumeClaimTemplates", ()):
            claims[claim["metadata"]["name"]] = self.claim(name)
        with self.lock:
            self.pods[name] = Pod(self._world, name, template, aliases, claims)
        return name

    def again(self, name: str, stateful_set: Object | None = None) -> None:
        """Make a pod that was deleted anew, under its name."""
        self.add(name, self.pods[name].template, stateful_set)

    def claim(self, name: str) -> Path:
        """The directory of a pod's persistent volume."""
        return self._world.directory / "claims" / name

    def delete(self, name: str) -> None:
        """Delete a pod."""
        with self.lock:
            pod = self.pods[name]
            pod.suspended = True
        pod.delete()

    def find(self, part: str) -> Pod:
        """The pod whose name has ``part`` in it."""
        found = [pod for name, pod in self.pods.items() if part in name]
        assert len(found) == 1, f"{len(found)} pods have {part!r} in their name"
        return found[0]

    def wait(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        """Wait until a condition holds.

        Raises:
            AssertionError: it did not; says what all pods are like.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline or self.errors:
                state = "\n".join(map(repr, self.pods.values()))
                raise AssertionError(f"not in {seconds:.0f} s: {what}\n{state}\n{''.join(self.errors)}\n{self.tails()}")
            time.sleep(0.1)

    def tails(self, lines: int = 8) -> str:
        """The end of what every container said that is not ready."""
        parts = []
        for pod in self.pods.values():
            for each in (*pod.inits, *pod.mains):
                if each.container and not each.ready and each.exit_code != 0:
                    said = "\n".join(pod.logs(each.spec["name"]).splitlines()[-lines:])
                    parts.append(f"--- {pod.name} {each.spec['name']}\n{said}")
        return "\n".join(parts)

    def _aliases(self, name: str, template: Object, stateful_set: Object | None) -> list[str]:
        namespace, domain = self._world.namespace, "svc.cluster.local"
        aliases = []
        if stateful_set:
            aliases.append(f"{name}.{stateful_set['spec']['serviceName']}.{namespace}.{domain}")
        labels: dict[str, Any] = template["metadata"].get("labels", {})
        for service in self.objects.of("Service"):
            if service["spec"]["selector"].items() <= labels.items():
                own = service["metadata"]["name"]
                aliases += [own, f"{own}.{namespace}.svc", f"{own}.{namespace}.{domain}"]
        return aliases

    def _run(self) -> None:
        while not self._stopped.wait(STEP_SECONDS):
            for pod in list(self.pods.values()):
                try:
                    with self.lock:
                        pod.step()
                except Exception:  # a test must see it, wherever it waits
                    if not pod.suspended:
                        self.errors.append(f"{pod.name}: {traceback.format_exc()}")
                        pod.suspended = True
