"""A prefill and two decode instances with an agent each, under a load whose every request is counted."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.request import urlopen

import aiohttp
import psutil

from etcd_pd.reference.local.probe import http_ok
from etcd_pd.reference.local.process import Process
from tests.support.agents import AgentProcess
from tests.support.ports import free_port
from tests.support.waiting import wait_until

PREFILL, DECODES = "prefill-0", ("decode-0", "decode-1")
NAMES = (PREFILL, *DECODES)
#: Long enough that some are always being computed.
PROMPTS = [f"{word}, said the river, and went on. " * 80 for word in ("One", "Two", "Three", "Five", "Eight", "Ten")]
#: Requests a second: two cores serve them with time to spare.
RATE = 10.0
#: How long a client waits: a leg that takes longer has hung.
CLIENT_SECONDS = 70.0


@dataclass
class Reply:
    """What one leg of a request answered.

    Attributes:
        status: HTTP status; 0 where the connection was refused, reset or cut.
        error: the error object, empty with a result.
        tokens: the result.
        retry_after: what the answer says of when to ask again.
    """

    instance: str
    prompt: str
    started: float
    ended: float
    status: int = 0
    error: dict[str, Any] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    retry_after: str = ""

    @property
    def kind(self) -> str:
        """``ok``, the type of the error, or what became of the connection."""
        return "ok" if self.status == 200 else str(self.error.get("type", "no answer"))


class Fleet:
    """Use it as a context manager; every part can be harmed and started again.

    Args:
        directory: for logs.
        endpoint: etcd's.
        root: the cell.
        agent_flags: more settings of the agents.
    """

    def __init__(self, directory: Path, endpoint: str, root: str, *agent_flags: str) -> None:
        self._directory = directory
        self._stack = ExitStack()
        flags = ("--metrics-listen=", *agent_flags)
        self.agents = {name: AgentProcess(endpoint, root, f"agent-{name}", *flags) for name in NAMES}
        self.engines: dict[str, Process] = {}
        self._bootstrap_port = free_port()
        self.urls = {name: f"http://127.0.0.1:{free_port()}" for name in NAMES}
        self.dp_size = 2

    def __enter__(self) -> Fleet:
        try:
            for agent in self.agents.values():
                self._stack.enter_context(agent)
            self.mend()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        for process in self.engines.values():
            for each in family(process.pid) if process.exit_status is None else []:
                each.resume()
            process.stop()
        self._stack.close()

    def start(self, name: str) -> None:
        """Start an engine, again where it has ended."""
        role = name.partition("-")[0]
        command = [sys.executable, "-m", "etcd_pd", role, "--instance", name, "--host", "127.0.0.1", "--threads", "1"]
        command += ["--port", self.urls[name].rpartition(":")[2], "--socket", self.agents[name].socket_path]
        if role == "prefill":
            command += ["--dp-size", str(self.dp_size), "--bootstrap-port", str(self._bootstrap_port)]
        self.engines[name] = Process(name, command, self._directory / f"{name}.log")

    def mend(self) -> None:
        """Start what has ended, and wait until requests are served by every instance."""
        for agent in self.agents.values():
            if agent.process.poll() is not None:
                agent.start()
        for name in NAMES:
            if name not in self.engines or self.engines[name].exit_status is not None:
                self.start(name)
        for name in NAMES:
            self.engines[name].wait_until(lambda name=name: http_ok(f"{self.urls[name]}/health"), 60.0)  # type: ignore[misc]
        wait_until(lambda: asyncio.run(self._serve_each()), "every instance serves", 60.0, every=0.2)

    def restart(self, name: str, dp_size: int = 2) -> None:
        """Start an engine anew, a prefill with so many ranks."""
        self.engines[name].stop()
        self.dp_size = dp_size
        self.start(name)
        self.mend()

    def stop_host(self, name: str) -> list[psutil.Process]:
        """Freeze an engine, its ranks and its agent: their sockets stay open, and nothing answers."""
        frozen = [*family(self.engines[name].pid), psutil.Process(self.agents[name].process.pid)]
        for process in frozen:
            process.suspend()
        return frozen

    def rank_pids(self, name: str) -> list[int]:
        """The processes of an engine's ranks."""
        with urlopen(f"{self.urls[name]}/server_info", timeout=5) as answer:
            return [rank["pid"] for rank in json.load(answer)["etcd_pd"]["ranks"]]

    async def _serve_each(self) -> bool:
        async with aiohttp.ClientSession() as session:
            replies = [await self.send(session, decode, PROMPTS[0]) for decode in DECODES for _ in range(self.dp_size)]
        return all(reply.status == 200 for both in replies for reply in both)

    async def send(self, session: aiohttp.ClientSession, decode: str, prompt: str) -> tuple[Reply, Reply]:
        """One request to both legs at once, as a router sends it; neither is given up for the other's sake."""
        room = random.getrandbits(63)
        body: dict[str, Any] = {"text": prompt, "sampling_params": {"max_new_tokens": 6, "temperature": 0}}
        body |= {"bootstrap_host": "127.0.0.1", "bootstrap_port": self._bootstrap_port, "bootstrap_room": room}
        legs = (self._leg(session, name, prompt, body) for name in (PREFILL, decode))
        prefilled, decoded = await asyncio.gather(*legs)
        return prefilled, decoded

    async def _leg(self, session: aiohttp.ClientSession, name: str, prompt: str, body: dict[str, Any]) -> Reply:
        started = time.monotonic()
        headers = {"X-Request-ID": str(body["bootstrap_room"])}
        try:
            async with session.post(f"{self.urls[name]}/generate", json=body, headers=headers) as response:
                found = await response.json()
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError):
            return Reply(name, prompt, started, time.monotonic())
        reply = Reply(name, prompt, started, time.monotonic(), response.status)
        reply.retry_after = response.headers.get("Retry-After", "")
        if response.status == 200:
            reply.tokens = found["output_ids"]
        else:
            reply.error = found["error"]
        return reply


class Load:
    """Requests at a steady rate while it is entered; leaving it waits for every answer.

    Attributes:
        replies: one for each leg, in the order of their ends.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.replies: list[Reply] = []

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    async def _run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=CLIENT_SECONDS)
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session, asyncio.TaskGroup() as sent:
            for decode, prompt in zip(itertools.cycle(DECODES), itertools.cycle(PROMPTS)):
                if self._over.is_set():
                    return
                sent.create_task(self._send(session, decode, prompt))
                await asyncio.sleep(1 / RATE)

    async def _send(self, session: aiohttp.ClientSession, decode: str, prompt: str) -> None:
        self.replies += await self._fleet.send(session, decode, prompt)


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it started."""
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


@contextmanager
def frozen(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """While this is entered they do not run."""
    try:
        yield
    finally:
        for process in processes:
            process.resume()


def summary(replies: Sequence[Reply]) -> str:
    """How many ended how."""
    counts = Counter(reply.kind for reply in replies)
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common())


def terminate(process: psutil.Process, number: int = signal.SIGKILL) -> None:
    """Signal a process, and wait until it is gone."""
    process.send_signal(number)
    process.wait(10)
