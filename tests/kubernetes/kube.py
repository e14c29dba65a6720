"""kubectl and helm, on the cluster under test."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from tests.helm.chart import binaries
from tests.support.children import child
from tests.support.ports import free_port
from tests.support.waiting import wait_until

from .provider import run

Object = dict[str, Any]


class Kube:
    """One namespace of a cluster.

    Args:
        kubeconfig: how to reach it.
        namespace: which, made where it is not there.
    """

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        self.kubeconfig, self.namespace = kubeconfig, namespace
        self.environ = {"KUBECONFIG": str(kubeconfig), "PATH": f"{binaries()}:/usr/bin:/bin", "HOME": "/nonexistent"}

    def kubectl(self, *words: str, seconds: float = 60) -> str:
        """What a command of kubectl prints."""
        return run(["kubectl", "--namespace", self.namespace, *words], seconds, self.environ)

    def helm(self, *words: str, seconds: float = 120, helm: str = "helm") -> str:
        """What a command of helm prints."""
        return run([helm, "--namespace", self.namespace, *words], seconds, self.environ)

    def apply(self, body: Object | str) -> None:
        """Create objects, or change them."""
        text = body if isinstance(body, str) else json.dumps(body)
        words = ["kubectl", "--namespace", self.namespace, "apply", "--filename", "-"]
        subprocess.run(words, env=self.environ, input=text, text=True, check=True, capture_output=True, timeout=60)

    def get(self, kind: str, name: str = "", selector: str = "") -> Object:
        """An object, or a list of those with some labels."""
        words = ["get", kind, *([name] if name else []), *(["--selector", selector] if selector else [])]
        found: Object = json.loads(self.kubectl(*words, "--output", "json"))
        return found

    def pods(self, selector: str = "") -> list[Object]:
        """The pods with some labels that are not about to end."""
        items = self.get("pods", selector=selector)["items"]
        return [each for each in items if "deletionTimestamp" not in each["metadata"]]

    def execute(self, pod: str, container: str, *command: str) -> str:
        """What a command prints in a container."""
        return self.kubectl("exec", pod, "--container", container, "--", *command)

    def events(self, reason: str) -> list[str]:
        """The messages of a reason's events."""
        return [each["message"] for each in self.get("events")["items"] if each["reason"] == reason]

    @contextmanager
    def forward(self, target: str, port: int) -> Iterator[str]:
        """A URL on loopback for a port of ``service/NAME`` or ``pod/NAME``, of its next pod where one ended."""
        own, ends = free_port(), threading.Event()
        words = ["kubectl", "--namespace", self.namespace, "port-forward", "--address", "127.0.0.1"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": self.environ}

        def keep() -> None:
            while not ends.is_set():
                with child([*words, target, f"{own}:{port}"], **quiet) as process:
                    while process.poll() is None and not ends.wait(0.1):
                        pass

        thread = threading.Thread(target=keep)
        thread.start()
        try:
            wait_until(lambda: _listens(own), f"port {own} is forwarded to {target}", 30)
            yield f"http://127.0.0.1:{own}"
        finally:
            ends.set()
            thread.join()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ready(pod: Object) -> bool:
    """Whether a pod is ready."""
    return any(
        each["type"] == "Ready" and each["status"] == "True" for each in pod.get("status", {}).get("conditions", ())
    )


def name(thing: Object) -> str:
    """An object's name."""
    return str(thing["metadata"]["name"])


def main_pid(pod: Object, container: str) -> int:
    """The process id on this host of a container's main process.

    Raises:
        AssertionError: none of this host's processes is in it.
    """
    statuses = [*pod["status"].get("initContainerStatuses", ()), *pod["status"]["containerStatuses"]]
    container_id = next(each["containerID"] for each in statuses if each["name"] == container).rpartition("/")[2]
    for process in psutil.process_iter():
        try:
            mine = container_id in Path(f"/proc/{process.pid}/cgroup").read_text()
        except OSError:
            continue
        # the first of a container's processes has process id 1 there
        if mine and _inner_pid(process.pid) == 1:
            return int(process.pid)
    raise AssertionError(f"no process of {name(pod)}/{container} is on this host")


def _inner_pid(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("NSpid:")).split()[-1])
