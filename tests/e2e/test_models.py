"""Two models whose KV caches have nothing in common, behind one router, while the fleets roll from one to the other."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import pytest

from etcd_pd.reference.engine import tiny
from etcd_pd.reference.local.embedded import EmbeddedEtcd
from etcd_pd.reference.local.probe import http_ok
from etcd_pd.reference.local.process import Process, free_ports
from tests.kubernetes.load import HANGS, NEW_TOKENS, TEXTS, Answer, Load
from tests.support.agents import AgentProcess
from tests.support.continuations import continue_texts, make_other_model
from tests.support.waiting import wait_until

from .running import Reply, generation, post_all

HOST = "127.0.0.1"
NAMES = ("prefill-0", "prefill-1", "decode-0", "decode-1")
START_SECONDS = 120.0


class Cell:
    """Two prefills and two decodes behind SGLang's router, with its retries, as the chart starts it. A context manager.

    Args:
        directory: for logs.
        model: the directory of the model that all of them begin with.
    """

    def __init__(self, directory: Path, model: str) -> None:
        self._directory, self._stack = directory, ExitStack()
        ports = iter(free_ports(len(NAMES) + 4))
        self.urls = {name: f"http://{HOST}:{next(ports)}" for name in NAMES}
        self.bootstrap_ports = {name: next(ports) for name in NAMES[:2]}
        self.router, self._metrics_port = f"http://{HOST}:{next(ports)}", next(ports)
        self._engines: dict[str, Process] = {}
        self._model = model

    def __enter__(self) -> Cell:
        with ExitStack() as stack:
            etcd = stack.enter_context(EmbeddedEtcd.start())
            agents = (AgentProcess(etcd.endpoint, "/models", name, "--metrics-listen=") for name in NAMES)
            self._agents = {name: stack.enter_context(agent) for name, agent in zip(NAMES, agents, strict=True)}
            stack.callback(self._stop)
            self.serve(self._model, *NAMES)
            self._engines["router"] = self._start_router()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    def serve(self, model: str, *names: str) -> None:
        """Start these instances with a model, in place of what they were; return when they take requests."""
        for name in names:
            if name in self._engines:
                self._engines[name].stop()
            self._engines[name] = self._start(name, model)
        for name in names:
            self._engines[name].wait_until(lambda name=name: http_ok(f"{self.urls[name]}/health"), START_SECONDS)  # type: ignore[misc]

    def ask_pair(self, prefill: str, decode: str) -> tuple[Reply, Reply]:
        """What both legs of a request are answered, which a router would send to these two."""
        address = {"bootstrap_host": HOST, "bootstrap_port": self.bootstrap_ports[prefill], "bootstrap_room": 7}
        body = generation(TEXTS[0], NEW_TOKENS, **address)
        with ThreadPoolExecutor(2) as pool:
            asked = post_all(pool, [(f"{self.urls[name]}/generate", body) for name in (prefill, decode)])
        return asked[0].result(), asked[1].result()

    def _start(self, name: str, model: str) -> Process:
        role = name.partition("-")[0]
        command = [sys.executable, "-m", "etcd_pd", role, "--instance", name, "--host", HOST, "--threads", "1"]
        command += ["--port", self.urls[name].rpartition(":")[2], "--socket", self._agents[name].socket_path]
        command += ["--model-path", model]
        if role == "prefill":
            command += ["--dp-size", "2", "--bootstrap-port", str(self.bootstrap_ports[name])]
        return Process(name, command, self._directory / f"{name}.log")

    def _start_router(self) -> Process:
        command = [sys.executable, "-m", "sglang_router.launch_router", "--host", HOST, "--port"]
        command += [self.router.rpartition(":")[2], "--prometheus-host", HOST, "--prometheus-port"]
        command += [str(self._metrics_port), "--log-level", "warn", "--pd-disaggregation", "--policy", "round_robin"]
        # as docs/operations.md says: taking turns on both sides, each request would meet the same pairs again and again
        command += ["--decode-policy", "random"]
        command += ["--health-check-interval-secs", "1", "--cb-timeout-duration-secs", "1"]
        command += ["--worker-startup-check-interval", "1"]
        for name, url in self.urls.items():
            port = [str(self.bootstrap_ports[name])] if name in self.bootstrap_ports else []
            command += [f"--{name.partition('-')[0]}", url, *port]
        router = Process("router", command, self._directory / "router.log")
        router.wait_until(lambda: http_ok(f"{self.router}/readiness"), START_SECONDS)
        return router

    def _stop(self) -> None:
        for process in reversed(self._engines.values()):
            process.stop()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The default model, and one whose KV caches have another layout."""
    return tiny.ensure(), make_other_model(tmp_path_factory.mktemp("models") / "other")


@pytest.fixture(scope="module")
def expected(models: tuple[str, str]) -> tuple[list[list[int]], list[list[int]]]:
    """What each of them makes of the load's texts."""
    old, new = (continue_texts(TEXTS, NEW_TOKENS, path) for path in models)
    assert all(one != other for one, other in zip(old, new, strict=True)), "or no wrong answer would be seen"
    return old, new


@pytest.fixture
def cell(tmp_path: Path, models: tuple[str, str]) -> Iterator[Cell]:
    with Cell(tmp_path, models[0]) as cell:
        yield cell


def answered(answers: Sequence[tuple[int, Answer]], tokens: list[list[int]]) -> int:
    """How many of the answers have these tokens."""
    return sum(list(answer.tokens) == tokens[number] for number, answer in answers)


@pytest.mark.timeout(600)
def test_no_answer_is_wrong_when_both_fleets_roll_to_a_model_of_another_layout(
    cell: Cell, models: tuple[str, str], expected: tuple[list[list[int]], list[list[int]]]
) -> None:
    old, new = expected
    with Load(cell.router, old) as load:
        cell.serve(models[1], "prefill-1", "decode-1")

        prefilled, decoded = cell.ask_pair("prefill-0", "decode-1")
        assert (decoded.status, decoded.error) == (503, "FingerprintMismatch")
        assert (prefilled.status, prefilled.error) == (503, "DecodeFailed")
        assert prefilled.body["error"]["cause"] == "FingerprintMismatch"

        mixed = len(load.answers)
        both = lambda: all(answered(load.answers[mixed:], model) > 4 for model in expected)  # noqa: E731
        wait_until(both, "the router finds pairs of either model", 60)
        cell.serve(models[1], "prefill-0", "decode-0")
        rolled = len(load.answers)
        wait_until(lambda: answered(load.answers[rolled:], new) > 8, "the new model alone answers", 60)
    assert load.wrong(HANGS, also=new) == []
    assert answered(load.answers[-4:], new) == 4
