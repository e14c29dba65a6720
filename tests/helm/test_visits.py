"""The probes and the drain that the chart's pods run, against a real agent."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from etcd_pd import Client, connect
from etcd_pd.client.drain import drain, main as drain_main
from etcd_pd.client.events import Announced, Registered, Rejected
from etcd_pd.client.health import main as probe
from etcd_pd.errors import AgentUnavailable, EtcdPDError, RankDraining
from etcd_pd.kubernetes import round_trip
from etcd_pd.wire.values import Rank, Topology
from tests.helm.chart import ROOT, run
from tests.support.children import end
from tests.support.etcd_server import EtcdServer
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.helm, pytest.mark.integration]


@contextmanager
def agent(path: Path, endpoint: str, root: str) -> Iterator[Path]:
    """An agent process."""
    command = [sys.executable, "-m", "etcd_pd", "agent", "--socket", str(path), "--etcd", endpoint, "--root", root]
    with open(path.with_suffix(".log"), "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until(path.exists, "the agent listens")
        yield path
    finally:
        end(process)


@pytest.fixture
def node(etcd: EtcdServer, root: str, tmp_path: Path) -> Iterator[Path]:
    """The socket of an agent that has seen etcd."""
    with agent(tmp_path / "agent.sock", etcd.endpoint, root) as path:
        yield path


def passes(word: str, path: Path) -> bool:
    """Whether a probe passes, run as kubelet does."""
    environ = {**os.environ, "ETCD_PD_SOCKET": str(path)}
    return (
        subprocess.run([sys.executable, "-m", "etcd_pd.client.health", word], env=environ, check=False).returncode == 0
    )


def test_probes_of_an_agent_without_etcd(tmp_path: Path, root: str) -> None:
    with agent(tmp_path / "agent.sock", "http://127.0.0.1:9", root) as path:
        assert [passes(word, path) for word in ("started", "alive", "ready")] == [True, True, False]
    assert [passes(word, path) for word in ("started", "alive", "ready")] == [False] * 3


def test_an_agent_that_has_seen_etcd_stays_ready_while_etcd_is_down(
    fresh_etcd: EtcdServer, root: str, tmp_path: Path
) -> None:
    with agent(tmp_path / "agent.sock", fresh_etcd.endpoint, root) as path:
        wait_until(lambda: passes("ready", path), "ready")
        fresh_etcd.stop()
        with connect(str(path)) as client:

            def view() -> str:
                client.decode.poll()
                return client.decode.view

            wait_until(lambda: view() == "stale", "the agent notices")
        assert [passes(word, path) for word in ("alive", "ready")] == [True, True]


def test_a_probe_of_a_stopped_agent_fails_in_time(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etcd_pd.client.health.TIMEOUT_SECONDS", 0.3)
    monkeypatch.setenv("ETCD_PD_SOCKET", str(node))
    pid = _listener(node)
    os.kill(pid, signal.SIGSTOP)
    try:
        assert probe(["started"]) == 0, "the kernel still takes connections"
        assert probe(["alive"]) == 1
    finally:
        os.kill(pid, signal.SIGCONT)
    assert probe(["alive"]) == 0
    assert probe(["unheard-of"]) == 2


def _listener(path: Path) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as visitor:
        visitor.connect(str(path))
        return int(struct.unpack("3i", visitor.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])


def test_a_node_is_drained_when_its_last_room_has_ended(node: Path) -> None:
    with connect(str(node)) as client:
        _announce(client)
        client.prefill.register(1)
        _until(client, Registered)
        finished: list[float] = []
        drainer = threading.Thread(target=lambda: finished.append(drain(str(node), 30)))
        drainer.start()
        wait_until(lambda: isinstance(_register(client, 2), RankDraining), "new rooms are refused")
        assert not finished
        client.prefill.release(1)
        drainer.join(10)
        assert len(finished) == 1


def test_a_node_with_a_waiting_decode_is_not_drained(node: Path) -> None:
    with connect(str(node)) as client:
        client.decode.want("nobody", 1, timeout=30)
        with pytest.raises(AgentUnavailable):
            drain(str(node), 0.5)
        client.decode.done("nobody", 1)
        client.decode.poll()
        assert drain(str(node), 10) < 10


def test_draining_ends_well_whatever_happens(node: Path, capfd: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    assert drain_main(["--socket", str(node), "--delay-seconds", "0.3", "--timeout-seconds", "5"]) == 0
    assert time.monotonic() - started >= 0.3
    assert "drained in" in capfd.readouterr().err
    assert drain_main(["--socket", "/nowhere/agent.sock"]) == 0
    assert "not drained" in capfd.readouterr().err


def test_rooms_go_from_one_agent_to_the_other(
    etcd: EtcdServer, root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        agent(tmp_path / "p.sock", etcd.endpoint, root) as prefill,
        agent(tmp_path / "d.sock", etcd.endpoint, root) as decode,
    ):
        assert round_trip.main([str(prefill), str(decode)]) == 0
    said = capsys.readouterr().out
    assert said.count("dp_rank=1") == round_trip.ROOMS
    assert "ok: 10 rooms" in said


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, b'{"meta_info": {"completion_tokens": 8, "prompt_tokens": 5}}', ""),
        (503, b'{"error": "no worker"}', "503 .*no worker"),
        (200, b"[]", "no answer of an engine"),
        (200, b"<html>", "no answer of an engine"),
    ],
)
def test_the_request_of_helm_test_says_why_when_it_fails(status: int, body: bytes, said: str) -> None:
    with _answers(status, body) as url:
        if said:
            with pytest.raises(EtcdPDError, match=said):
                round_trip.ask(url)
        else:
            assert round_trip.ask(url) == "8 tokens for 5"


def test_the_request_of_helm_test_says_why_when_nobody_listens() -> None:
    with pytest.raises(EtcdPDError, match="no answer of an engine"):
        round_trip.ask("http://127.0.0.1:9")


@contextmanager
def _answers(status: int, body: bytes) -> Iterator[str]:
    """A server that says the same to everybody."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_the_copied_client_needs_nothing_and_brings_its_metadata(tmp_path: Path) -> None:
    """From an installed package, as in the image: an editable install has no files to copy."""
    source, site, copied = tmp_path / "source", tmp_path / "site", tmp_path / "copied"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "etcd_pd", source / "etcd_pd", ignore=shutil.ignore_patterns("__pycache__"))
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    done = run(*pip, "install", "--no-deps", "--target", site, source)
    assert done.returncode == 0, done.stderr
    done = run("env", f"PYTHONPATH={site}", sys.executable, "-P", "-S", "-m", "etcd_pd.kubernetes.client_copy", copied)
    assert done.returncode == 0, done.stderr
    use = (
        "import etcd_pd, etcd_pd.client.drain; from importlib.metadata import distribution as found;"
        "print(etcd_pd.__file__, *(point.name for point in found('etcd-pd').entry_points))"
    )
    done = run("env", f"PYTHONPATH={copied}", sys.executable, "-P", "-S", "-c", use)
    assert done.returncode == 0, done.stderr
    where, *names = done.stdout.split()
    assert where == str(copied / "etcd_pd" / "__init__.py")
    assert "etcd-pd" in names


def _announce(client: Client) -> None:
    topology = Topology(dp=1)
    client.prefill.announce(
        "p-0", rank=Rank(0), topology=topology, launch_id="1", addresses=["p:1"], ip="127.0.0.1", port=9
    )
    _until(client, Announced)


def _until(client: Client, kind: type) -> None:
    wait_until(lambda: any(isinstance(event, kind) for event in client.prefill.poll()), kind.__name__)


def _register(client: Client, room: int) -> Exception | None:
    client.prefill.register(room)
    found: list[Exception] = []

    def answered() -> bool:
        events = client.prefill.poll()
        found.extend(event.error for event in events if isinstance(event, Rejected) and event.room == room)
        return bool(found) or any(isinstance(event, Registered) for event in events)

    wait_until(answered, f"room {room} is answered")
    if not found:
        client.prefill.release(room)
    return found[0] if found else None
