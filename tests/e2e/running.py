"""``etcd-pd up`` as a process of its own, and requests to what it started."""

from __future__ import annotations

import getpass
import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil

from tests.support.children import end
from tests.support.etcdctl import EtcdCtl, KeyValue
from tests.support.waiting import wait_until

START_SECONDS = 120.0
STOP_SECONDS = 60.0
REQUEST_SECONDS = 60.0


@dataclass(frozen=True)
class Reply:
    """What an HTTP client got."""

    status: int
    body: dict[str, Any]

    @property
    def told(self) -> dict[str, Any]:
        """Decode's account of how it found the KV cache."""
        assert self.status == 200, self
        found: dict[str, Any] = self.body["meta_info"]["etcd_pd"]
        return found

    @property
    def error(self) -> str:
        """The type of the error."""
        return str(self.body["error"]["type"])


class RunningStack:
    """A stack that is up.

    Attributes:
        process: the ``etcd-pd up`` process.
        run_dir: where each of its processes has its log.
        output: what it has printed goes to this file.
        scratch: its directory for temporary files.
        environ: what another terminal of the same user has.
    """

    def __init__(self, run_dir: Path, *flags: str) -> None:
        self.run_dir = run_dir
        self.output = run_dir / "up.log"
        # not under run_dir: sockets lie in it, and their paths have to be short
        self.scratch = Path(tempfile.mkdtemp(prefix="e2e-"))
        command = [sys.executable, "-m", "etcd_pd", "up", "--run-dir", str(run_dir), *flags]
        # a runtime directory of its own: one user may run one stack
        self.environ = {**os.environ, "TMPDIR": str(self.scratch), "XDG_RUNTIME_DIR": str(self.scratch)}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=self.environ)
        try:
            wait_until(lambda: self._started(run_dir), "the stack is up", START_SECONDS, every=0.1)
        except BaseException:
            self.stop()
            raise
        self._described: dict[str, Any] = json.loads((run_dir / "stack.json").read_text())
        self.ctl = EtcdCtl(self._described["etcd"][0])
        self.rooms_prefix = f"{self._described['root']}/v1/rooms/"

    def _started(self, run_dir: Path) -> bool:
        assert self.process.poll() is None, self.output.read_text()
        return (run_dir / "stack.json").exists() and "Ctrl-C stops everything" in self.output.read_text()

    # --- where things are

    @property
    def router(self) -> str:
        """The router's URL."""
        return str(self._described["router"])

    @property
    def prefill(self) -> str:
        """The prefill instance's URL."""
        return str(self._described["prefill"])

    @property
    def decodes(self) -> list[str]:
        """The decode instances' URLs."""
        return list(self._described["decode"].values())

    @property
    def sockets(self) -> list[Path]:
        """The agents' sockets."""
        return [Path(path) for path in self._described["sockets"].values()]

    @property
    def bootstrap(self) -> dict[str, Any]:
        """What the router adds to a request so that decode finds the prefill instance."""
        return {"bootstrap_host": "127.0.0.1", "bootstrap_port": self._described["bootstrap_port"]}

    def metrics(self, name: str) -> str:
        """Where a service answers Prometheus, for example ``agent-prefill-0``."""
        return str(self._described["metrics"][name])

    def pid(self, name: str) -> int:
        """Process id of a service, for example ``decode-0``."""
        return int(self._described["processes"][name])

    def rank_pids(self) -> dict[int, int]:
        """Process id of each prefill rank."""
        return {rank["dp_rank"]: rank["pid"] for rank in ranks_of(self.prefill)}

    def descendants(self) -> list[psutil.Process]:
        """Every process of the stack."""
        return psutil.Process(self.process.pid).children(recursive=True)

    # --- what lies in etcd

    def rooms(self) -> dict[int, KeyValue]:
        """The room keys, by room."""
        return {int(kv.key.rpartition("/")[2]): kv for kv in self.ctl.get_prefix(self.rooms_prefix)}

    def show(self, what: str) -> dict[str, Any]:
        """What ``etcd-pd rooms`` or ``etcd-pd instances`` prints."""
        command = [sys.executable, "-m", "etcd_pd", what, "--etcd", self.ctl.endpoint, "--output", "json"]
        found: dict[str, Any] = json.loads(subprocess.check_output(command, timeout=30))
        return found

    def wait_for_rooms(self, count: int) -> dict[int, KeyValue]:
        """The room keys, when there are so many."""
        return wait_until(lambda: found if len(found := self.rooms()) == count else None, f"{count} rooms in etcd", 30)

    def wait_until_empty(self) -> None:
        """Return when no room key is left."""
        wait_until(lambda: not self.rooms(), "no room is left in etcd")

    # --- stopping

    @contextmanager
    def decodes_frozen(self) -> Iterator[None]:
        """While this is entered no decode rank fetches anything, so every room stays in flight."""
        decodes = [psutil.Process(rank["pid"]) for url in self.decodes for rank in ranks_of(url)]
        for decode in decodes:
            decode.suspend()
        try:
            yield
        finally:
            for decode in decodes:
                decode.resume()

    def stop(self, signum: signal.Signals = signal.SIGINT) -> int:
        """Stop it as a person would; its exit status."""
        try:
            return end(self.process, signum, STOP_SECONDS)
        except AssertionError as late:
            raise AssertionError(f"{late}\n{self.output.read_text()}") from None

    def left_behind(self) -> list[Path]:
        """What lies in its directory for temporary files, but for the cache that torch makes for each user."""
        return [path for path in self.scratch.rglob("*") if not path.is_relative_to(torch_cache(self.scratch))]


def torch_cache(directory: Path) -> Path:
    """Where torch keeps compiled code."""
    return directory / f"torchinductor_{getpass.getuser()}"


def generation(prompt: str | list[int], max_new_tokens: int = 8, **more: Any) -> dict[str, Any]:
    """The body of a /generate request."""
    prompt_field = "text" if isinstance(prompt, str) else "input_ids"
    return {prompt_field: prompt, "sampling_params": {"max_new_tokens": max_new_tokens, "temperature": 0}, **more}


def post(url: str, body: dict[str, Any], headers: Mapping[str, str] = MappingProxyType({})) -> Reply:
    """One JSON request."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=REQUEST_SECONDS) as answer:
            return Reply(answer.status, json.load(answer))
    except urllib.error.HTTPError as refused:
        with refused:
            return Reply(refused.code, json.load(refused))


def get_json(url: str) -> dict[str, Any]:
    """One GET."""
    with urllib.request.urlopen(url, timeout=REQUEST_SECONDS) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def ranks_of(url: str) -> list[dict[str, Any]]:
    """What an instance says of its ranks."""
    found: list[dict[str, Any]] = get_json(f"{url}/server_info")["etcd_pd"]["ranks"]
    return found


def post_all(pool: ThreadPoolExecutor, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[Future[Reply]]:
    """All requests at once, as (URL, body)."""
    return [pool.submit(post, url, body) for url, body in requests]
