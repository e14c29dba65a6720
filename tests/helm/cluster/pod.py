"""One pod: init containers, sidecars, containers, restarts and its end, by kubelet's rules.

`step()` takes the next steps that are possible without waiting; the machine calls it again and again.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from etcd_pd.kubernetes.api import Object
from tests.helm.cluster.container import Container
from tests.helm.cluster.volumes import Volumes


@dataclass
class World:
    """What all pods share.

    Attributes:
        docker: Docker's client.
        api: the Kubernetes API.
        network: of all pods.
        namespace: of all pods.
        directory: for volumes.
        labels: of everything that Docker makes here.
        sandbox_image: any image with Python, to hold pods' networks.
    """

    docker: Any
    api: Any
    network: Any
    namespace: str
    directory: Path
    labels: dict[str, str]
    sandbox_image: str


class Pod:
    """One pod.

    Args:
        world: what all pods share.
        name: its name.
        template: metadata and spec.
        aliases: DNS names that mean it.
        claims: directories of its persistent volumes, by volume.

    Attributes:
        restart: Always, OnFailure or Never.
        suspended: while set, nothing is restarted and no probe is run.
        became_not_ready: how often it was ready and then was not.
    """

    def __init__(self, world: World, name: str, template: Object, aliases: list[str], claims: dict[str, Path]) -> None:
        self.world, self.name, self.template, self.spec = world, name, template, template["spec"]
        self.aliases = aliases
        self.restart = self.spec.get("restartPolicy", "Always")
        self.phase, self.ip = "Pending", ""
        self.suspended = False
        self.became_not_ready = 0
        self._deleting = False
        self._sandbox: Any = None
        self._volumes = Volumes(world.api, self.spec, world.directory / "pods" / name, claims)
        self.inits = [
            Container(each, each.get("restartPolicy") == "Always") for each in self.spec.get("initContainers", ())
        ]
        self.mains = [Container(each, False) for each in self.spec["containers"]]

    def __repr__(self) -> str:
        return f"<{self.name} {self.phase} {' '.join(map(repr, self.containers))}>"

    # --- what it is like

    @property
    def containers(self) -> list[Container]:
        """All of them."""
        return [*self.inits, *self.mains]

    @property
    def going(self) -> list[Container]:
        """The containers that go on: sidecars, then the others."""
        return [*(each for each in self.inits if each.sidecar), *self.mains]

    @property
    def ready(self) -> bool:
        """Whether every container that goes on is ready."""
        return self.phase == "Running" and all(each.ready for each in self.going)

    @property
    def restarts(self) -> int:
        """How often one of its containers was started again."""
        return sum(each.restarts for each in self.going)

    @property
    def probed(self) -> int:
        """How often each of its containers was asked whether it is ready, at least."""
        return min(each.probed for each in self.going if "readinessProbe" in each.spec)

    def of(self, name: str) -> Container:
        """A container by its name."""
        return next(each for each in self.containers if each.name == name)

    def logs(self, name: str) -> str:
        """What a container has said."""
        return self.of(name).logs()

    def execute(self, name: str, command: list[str]) -> tuple[int, str]:
        """Run a command in a container; its exit status and output."""
        code, output = self.of(name).docker.exec_run(command)
        return int(code), output.decode(errors="replace")

    # --- its life

    def step(self) -> None:
        """Do what can be done now."""
        if self.suspended or self.phase in ("Succeeded", "Failed"):
            return
        if not self._sandbox and not self._prepare():
            return
        for each in self.inits:
            self._keep(each)
            if not (each.started if each.sidecar else each.exit_code == 0):
                return
        for each in self.mains:
            self._keep(each)
        self._conclude()
        self.publish()

    def delete(self) -> None:
        """End it as a deletion does: word to the API, preStop, SIGTERM, then the sidecars."""
        self._deleting = self.suspended = True
        self.publish()
        deadline = time.monotonic() + self.spec.get("terminationGracePeriodSeconds", 30)
        for each in self.mains:
            hook = each.spec.get("lifecycle", {}).get("preStop")
            if hook and each.docker:
                self.execute(each.name, self._expand(hook["exec"]["command"], each.spec))
        for each in (*self.mains, *reversed(self.inits)):
            each.stop(deadline - time.monotonic())
        self.remove()
        self.world.api.put_pod("DELETED", self.manifest())

    def remove(self) -> None:
        """Take everything away but persistent volumes and what the API says."""
        for each in self.containers:
            each.remove()
        if self._sandbox:
            self._sandbox.remove(force=True)
            self._sandbox = None
        self._volumes.remove()

    def publish(self) -> None:
        """Tell the API what it is like, where that has changed."""
        manifest = self.manifest()
        known = self.world.api.store.get("pods", self.name)
        if known:
            if known["status"] == manifest["status"] and not self._deleting:
                return
            if self.phase == "Running" and _is_ready(known) and not _is_ready(manifest):
                self.became_not_ready += 1
        self.world.api.put_pod("MODIFIED" if known else "ADDED", manifest)

    def manifest(self) -> Object:
        """As the API shows it."""
        metadata = {"uid": self.name, **self.template["metadata"], "name": self.name, "namespace": self.world.namespace}
        if self._deleting:
            metadata["deletionTimestamp"] = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        conditions = [{"type": kind, "status": str(self.ready)} for kind in ("Ready", "ContainersReady")]
        status = {"phase": self.phase, "podIP": self.ip, "podIPs": [{"ip": self.ip}], "conditions": conditions}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": self.spec, "status": status}

    # --- its parts

    def _prepare(self) -> bool:
        """Volumes and network; False while it waits for a Secret or a ConfigMap."""
        if not self._volumes.make(self.world.namespace):
            return False
        self._sandbox = self.world.docker.containers.create(
            self.world.sandbox_image,
            entrypoint=["python3", "-c", "import signal; signal.sigwait([signal.SIGTERM])"],
            name=f"{self.name}-{time.monotonic_ns()}",
            hostname=self.name,
            labels=self.world.labels,
            extra_hosts={"kubernetes.default.svc": self.world.api.host},
        )
        self.world.docker.networks.get("bridge").disconnect(self._sandbox)
        self.world.network.connect(self._sandbox, aliases=self.aliases)
        self._sandbox.start()
        self._sandbox.reload()
        self.ip = self._sandbox.attrs["NetworkSettings"]["Networks"][self.world.network.name]["IPAddress"]
        self.phase = "Running"
        return True

    def _keep(self, each: Container) -> None:
        """Start a container that should run, notice its end, probe it."""
        once = not each.sidecar and (each in self.inits or self.restart != "Always")
        if each.exit_code == 0 and once:
            return
        if each.docker is None:
            if time.monotonic() >= each.again_at:
                self._start(each)
        elif not each.ended():
            each.probe(self.ip)
        elif not (once and each.exit_code == 0) and not (each in self.mains and self.restart == "Never"):
            each.start_again()

    def _start(self, each: Container) -> None:
        spec, user, own = each.spec, self.spec["securityContext"], each.spec["securityContext"]
        docker = self.world.docker.containers.run(
            spec["image"],
            command=self._expand(spec.get("args", []), spec),
            entrypoint=self._expand(spec["command"], spec),
            environment=self._environment(spec),
            network_mode=f"container:{self._sandbox.id}",
            user=f"{user['runAsUser']}:{user['runAsGroup']}",
            group_add=[user["fsGroup"]],
            cap_drop=own["capabilities"]["drop"],
            read_only=own["readOnlyRootFilesystem"],
            security_opt=[] if own["allowPrivilegeEscalation"] else ["no-new-privileges"],
            mounts=self._volumes.mounts(spec),
            labels=self.world.labels,
            detach=True,
        )
        each.runs(docker)

    def _conclude(self) -> None:
        """The end of a pod that is not to go on for ever."""
        if self.restart == "Always" or any(each.exit_code is None for each in self.mains):
            return
        failed = any(each.exit_code for each in self.mains)
        if failed and self.restart == "OnFailure":
            return
        self.phase = "Failed" if failed else "Succeeded"
        for each in self.going:
            if each.sidecar:
                each.stop(5)

    def _environment(self, spec: Object) -> dict[str, str]:
        found = {"KUBERNETES_SERVICE_HOST": self.world.api.host, "KUBERNETES_SERVICE_PORT": "443"}
        for each in spec.get("env", ()):
            found[each["name"]] = self._value(each, found)
        return found

    def _value(self, variable: Object, so_far: dict[str, str]) -> str:
        source = variable.get("valueFrom")
        if source is None:
            return _substitute(str(variable["value"]), so_far)
        if "fieldRef" in source:
            return {"metadata.name": self.name, "status.podIP": self.ip}[source["fieldRef"]["fieldPath"]]
        key = source["secretKeyRef"]
        return str(self.world.api.store.data(key["name"])[key["key"]].decode())

    def _expand(self, words: list[str], spec: Object) -> list[str]:
        environment = self._environment(spec)
        return [_substitute(str(word), environment) for word in words]


def _substitute(text: str, environment: dict[str, str]) -> str:
    return re.sub(r"\$\((\w+)\)", lambda found: environment.get(found[1], found[0]), text)


def _is_ready(manifest: Object) -> bool:
    return bool(manifest["status"]["conditions"][0]["status"] == "True")
