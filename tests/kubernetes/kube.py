"""kubectl and helm, on the cluster under test."""

from __future__ import annotations

import http.client
import json
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from tests.helm.chart import binaries
from tests.support.children import child
from tests.support.ports import free_port
from tests.support.waiting import wait_until

from .provider import listens, run

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

    def helm(self, *words: str, seconds: float = 120) -> str:
        """What a command of helm prints."""
        return run(["helm", "--namespace", self.namespace, *words], seconds, self.environ)

    def apply(self, body: Object) -> None:
        """Create an object, or change it."""
        words = ["kubectl", "--namespace", self.namespace, "apply", "--filename", "-"]
        run(words, 60, self.environ, json.dumps(body))

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

    def logs(self, target: str, *words: str) -> str:
        """What ``pod/NAME`` or ``job/NAME`` says; nothing where it has not started."""
        try:
            return self.kubectl("logs", target, *words)
        except AssertionError:
            return ""

    @contextmanager
    def forward(self, target: str, port: int) -> Iterator[str]:
        """A URL on loopback for a port of ``service/NAME`` or ``pod/NAME``, of its next pod where one ended."""
        own, ends = free_port(), threading.Event()
        words = ["kubectl", "--namespace", self.namespace, "port-forward", "--address", "127.0.0.1"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": self.environ}

        def keep() -> None:
            while not ends.is_set():
                with child([*words, target, f"{own}:{port}"], **quiet) as process:
                    while process.poll() is None and not ends.wait(0.5) and not breaks(own):
                        pass

        thread = threading.Thread(target=keep)
        thread.start()
        try:
            wait_until(lambda: listens("127.0.0.1", own), f"port {own} is forwarded to {target}", 30)
            yield f"http://127.0.0.1:{own}"
        finally:
            ends.set()
            thread.join()


def breaks(port: int) -> bool:
    """Whether connections to a port of loopback break: kubectl may go on forwarding to a pod that is gone."""
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/liveness", timeout=5).close()
    except (ConnectionResetError, http.client.RemoteDisconnected):
        return True
    except OSError:
        pass  # it does not listen yet, is slow, or answers something else
    return False


def ready(thing: Object) -> bool:
    """Whether a pod or a node is ready."""
    conditions = thing.get("status", {}).get("conditions", ())
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


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
