"""`etcd-pd enlist-engines` beside the real router: its workers are the engine pods that are ready."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from etcd_pd.errors import ConfigError
from etcd_pd.kubernetes import enlist
from etcd_pd.kubernetes.api import KubernetesError, Object
from etcd_pd.kubernetes.settings import EnlistSettings
from tests.helm.chart import Objects, template
from tests.support.children import child
from tests.support.ports import free_port
from tests.support.waiting import wait_until

pytestmark = pytest.mark.helm

#: The addresses of the two pods: as for all engines of a release, their port is one.
PREFILL, DECODE = "::1", "127.0.0.1"
SELECTOR = "app.kubernetes.io/instance=cell,etcd-pd/role"


def pod(ip: str, role: str, *, ready: bool = True, **metadata: Any) -> Object:
    """A pod as the API server lists it, with the chart's labels and annotations."""
    labels = {"etcd-pd/role": role}
    annotations = {"sglang.ai/bootstrap-port": "8998"} if role == "prefill" else {}
    status = {"podIP": ip, "conditions": [{"type": "Ready", "status": str(ready)}]}
    return {"metadata": {"labels": labels, "annotations": annotations, **metadata}, "status": status}


class Pods:
    """The pods of a release, as the API server lists them."""

    def __init__(self) -> None:
        self.found = [pod(PREFILL, "prefill"), pod(DECODE, "decode")]

    def list(self, kind: str, selector: str) -> list[Object]:
        """All of them."""
        assert (kind, selector) == ("pods", SELECTOR)
        return self.found


class Engine(BaseHTTPRequestHandler):
    """Whatever the router asks of an engine before it takes it."""

    def do_GET(self) -> None:
        body = b'{"model_path": "tiny"}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class EngineServer(ThreadingHTTPServer):
    """An engine's HTTP server, on an address of IPv4 or IPv6."""

    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Engine)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnlistSettings]:
    """A router without discovery of its own, and two engines that answer it."""
    port, router, metrics = free_port(), free_port(), free_port()
    log: Path = tmp_path_factory.mktemp("router") / "router.log"
    command = [sys.executable, "-m", "sglang_router.launch_router", "--host", "127.0.0.1", "--port", str(router)]
    command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics), "--pd-disaggregation"]
    with ExitStack() as stack:
        for host in (PREFILL, DECODE):
            server = stack.enter_context(EngineServer(host, port))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
        output = stack.enter_context(log.open("wb"))
        stack.enter_context(child(command, stdout=output, stderr=subprocess.STDOUT))
        found = EnlistSettings(selector=SELECTOR, port=port, router=f"http://127.0.0.1:{router}", poll_seconds=0.01)
        wait_until(lambda: workers(found) == {}, "the router answers", 60)
        yield found


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enlist, "ASK_AGAIN_SECONDS", 0.5)


def workers(settings: EnlistSettings) -> dict[str, tuple[str, int | None]] | None:
    """Role and bootstrap port of the router's workers by URL; None where it does not answer."""
    try:
        with urllib.request.urlopen(settings.router + "/workers", timeout=5) as answer:
            found = json.load(answer)["workers"]
    except OSError:
        return None
    return {each["url"]: (each["worker_type"], each.get("bootstrap_port")) for each in found}


def workers_of_both(settings: EnlistSettings) -> dict[str, tuple[str, int | None]]:
    """What the router says when it has both pods."""
    return {
        f"http://[::1]:{settings.port}": ("prefill", 8998),
        f"http://127.0.0.1:{settings.port}": ("decode", None),
    }


def step_until(enlisting: enlist.Enlisting, settings: EnlistSettings, urls: dict[str, tuple[str, int | None]]) -> None:
    """Compare again and again until the router has these workers."""

    def settled() -> bool:
        enlisting.step()
        return workers(settings) == urls

    wait_until(settled, f"the router has {sorted(urls)}", 30)


def test_the_router_has_the_pods_that_are_ready_when_they_come_and_go(settings: EnlistSettings) -> None:
    pods = Pods()
    enlisting = enlist.Enlisting(settings, pods)
    prefill: dict[str, tuple[str, int | None]] = {f"http://[::1]:{settings.port}": ("prefill", 8998)}
    decode: dict[str, tuple[str, int | None]] = {f"http://127.0.0.1:{settings.port}": ("decode", None)}
    step_until(enlisting, settings, workers_of_both(settings))
    pods.found[1] = pod(DECODE, "decode", ready=False)
    step_until(enlisting, settings, prefill)
    pods.found[1] = pod(DECODE, "decode")
    step_until(enlisting, settings, workers_of_both(settings))
    pods.found[0] = pod(PREFILL, "prefill", deletionTimestamp="2026-11-30T07:00:00Z")
    step_until(enlisting, settings, decode)
    pods.found = [pod(PREFILL, "decode")]  # the address of the prefill that went
    step_until(enlisting, settings, {f"http://[::1]:{settings.port}": ("decode", None)})
    pods.found.clear()
    step_until(enlisting, settings, {})


def test_a_router_that_began_anew_has_the_pods_again_when_it_was_given_them_before(settings: EnlistSettings) -> None:
    enlisting = enlist.Enlisting(settings, Pods())
    step_until(enlisting, settings, workers_of_both(settings))
    nobody = Pods()
    nobody.found.clear()
    step_until(enlist.Enlisting(settings, nobody), settings, {})
    step_until(enlisting, settings, workers_of_both(settings))


def test_pods_are_left_out_when_they_are_no_engines_or_have_no_address(settings: EnlistSettings) -> None:
    pods = Pods()
    without_address = pod(DECODE, "decode")
    del without_address["status"]["podIP"]
    other = pod(DECODE, "router")
    bare: Object = {"metadata": {}, "status": {}}
    worker = pod(DECODE, "decode", labels={"etcd-pd/role": "decode", enlist.PLACE: "1"})
    pods.found = [without_address, other, bare, worker, pod(PREFILL, "prefill", annotations={})]
    step_until(enlist.Enlisting(settings, pods), settings, {f"http://[::1]:{settings.port}": ("prefill", None)})


def test_workers_stay_and_one_line_says_why_when_kubernetes_does_not_answer(
    settings: EnlistSettings, caplog: pytest.LogCaptureFixture
) -> None:
    pods = Pods()
    step_until(enlist.Enlisting(settings, pods), settings, workers_of_both(settings))
    looks = iter([KubernetesError("GET pods: 503", 503), KubernetesError("GET pods: 503", 503)])

    class Away(Pods):
        def list(self, kind: str, selector: str) -> list[Object]:
            raise next(looks, KeyboardInterrupt())

    with pytest.raises(KeyboardInterrupt):
        enlist.Enlisting(settings, Away()).run()
    assert caplog.text.count("GET pods: 503") == 1
    assert workers(settings) == workers_of_both(settings)


def test_one_line_says_why_when_the_router_does_not_answer(
    settings: EnlistSettings, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere = EnlistSettings(selector=SELECTOR, router=f"http://127.0.0.1:{free_port()}", poll_seconds=0.01)
    looks = iter(list[list[Object]]([[], [], []]))

    class Counted(Pods):
        def list(self, kind: str, selector: str) -> list[Object]:
            try:
                return next(looks)
            except StopIteration:
                raise KeyboardInterrupt from None

    with pytest.raises(KeyboardInterrupt):
        enlist.Enlisting(nowhere, Counted()).run()
    assert caplog.text.count("Connection refused") == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("selector", ""), ("port", 0), ("router", "https://localhost:8000"), ("router", "http://localhost:8000/x")],
)
def test_settings_are_refused_by_name_when_they_cannot_be(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        EnlistSettings(**{"selector": SELECTOR, field: value})
    assert refused.value.field == field


def test_the_router_finds_nobody_by_itself_when_a_sidecar_does() -> None:
    objects = Objects(template(values={"router": {"discovery": "sidecar"}}))
    router, sidecar = objects.one("Deployment", "router")["spec"]["template"]["spec"]["containers"]
    assert not any("discovery" in word or "selector" in word for word in router["args"])
    assert sidecar["command"] == ["etcd-pd", "enlist-engines"]
    engines = objects.one("Deployment", "prefill")["spec"]["template"]["metadata"]["labels"]
    selector = next(each["value"] for each in sidecar["env"] if each["name"] == "ETCD_PD_SELECTOR")
    for word in selector.split(","):
        key, _, value = word.partition("=")
        assert key in engines and value in ("", engines[key])
