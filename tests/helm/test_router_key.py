"""The key that the router asks for, from a Secret: in no argument, no log and no other container."""

from __future__ import annotations

import os
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from etcd_pd.kubernetes.enlist import Enlisting
from etcd_pd.kubernetes.round_trip import ask
from etcd_pd.kubernetes.settings import EnlistSettings
from etcd_pd.reference.local.probe import http_ok
from etcd_pd.reference.local.process import free_ports
from tests.helm.chart import Object, Objects, container, containers, notes, rendered, template
from tests.support.children import child
from tests.support.waiting import wait_until

pytestmark = pytest.mark.helm

KEY = "a-key-of-this-test"
VALUES: Object = {"router": {"apiKey": {"secretName": "llm-key", "secretKey": "key"}}}
REFERENCE: Object = {"name": "ROUTER_API_KEY", "valueFrom": {"secretKeyRef": {"name": "llm-key", "key": "key"}}}


def router(objects: Objects) -> Object:
    """The router's container."""
    return container(objects.one("Deployment", "router")["spec"]["template"], "router")


def test_the_router_and_helm_test_alone_have_the_key_when_a_secret_has_one() -> None:
    objects = Objects(template("cpu", VALUES))
    named = {
        where
        for where, pod in objects.pods()
        for each in containers(pod)
        if any(variable["name"] == REFERENCE["name"] for variable in each.get("env", ()))
    }
    assert {where.rpartition("-")[2] for where in named} == {"router", "test"}
    assert REFERENCE in router(objects)["env"]
    assert "get secret llm-key -o go-template='{{ index .data \"key\" | base64decode }}'" in notes(VALUES)


def test_nothing_of_a_key_is_rendered_when_none_is_given() -> None:
    text = rendered("cpu").text
    assert REFERENCE["name"] not in text and "api-key" not in text
    assert router(rendered("cpu"))["command"] == ["sglang-router", "launch"]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[str, int, Path]]:
    """The router by the chart's command, with fewer arguments: its URL, its process, and what it has logged."""
    command = router(Objects(template("cpu", VALUES)))["command"]
    port, metrics, prefill, decode = free_ports(4)
    loopback = [f"--host=127.0.0.1 --port={port} --prometheus-host=127.0.0.1 --prometheus-port={metrics}"]
    pair = [f"--pd-disaggregation --prefill http://127.0.0.1:{prefill} 8998 --decode http://127.0.0.1:{decode}"]
    words = [word for flags in (*loopback, *pair) for word in flags.split()]
    environ = {**os.environ, "ROUTER_API_KEY": KEY, "HF_HUB_OFFLINE": "1", "RUST_LOG": "smg=info"}
    with (tmp_path / "log").open("wb") as log:
        arguments = [sys.executable, *command[1:], *words]
        with child(arguments, stdout=log, stderr=log, env=environ) as process:
            url = f"http://127.0.0.1:{port}"
            wait_until(lambda: http_ok(f"{url}/liveness"), "the router answers without a key to a probe", 60)
            yield url, process.pid, tmp_path / "log"


def status(url: str, key: str = "") -> int:
    """Of an answer to a request for tokens."""
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, b'{"text": "a"}', headers), timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code


def test_requests_need_the_key_and_no_line_shows_it_when_the_charts_router_has_one(
    running: tuple[str, int, Path],
) -> None:
    url, pid, log = running
    assert [status(f"{url}/generate", key) for key in ("", "another", KEY)] == [401, 401, 503], "503: it has no engine"
    assert KEY not in Path(f"/proc/{pid}/cmdline").read_text()
    assert log.stat().st_size and KEY not in log.read_text()


def test_a_sidecar_gives_the_router_its_workers_when_it_asks_for_a_key(running: tuple[str, int, Path]) -> None:
    class Nobody:
        def list(self, kind: str, selector: str) -> list[Object]:
            return []

    settings = EnlistSettings(selector="a=b", router=running[0])
    Enlisting(settings, Nobody(), KEY).step()
    with pytest.raises(urllib.error.HTTPError, match="401"):
        Enlisting(settings, Nobody()).step()
    values = {"router": {**VALUES["router"], "discovery": "sidecar"}}
    pod = Objects(template("cpu", values)).one("Deployment", "router")["spec"]["template"]
    assert REFERENCE in container(pod, "enlist")["env"]


def test_helm_tests_request_carries_the_key_when_there_is_one() -> None:
    seen: list[str | None] = []

    class Router(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(self.headers["Authorization"])
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"meta_info": {"completion_tokens": 8, "prompt_tokens": 5}}')

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing is logged."""

    with HTTPServer(("127.0.0.1", 0), Router) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            for key in (KEY, ""):
                assert ask(f"http://127.0.0.1:{server.server_port}", key) == "8 tokens for 5"
        finally:
            server.shutdown()
            thread.join()
    assert seen == [f"Bearer {KEY}", None]
