"""``etcd-pd enlist-engines``: keeps the workers of SGLang's router equal to the engine pods that are ready.

In place of the router's own discovery, which cannot write an IPv6 address into a URL (sglang-router 0.3.2).
"""

from __future__ import annotations

import json
import logging
import time
import urllib.request
from http.client import HTTPException
from typing import Any, NamedTuple, Protocol

from ..config import bracketed
from .api import KubernetesError, Object
from .router import make_request
from .settings import EnlistSettings

log = logging.getLogger(__name__)

#: Longest wait for an answer of the router, seconds; it is in the same pod.
ROUTER_SECONDS = 5.0
#: The router registers in the background: it is asked again for who is not there after this time, seconds.
ASK_AGAIN_SECONDS = 10.0
#: The label that says an engine's role, and which there are.
ROLE, ROLES = "etcd-pd/role", ("prefill", "decode")
#: LeaderWorkerSet's label with a pod's place in an instance of several: the first, its leader, takes the requests.
PLACE = "leaderworkerset.sigs.k8s.io/worker-index"
#: SGLang's own annotation with prefill's bootstrap port.
BOOTSTRAP_PORT = "sglang.ai/bootstrap-port"


class PodList(Protocol):
    """The part of the Kubernetes API that is needed."""

    def list(self, kind: str, selector: str) -> list[Object]:
        """The objects with some labels."""


class Worker(NamedTuple):
    """An engine as the router knows it: where it is, ``prefill`` or ``decode``, and prefill's bootstrap port."""

    url: str
    role: str
    bootstrap_port: int | None


class Enlisting:
    """Tells a router which engines there are.

    Args:
        settings: which pods, and which router.
        pods: where the pods are listed.
        key: what the router asks for; empty: nothing.
    """

    def __init__(self, settings: EnlistSettings, pods: PodList, key: str = "") -> None:
        self._settings, self._pods, self._key = settings, pods, key
        self._asked: dict[Worker, float] = {}
        self._failure = ""

    def run(self) -> None:
        """Go on for good; what fails is logged once and tried again."""
        while True:
            try:
                self.step()
                self._note("")
            except (KubernetesError, OSError, HTTPException, ValueError, KeyError) as exc:
                self._note(f"{type(exc).__name__}: {exc}")
            time.sleep(self._settings.poll_seconds)

    def step(self) -> None:
        """Compare once, and ask the router for what differs.

        Raises:
            KubernetesError: the pods could not be listed; the router's workers stay as they are.
            OSError: the router did not answer, or refused.
            HTTPException: it answered something else than HTTP.
            ValueError: it answered something else than JSON.
            KeyError: an answer lacks a field.
        """
        wanted, known = set(self._ready()), self._known()
        for worker in known.keys() - wanted:  # an address may have passed to an engine of the other role
            self._ask("DELETE", f"/workers/{known[worker]}")
            log.info("worker=%s role=%s is taken from the router", worker.url, worker.role)
        now = time.monotonic()
        self._asked = {each: at for each, at in self._asked.items() if each in wanted and now - at < ASK_AGAIN_SECONDS}
        taken = {worker.url for worker in known}
        for worker in wanted - self._asked.keys():
            if worker.url not in taken:
                self._asked[worker] = now
                self._add(worker)

    def _known(self) -> dict[Worker, str]:
        """The router's workers, and by which id it has each."""
        found = self._ask("GET", "/workers")["workers"]
        return {Worker(each["url"], each["worker_type"], each.get("bootstrap_port")): each["id"] for each in found}

    def _ready(self) -> list[Worker]:
        pods = self._pods.list("pods", self._settings.selector)
        return [_worker(pod, self._settings.port) for pod in pods if _is_ready(pod)]

    def _add(self, worker: Worker) -> None:
        body: dict[str, Any] = {"url": worker.url, "worker_type": worker.role}
        if worker.bootstrap_port is not None:
            body["bootstrap_port"] = worker.bootstrap_port
        self._ask("POST", "/workers", body)
        log.info("worker=%s role=%s is given to the router", worker.url, worker.role)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        request = make_request(self._settings.router + path, self._key, body, method)
        # nothing stands between two containers of a pod
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            request, timeout=ROUTER_SECONDS
        ) as answer:
            return json.load(answer)

    def _note(self, failure: str) -> None:
        if failure and failure != self._failure:
            log.warning("the router's workers stay as they are: %s", failure)
        elif self._failure and not failure:
            log.info("the router and Kubernetes answer again")
        self._failure = failure


def _is_ready(pod: Object) -> bool:
    metadata, status = pod["metadata"], pod["status"]
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions", ()))
    labels = metadata.get("labels", {})
    engine = labels.get(ROLE) in ROLES and labels.get(PLACE, "0") == "0"
    return ready and engine and "deletionTimestamp" not in metadata and bool(status.get("podIP"))


def _worker(pod: Object, port: int) -> Worker:
    metadata = pod["metadata"]
    bootstrap = metadata.get("annotations", {}).get(BOOTSTRAP_PORT, "")
    url = f"http://{bracketed(pod['status']['podIP'])}:{port}"
    return Worker(url, metadata["labels"][ROLE], int(bootstrap) if bootstrap.isdecimal() else None)
