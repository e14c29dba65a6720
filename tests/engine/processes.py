"""SGLang's own servers as processes, on a CPU and unmodified, and requests to them as the router sends them."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import requests

from tests.support.waiting import wait_until

REPOSITORY = Path(__file__).parents[2]
PYTHON = REPOSITORY / ".venv-sglang" / "bin" / "python"
SHIM = REPOSITORY / "tests" / "engine" / "shim"
MADE = REPOSITORY / "build" / "sglang"

#: How long a server may take until it serves: five processes load SGLang's code on two cores.
START_SECONDS = 240.0

_ENVIRONMENT = {
    "SGLANG_USE_CPU_ENGINE": "1",
    "SGLANG_CPU_OMP_THREADS_BIND": "0|1|0|1",
    "SGLANG_HOST_IP": "127.0.0.1",
    "SGLANG_DISABLE_REQUEST_LOGGING": "true",
    "HOST_IP": "127.0.0.1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "MOONCAKE_PROTOCOL": "tcp",
    "MC_FORCE_TCP": "1",
    "MC_TCP_BIND_ADDRESS": "127.0.0.1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONPATH": str(SHIM),
    "LD_LIBRARY_PATH": str(MADE / "lib"),
}
_ARGUMENTS = (
    *("--model-path", str(MADE / "model"), "--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1"),
    *("--attention-backend", "torch_native", "--disable-cuda-graph", "--max-total-tokens", "8192"),
    *("--max-running-requests", "16", "--context-length", "2048", "--random-seed", "1"),
    *("--skip-server-warmup", "--sleep-on-idle"),
)


class Server:
    """``python -m sglang.launch_server``: use it as a context manager, or start() and stop() it.

    Args:
        name: its log's.
        home: a directory for its log.
        port: where it serves.
        arguments: of its command line.
        environment: beside what the CPU needs.
    """

    def __init__(
        self, name: str, home: Path, port: int, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name, self.port = name, port
        self._log = home / f"{name}.log"
        self._command = [str(PYTHON), "-m", "sglang.launch_server", "--port", str(port), *_ARGUMENTS, *arguments]
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("ETCD_PD_")}
        self._environment = {**inherited, **_ENVIRONMENT, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        self.start()
        self.await_healthy()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def log(self) -> str:
        """All that it has logged."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def start(self) -> None:
        """Start it; await_healthy() says when it serves."""
        if not PYTHON.exists():
            raise AssertionError("SGLang's environment is missing: make .venv-sglang/.ready")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                # not here: a process imports what lies in its own directory before what is installed
                self._command,
                cwd=self._log.parent,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )

    def await_healthy(self) -> None:
        """Wait until it serves."""
        wait_until(self._serves, f"{self.name} serves; see {self._log}", START_SECONDS, every=0.2)

    def _serves(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"{self.name} ended\n{self.log[-6000:]}"
        try:
            return requests.get(f"http://127.0.0.1:{self.port}/health", timeout=10).status_code == 200
        except requests.RequestException:
            return False

    def stop(self) -> None:
        """Kill it with all its processes, as a node's end does."""
        if self._process is None:
            return
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait(30)
        wait_until(lambda: not self._members(), f"all of {self.name} has ended", 30)

    def schedulers(self) -> dict[int, int]:
        """Process ids of the schedulers by DP rank; one without data parallelism is rank 0."""
        found = {}
        for process in self._members():
            try:
                title = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if "scheduler" in title:
                name = title.split("DP", 1)[1] if "DP" in title else "0"
                found[int("".join(letter for letter in name[:3] if letter.isdigit()))] = process.pid
        return found

    def signal_rank(self, rank: int, number: int) -> None:
        """Signal one rank's scheduler."""
        os.kill(self.schedulers()[rank], number)

    def _members(self) -> list[psutil.Process]:
        assert self._process is not None
        group, members = self._process.pid, []
        for process in psutil.process_iter():
            try:
                if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                    members.append(process)
            except (ProcessLookupError, psutil.Error):
                continue
        return members


@dataclass(frozen=True)
class Answer:
    """What a client of one leg got.

    Attributes:
        status: HTTP's; 0 where there was no answer in time.
        text: its body, or what went wrong.
    """

    status: int
    text: str

    @property
    def tokens(self) -> list[int]:
        """The ids that were generated."""
        assert self.status == 200, self
        found: list[int] = json.loads(self.text)["output_ids"]
        return found


def prompt(number: int, words: int = 20) -> str:
    """The prompt of that number, the same each time."""
    draw = random.Random(number)
    return " ".join(f"w{draw.randrange(3, 1024)}" for _ in range(words))


def body(number: int, tokens: int = 8, **more: Any) -> dict[str, Any]:
    """A request for so many tokens."""
    sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
    return {"text": prompt(number), "sampling_params": sampling, **more}


def post(port: int, request: Mapping[str, Any], timeout: float = 60.0) -> Answer:
    """One leg: the answer of one server."""
    try:
        answer = requests.post(f"http://127.0.0.1:{port}/generate", json=dict(request), timeout=timeout)
    except requests.RequestException as exc:
        return Answer(0, repr(exc))
    return Answer(answer.status_code, answer.text)


class Router:
    """Sends a request to both sides at once with the same room, as SGLang's router does.

    Args:
        prefill, decode: where they serve.
        bootstrap_port: prefill's.
    """

    def __init__(self, prefill: int, decode: int, bootstrap_port: int) -> None:
        self._prefill, self._decode, self._bootstrap_port = prefill, decode, bootstrap_port
        self._pool = ThreadPoolExecutor(32, thread_name_prefix="router")

    def send(
        self, number: int, room: int | None = None, timeout: float = 60.0, **more: Any
    ) -> tuple[Future[Answer], Future[Answer]]:
        """The answers to come of prefill and decode."""
        room = random.getrandbits(63) if room is None else room
        return self.send_prefill(number, room, timeout, **more), self.send_decode(number, room, timeout, **more)

    def send_prefill(self, number: int, room: int, timeout: float = 60.0, **more: Any) -> Future[Answer]:
        """The leg of prefill alone."""
        return self._pool.submit(post, self._prefill, self._body(number, room, more), timeout)

    def send_decode(self, number: int, room: int, timeout: float = 60.0, **more: Any) -> Future[Answer]:
        """The leg of decode alone."""
        return self._pool.submit(post, self._decode, self._body(number, room, more), timeout)

    def ask(self, number: int, room: int | None = None, timeout: float = 60.0, **more: Any) -> tuple[Answer, Answer]:
        """The answers of prefill and decode."""
        prefill, decode = self.send(number, room, timeout, **more)
        return prefill.result(), decode.result()

    def close(self) -> None:
        """Give back its threads."""
        self._pool.shutdown()

    def _body(self, number: int, room: int, more: Mapping[str, Any]) -> dict[str, Any]:
        place = {"bootstrap_host": "127.0.0.1", "bootstrap_port": self._bootstrap_port, "bootstrap_room": room}
        return body(number, **{**place, **more})


def fresh(directory: Path) -> Path:
    """That directory, empty."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory
