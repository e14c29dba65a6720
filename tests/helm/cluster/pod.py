"""One pod: volumes, init containers, sidecars, containers, probes, restarts and its end, by kubelet's rules.

`step()` takes the next steps that are possible without waiting; the machine calls it again and again.
"""

from __future__ import annotations

import base64
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from docker.errors import APIError
from docker.types import Mount

from etcd_pd.cluster.kubernetes import Object

#: Where a pod finds what its service account may use.
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
RESTART_SECONDS = 1.0
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass
class World:
    """What all pods share."""

    docker: Any
    api: Any
    network: Any
    namespace: str
    directory: Path
    labels: dict[str, str]
    sandbox_image: str


@dataclass
class Running:
    """A container of a pod, as it is at present."""

    spec: Object
    sidecar: bool
    container: Any = None
    started: bool = False
    ready: bool = False
    exit_code: int | None = None
    restarts: int = 0
    again_at: float = 0.0
    due: dict[str, float] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)


class Pod:
    """One pod.

    Args:
        world: what all pods share.
        name: its name.
        template: metadata and spec.
        aliases: DNS names that mean it.
        claims: directories of its persistent volumes, by volume.
        restart: Always, OnFailure or Never.
    """

    def __init__(
        self,
        world: World,
        name: str,
        template: Object,
        aliases: list[str],
        claims: dict[str, Path],
    ) -> None:
        self.world, self.name, self.template, self.spec = world, name, template, template["spec"]
        self.aliases, self._claims = aliases, claims
        self.restart = self.spec.get("restartPolicy", "Always")
        self.phase, self.ip = "Pending", ""
        #: While set, nothing is restarted and no probe is run: for tests that break something themselves.
        self.suspended = False
        self.became_not_ready = 0
        self.deleting = False
        self._sandbox: Any = None
        self._directory = world.directory / "pods" / name
        self._mounts: dict[str, Path] = {}
        self.inits = [
            Running(each, each.get("restartPolicy") == "Always") for each in self.spec.get("initContainers", ())
        ]
        self.mains = [Running(each, False) for each in self.spec["containers"]]

    def __repr__(self) -> str:
        parts = " ".join(f"{each.spec['name']}:{_describe(each)}" for each in (*self.inits, *self.mains))
        return f"<{self.name} {self.phase} {parts}>"

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

    @property
    def ready(self) -> bool:
        """Whether every container that goes on is ready."""
        going = [each for each in (*self.inits, *self.mains) if each.sidecar or each in self.mains]
        return bool(self.ip) and self.phase == "Running" and all(each.ready for each in going)

    def of(self, name: str) -> Running:
        """A container by its name."""
        return next(each for each in (*self.inits, *self.mains) if each.spec["name"] == name)

    def logs(self, name: str) -> str:
        """What a container has said."""
        container = self.of(name).container
        return str(container.logs().decode(errors="replace")) if container else ""

    def execute(self, name: str, command: list[str]) -> tuple[int, str]:
        """Run a command in a container; its exit status and output."""
        code, output = self.of(name).container.exec_run(command)
        return int(code), output.decode(errors="replace")

    def delete(self) -> None:
        """End it as a deletion does: word to the API, preStop, SIGTERM, then the sidecars."""
        self.deleting = self.suspended = True
        self.publish()
        deadline = time.monotonic() + self.spec.get("terminationGracePeriodSeconds", 30)
        for each in self.mains:
            hook = each.spec.get("lifecycle", {}).get("preStop")
            if hook and each.container:
                self.execute(each.spec["name"], self._expand(hook["exec"]["command"], each.spec))
        for group in (self.mains, [each for each in reversed(self.inits) if each.sidecar]):
            for each in group:
                if each.container:
                    each.container.stop(timeout=max(int(deadline - time.monotonic()), 1))
        self.remove()
        self.world.api.put_pod("DELETED", self.manifest())

    def remove(self) -> None:
        """Take everything away but persistent volumes and what the API says."""
        for each in (*self.mains, *self.inits):
            if each.container:
                each.container.remove(force=True)
                each.container = None
        if self._sandbox:
            self._sandbox.remove(force=True)
            self._sandbox = None
        shutil.rmtree(self._directory, ignore_errors=True)

    def publish(self) -> None:
        """Tell the API what it is like, where that has changed."""
        manifest = self.manifest()
        known = self.world.api.store.get("pods", self.name)
        if known:
            if known["status"] == manifest["status"] and not self.deleting:
                return
            if self.phase == "Running" and _is_ready(known) and not _is_ready(manifest):
                self.became_not_ready += 1
        self.world.api.put_pod("MODIFIED" if known else "ADDED", manifest)

    def manifest(self) -> Object:
        """As the API shows it."""
        metadata = {**self.template["metadata"], "name": self.name, "namespace": self.world.namespace}
        metadata.setdefault("uid", self.name)
        if self.deleting:
            metadata["deletionTimestamp"] = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        ready = str(self.ready)
        conditions = [{"type": kind, "status": ready} for kind in ("Ready", "ContainersReady")]
        status = {"phase": self.phase, "podIP": self.ip, "podIPs": [{"ip": self.ip}], "conditions": conditions}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": self.spec, "status": status}

    # --- volumes and sandbox

    def _prepare(self) -> bool:
        """Volumes and network; False while a Secret or ConfigMap is missing, for which a pod waits."""
        volumes = self.spec.get("volumes", ())
        sources = {volume["name"]: self._source(volume) for volume in volumes}
        if None in sources.values():
            return False
        self._directory.mkdir(parents=True, exist_ok=True)
        for volume in volumes:
            self._mounts[volume["name"]] = self._make_volume(volume, sources[volume["name"]] or {})
        for name, path in self._claims.items():
            self._mounts[name] = self._own(path, 0o2775)
        if self.spec["automountServiceAccountToken"]:
            account = {
                "token": self.world.api.token(self.spec["serviceAccountName"]).encode(),
                "ca.crt": self.world.api.ca,
                "namespace": self.world.namespace.encode(),
            }
            self._mounts[ACCOUNT] = self._files("service-account", account, 0o640)
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

    def _source(self, volume: Object) -> dict[str, bytes] | None:
        """The files of a volume from the API; None where it is missing and must be there."""
        for kind, key, named in (("secrets", "secret", "secretName"), ("configmaps", "configMap", "name")):
            if key in volume:
                found = self.world.api.store.get(kind, volume[key][named])
                if found is None:
                    return {} if volume[key].get("optional") else None
                decode: Callable[[str], bytes] = base64.b64decode if key == "secret" else str.encode
                return {name: decode(value) for name, value in found["data"].items()}
        return {}

    def _make_volume(self, volume: Object, files: dict[str, bytes]) -> Path:
        if "emptyDir" in volume:
            path = self._directory / volume["name"]
            path.mkdir(exist_ok=True)
            return self._own(path, 0o2777)
        if "secret" in volume or "configMap" in volume:
            return self._files(volume["name"], files, volume.get("secret", {}).get("defaultMode", 0o644))
        raise AssertionError(f"no such volume here: {volume}")

    def _files(self, name: str, files: dict[str, bytes], mode: int) -> Path:
        path = self._directory / name
        path.mkdir(exist_ok=True)
        for file, content in files.items():
            (path / file).write_bytes(content)
            self._own(path / file, mode)
        return self._own(path, 0o2755)

    def _own(self, path: Path, mode: int) -> Path:
        """Root's, and the pod's group's, as fsGroup makes it."""
        path.mkdir(parents=True, exist_ok=True) if not path.exists() else None
        shutil.chown(path, 0, self.spec["securityContext"]["fsGroup"])
        path.chmod(mode)
        return path

    # --- containers

    def _keep(self, each: Running) -> None:
        """Start a container that should run, notice its end, probe it."""
        if each.exit_code == 0 and not each.sidecar and (each in self.inits or self.restart != "Always"):
            return
        if each.container is None:
            if time.monotonic() >= each.again_at:
                self._start(each)
            return
        each.container.reload()
        if each.container.status == "exited":
            self._ended(each, int(each.container.attrs["State"]["ExitCode"]))
            return
        self._probe(each)

    def _start(self, each: Running) -> None:
        spec, user = each.spec, self.spec["securityContext"]
        own = spec["securityContext"]
        mounts = [
            Mount(mount["mountPath"], str(self._mounts[mount["name"]]), "bind", read_only=mount.get("readOnly", False))
            for mount in spec.get("volumeMounts", ())
        ]
        if ACCOUNT in self._mounts:
            mounts.append(Mount(ACCOUNT, str(self._mounts[ACCOUNT]), "bind", read_only=True))
        each.container = self.world.docker.containers.run(
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
            mounts=mounts,
            labels=self.world.labels,
            detach=True,
        )
        each.exit_code, each.failures = None, {}
        each.due = {probe: 0.0 for probe in PROBES if probe in spec}
        each.started = "startupProbe" not in spec
        each.ready = each.started and "readinessProbe" not in spec

    def _ended(self, each: Running, code: int) -> None:
        each.exit_code, each.ready, each.started = code, False, False
        if (each in self.mains and self.restart == "Never") or (code == 0 and not each.sidecar):
            if each in self.mains and self.restart == "Always":
                self._again(each)
            return
        self._again(each)

    def _again(self, each: Running) -> None:
        """Away with what ended; its log is lost, as `kubectl logs` without --previous loses it."""
        each.container.remove(force=True)
        each.container = None
        each.restarts += 1
        each.again_at = time.monotonic() + RESTART_SECONDS

    def _conclude(self) -> None:
        """The end of a pod that is not to go on for ever."""
        if self.restart == "Always" or any(each.exit_code is None for each in self.mains):
            return
        failed = any(each.exit_code for each in self.mains)
        if failed and self.restart == "OnFailure":
            return
        self.phase = "Failed" if failed else "Succeeded"
        for each in self.inits:
            if each.sidecar and each.container:
                each.container.stop(timeout=5)

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

    # --- probes

    def _probe(self, each: Running) -> None:
        now = time.monotonic()
        for kind in [kind for kind, due in each.due.items() if due <= now]:
            if kind != "startupProbe" and not each.started:
                continue
            probe = each.spec[kind]
            each.due[kind] = now + probe.get("periodSeconds", 10)
            passed = self._passes(each, probe)
            each.failures[kind] = 0 if passed else each.failures.get(kind, 0) + 1
            self._judge(each, kind, passed, each.failures[kind] >= probe.get("failureThreshold", 3))

    def _judge(self, each: Running, kind: str, passed: bool, too_often: bool) -> None:
        if kind == "startupProbe" and passed:
            each.started = True
            each.ready = "readinessProbe" not in each.spec
            del each.due[kind]
        elif kind == "readinessProbe" and (passed or too_often):
            each.ready = passed
        elif kind != "readinessProbe" and too_often:
            each.container.kill()

    def _passes(self, each: Running, probe: Object) -> bool:
        try:
            if "exec" in probe:
                return bool(each.container.exec_run(probe["exec"]["command"]).exit_code == 0)
            get = probe["httpGet"]
            port = next(port["containerPort"] for port in each.spec["ports"] if port["name"] == get["port"])
            url = f"http://{self.ip}:{port}{get['path']}"
            with _direct.open(url, timeout=probe.get("timeoutSeconds", 1)) as answer:
                return bool(answer.status < 400)
        except (OSError, APIError, urllib.error.URLError):
            return False


def _substitute(text: str, environment: dict[str, str]) -> str:
    return re.sub(r"\$\((\w+)\)", lambda found: environment.get(found[1], found[0]), text)


def _is_ready(manifest: Object) -> bool:
    return bool(manifest["status"]["conditions"][0]["status"] == "True")


def _describe(each: Running) -> str:
    if each.exit_code is not None:
        return f"exit={each.exit_code}"
    return "ready" if each.ready else "started" if each.started else "starting" if each.container else "waiting"
