"""SGLang's processes, agents and gateways for the tests of this folder. Made by ``make test-sglang``."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.agents import AgentProcess
from tests.support.children import end
from tests.support.etcd_server import EtcdServer
from tests.support.ports import free_port
from tests.support.waiting import wait_until

REPOSITORY = Path(__file__).parents[2]
PYTHON = REPOSITORY / ".venv-sglang" / "bin" / "python"


class PeerError(Exception):
    """SGLang raised something."""


class Peer:
    """One process that plays SGLang; see peer.py for what it can do."""

    def __init__(self, path: str, environment: dict[str, str]) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(40)
        self._socket.connect(path)
        self._lines = self._socket.makefile("rw")
        self._write(environment)
        self.pid: int = self("pid")

    def __call__(self, do: str, **arguments: Any) -> Any:
        self._write({"do": do, **arguments})
        line = self._lines.readline()
        if not line:
            raise PeerError("the process ended")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer["result"]

    def kill(self) -> None:
        """SIGKILL, as the kernel's out-of-memory killer does; afterwards its port is free."""
        descriptor = os.pidfd_open(self.pid)  # another process forked it, which alone could wait for it
        try:
            os.kill(self.pid, signal.SIGKILL)
            assert select.select([descriptor], [], [], 10.0)[0], f"pid {self.pid} is still there"
        finally:
            os.close(descriptor)
        self.close()

    def close(self) -> None:
        self._lines.close()
        self._socket.close()

    def _write(self, message: dict[str, Any]) -> None:
        self._lines.write(json.dumps(message) + "\n")
        self._lines.flush()


class Sglang:
    """Makes peers, and ends them after the test."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._peers: list[Peer] = []

    def start(self, **environment: str) -> Peer:
        """One process with these environment variables beside the tests' own."""
        peer = Peer(self._path, environment)
        self._peers.append(peer)
        return peer

    def server(self, port: int) -> Peer:
        """SGLang's own bootstrap server."""
        peer = self.start()
        peer("serve", host="127.0.0.1", port=port)
        wait_until(lambda: healthy(port), "SGLang's bootstrap server answers")
        return peer

    def prefill(self, port: int, dp_rank: int = 0, dp_size: int = 1, *, plugin: bool = False, **options: Any) -> Peer:
        """A prefill scheduler process that has registered; ``port`` is its bootstrap port.

        Options: ``environment``, ``parallel`` and ``disagg`` for the configuration, ``page_size``,
        ``method`` (load balance), ``plain_dp`` (replicas instead of DP attention).
        """
        peer = self.start(**options.get("environment", {}))
        if plugin:
            peer("load_plugins")
        parallel = {"load_balance_method": options.get("method", "round_robin")}
        if options.get("plain_dp"):
            parallel["dp_size"] = dp_size
        else:
            parallel |= {"attn_dp_size": dp_size, "attn_dp_rank": dp_rank}
        peer(
            "configure",
            parallel={**parallel, **options.get("parallel", {})},
            serving={"host": options.get("host", "127.0.0.1"), "port": options.get("http_port", 30000)},
            disagg={"disaggregation_bootstrap_port": port},
        )
        peer(
            "prefill", system_dp_rank=dp_rank if options.get("plain_dp") else 0, page_size=options.get("page_size", 64)
        )
        return peer

    def decode(self, *, plugin: bool = False, environment: dict[str, str] | None = None, page_size: int = 64) -> Peer:
        """A decode scheduler process."""
        peer = self.start(**(environment or {}))
        if plugin:
            peer("load_plugins")
        serving = {"host": "127.0.0.1", "port": 31000}
        peer("configure", parallel={}, serving=serving, disagg={"disaggregation_bootstrap_port": 0})
        peer("decode", page_size=page_size)
        return peer

    def close(self) -> None:
        for peer in self._peers:
            peer.close()


@pytest.fixture(scope="session")
def _sglang_process() -> Iterator[str]:
    if not PYTHON.exists():
        pytest.fail("SGLang's environment is missing: make sglang-env")
    with tempfile.TemporaryDirectory(prefix="etcd-pd-sglang-") as directory:
        path, log = str(Path(directory, "peer.sock")), Path(directory, "log")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_PD_")}
        with log.open("wb") as output:
            process = subprocess.Popen(
                [PYTHON, "-m", "tests.sglang.peer", path],
                cwd=REPOSITORY,
                env=environment,
                stdout=output,
                stderr=output,
            )
        try:
            wait_until(lambda: _listens(path, process, log), "SGLang's code is loaded", timeout=55, every=0.1)
            yield path
        finally:
            end(process)


def _listens(path: str, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    return Path(path).exists()


@pytest.fixture
def sglang(_sglang_process: str) -> Iterator[Sglang]:
    """SGLang's own code, in processes of its own environment."""
    made = Sglang(_sglang_process)
    yield made
    made.close()


def healthy(port: int, path: str = "/health") -> bool:
    """Whether an HTTP server answers there."""
    try:
        return requests.get(f"http://127.0.0.1:{port}{path}", timeout=2).status_code == 200
    except requests.RequestException:
        return False


@pytest.fixture
def agent(etcd: EtcdServer, root: str) -> Iterator[AgentProcess]:
    """An agent on the prefill's node."""
    with AgentProcess(etcd.endpoint, root, "prefill-agent", "--session-ttl-seconds=5") as process:
        yield process


@pytest.fixture
def decode_agent(etcd: EtcdServer, root: str) -> Iterator[AgentProcess]:
    """An agent on the decode's node."""
    with AgentProcess(etcd.endpoint, root, "decode-agent") as process:
        yield process


class GatewayProcess:
    """``etcd-pd gateway`` beside a prefill."""

    def __init__(self, agent: AgentProcess, instance: str, port: int, *options: str) -> None:
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        self._scheme = "https" if any("cert-file" in option for option in options) else "http"
        self._log = Path(agent.socket_path).with_name(f"gateway-{port}.log")
        self._command = [sys.executable, "-m", "etcd_pd", "gateway", "--instance", instance]
        self._command += ["--listen", f"127.0.0.1:{port}", "--socket", agent.socket_path, *options]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)
        wait_until(self._answers, "the gateway answers", timeout=20)

    def stop(self, number: int = signal.SIGTERM) -> None:
        assert self.process is not None
        end(self.process, number)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def _answers(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.log
        try:
            requests.get(f"{self._scheme}://127.0.0.1:{self.port}/health", timeout=2)
        except requests.exceptions.SSLError:
            return True
        except requests.RequestException:
            return False
        return True


def resolved(decode: Peer, room: int, timeout: float = 10) -> tuple[str, int | None]:
    """Status and rank of a room at decode, once it has a rank or has failed."""

    def look() -> list[Any] | None:
        found: list[Any] = decode("step")[str(room)]
        return found if found[0] != "Bootstrapping" else None

    status, rank = wait_until(look, f"room {room} is resolved; {decode('log')}", timeout)
    return status, rank


MakeGateway = Callable[..., GatewayProcess]


@pytest.fixture
def make_gateway(agent: AgentProcess) -> Iterator[MakeGateway]:
    """Call it for a running gateway: ``make_gateway("prefill-0", "--flag=value", port=..., agent=...)``."""
    made: list[GatewayProcess] = []

    def make(instance: str, *options: str, port: int = 0, at: AgentProcess = agent) -> GatewayProcess:
        gateway = GatewayProcess(at, instance, port or free_port(), *options)
        made.append(gateway)
        gateway.start()
        return gateway

    yield make
    for gateway in made:
        gateway.stop()


@pytest.fixture
def living_port() -> Iterator[Callable[[], int]]:
    """Call it for a port on which a process accepts connections, as a living rank's does."""
    listeners: list[socket.socket] = []

    def make() -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        port: int = listener.getsockname()[1]
        return port

    yield make
    for listener in listeners:
        listener.close()
