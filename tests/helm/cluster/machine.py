"""Makes pods of rendered workloads, keeps them going, and takes everything away in the end."""

from __future__ import annotations

import shutil
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import docker

from etcd_pd.kubernetes.api import Object
from tests.helm.chart import Objects
from tests.helm.cluster.api import ApiServer
from tests.helm.cluster.pod import Pod, World
from tests.support.etcd_server import _LABEL, _owner

M = TypeVar("M", bound="Machine")

STEP_SECONDS = 0.2


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
            labels=labels,
        )
        self._network.reload()
        host = self._network.attrs["IPAM"]["Config"][0]["Gateway"].partition("/")[0]
        self.api = ApiServer(host, directory)
        self._world = World(self._docker, self.api, self._network, namespace, directory, labels, sandbox_image)
        self.pods: dict[str, Pod] = {}
        self.lock = threading.RLock()
        self._stopped = threading.Event()
        self._kubelet = threading.Thread(target=self._run, name="kubelet", daemon=True)
        self.errors: list[str] = []

    def __enter__(self: M) -> M:
        try:
            self.api.start()
            self.api.apply(self.objects.installed)
            for each in self.objects.installed:
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

    def claim(self, name: str) -> Path:
        """The directory of a pod's persistent volume."""
        return self._world.directory / "claims" / name

    def delete(self, name: str) -> None:
        """Delete a pod; nothing makes another one of it."""
        with self.lock:
            pod = self.pods[name]
            pod.suspended = True
        pod.delete()
        with self.lock:
            del self.pods[name]

    def run_to_end(self, name: str, template: Object, seconds: float) -> str:
        """Run a pod that ends by itself; what its first container said.

        Raises:
            AssertionError: it failed, or did not end.
        """
        pod = self.pods[self.add(name, template)]
        self.wait(lambda: pod.phase in ("Succeeded", "Failed"), f"{name} ends", seconds)
        said = pod.mains[0].logs()
        assert pod.phase == "Succeeded", said
        self.delete(name)
        return said

    def hold_down(self, pod: Pod, container: str) -> None:
        """Stop a container, and start it no more until :meth:`let_go`."""
        with self.lock:
            pod.suspended = True
            pod.of(container).stop(1)

    def let_go(self, pod: Pod) -> None:
        """Look after a pod again."""
        pod.suspended = False

    def settled(self) -> bool:
        """Whether everything that was applied is as it should be: pods ready, Jobs done."""
        with self.lock:
            return all(pod.ready or pod.phase == "Succeeded" for pod in self.pods.values())

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
            for each in pod.containers:
                if not each.ready and each.exit_code != 0:
                    parts.append("\n".join([f"--- {pod.name} {each.name}", *each.logs().splitlines()[-lines:]]))
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
                with self.lock:
                    try:
                        pod.step()
                    except Exception:  # a test must see it, wherever it waits
                        self.errors.append(f"{pod.name}: {traceback.format_exc()}")
                        pod.suspended = True
