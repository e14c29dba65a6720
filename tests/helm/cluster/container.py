"""One container of a pod: its state, its probes, its log."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from docker.errors import APIError

from etcd_pd.kubernetes.api import Object

PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
RESTART_SECONDS = 1.0
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass
class Container:
    """A container as it is at present.

    Attributes:
        spec: as in the pod.
        sidecar: whether it is an init container that goes on.
        docker: what runs, or did; None before it is started.
        previous: what it said before it was started again.
        probed: how often it was asked whether it is ready.
    """

    spec: Object
    sidecar: bool
    docker: Any = None
    started: bool = False
    ready: bool = False
    exit_code: int | None = None
    restarts: int = 0
    again_at: float = 0.0
    previous: str = ""
    probed: int = 0
    _due: dict[str, float] = field(default_factory=dict)
    _failures: dict[str, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        if self.exit_code is not None:
            state = f"exit={self.exit_code}"
        else:
            state = "ready" if self.ready else "started" if self.started else "starting" if self.docker else "waiting"
        return f"{self.name}:{state}"

    @property
    def name(self) -> str:
        """Its name in the pod."""
        return str(self.spec["name"])

    def runs(self, docker: Any) -> None:
        """It was started."""
        self.docker, self.exit_code, self._failures = docker, None, {}
        self._due = {probe: 0.0 for probe in PROBES if probe in self.spec}
        self.started = "startupProbe" not in self.spec
        self.ready = self.started and "readinessProbe" not in self.spec

    def ended(self) -> bool:
        """Whether it has ended; then its exit status is known."""
        self.docker.reload()
        if self.docker.status != "exited":
            return False
        self.exit_code, self.ready, self.started = int(self.docker.attrs["State"]["ExitCode"]), False, False
        return True

    def start_again(self) -> None:
        """Away with what ended; it is to be started once more, in a moment."""
        self.previous = self.logs()
        self.remove()
        self.restarts += 1
        self.again_at = time.monotonic() + RESTART_SECONDS

    def stop(self, seconds: float) -> None:
        """SIGTERM, and SIGKILL if it takes longer than that."""
        if self.docker:
            self.docker.stop(timeout=max(int(seconds), 1))
            self.ready = self.started = False

    def remove(self) -> None:
        """Away with it."""
        if self.docker:
            self.docker.remove(force=True)
            self.docker = None

    def logs(self) -> str:
        """What it has said; while it waits to be started again, what it said before."""
        return str(self.docker.logs().decode(errors="replace")) if self.docker else self.previous

    def probe(self, ip: str) -> None:
        """Run the probes that are due, as kubelet does: nothing else before the start-up probe has passed once."""
        now = time.monotonic()
        for kind in [kind for kind, due in self._due.items() if due <= now]:
            if kind != "startupProbe" and not self.started:
                continue
            probe = self.spec[kind]
            self._due[kind] = now + probe.get("periodSeconds", 10)
            passed = self._passes(probe, ip)
            self._failures[kind] = 0 if passed else self._failures.get(kind, 0) + 1
            self._judge(kind, passed, self._failures[kind] >= probe.get("failureThreshold", 3))

    def _judge(self, kind: str, passed: bool, too_often: bool) -> None:
        if kind == "readinessProbe":
            self.probed += 1
            if passed or too_often:
                self.ready = passed
        elif kind == "startupProbe" and passed:
            self.started = True
            self.ready = "readinessProbe" not in self.spec
            del self._due[kind]
        elif too_often:
            self.docker.kill()

    def _passes(self, probe: Object, ip: str) -> bool:
        try:
            if "exec" in probe:
                return bool(self.docker.exec_run(probe["exec"]["command"]).exit_code == 0)
            get = probe["httpGet"]
            port = next(port["containerPort"] for port in self.spec["ports"] if port["name"] == get["port"])
            url = f"http://{ip}:{port}{get['path']}"
            with _direct.open(url, timeout=probe.get("timeoutSeconds", 1)) as answer:
                return bool(answer.status < 400)
        except (OSError, APIError, urllib.error.URLError):
            return False
