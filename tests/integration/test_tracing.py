"""Instances that trace, where the usual does not hold: no router's trace, no collector. The usual is in tests/e2e."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.otlp import collector
from tests.support.ports import free_port
from tests.unit.reference.engine.conftest import model_path
from tests.unit.reference.engine.instance import InstanceProcess

__all__ = ["model_path"]

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]
BODY = {
    "text": "who follows",
    "sampling_params": {"max_new_tokens": 3},
}


def pair(directory: Path, model_path: str) -> tuple[InstanceProcess, InstanceProcess]:
    """A prefill instance of two ranks, whose rooms are registered, and a decode instance."""
    settings = {"model_path": model_path, "compute": "emulated"}
    return (
        InstanceProcess("prefill", directory, dp_size=2, **settings),
        InstanceProcess("decode", directory, **settings),
    )


def ask(body: dict[str, Any], *instances: InstanceProcess) -> list[int]:
    """The statuses of what they answer to a request, sent to all at once, without any trace."""

    async def post(session: aiohttp.ClientSession, instance: InstanceProcess) -> int:
        async with session.post(f"{instance.url}/generate", json=body) as response:
            await response.read()
            return response.status

    async def run() -> list[int]:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
            return list(await asyncio.gather(*(post(session, instance) for instance in instances)))

    return asyncio.run(run())


def test_each_side_starts_a_trace_with_its_failures_when_the_router_has_none(
    tmp_path: Path, model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collector() as collected:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collected.endpoint)
        prefill, decode = pair(tmp_path, model_path)
        with prefill, decode:
            assert ask({**BODY, **prefill.address, "bootstrap_room": 7}, prefill, decode) == [200, 200]
            assert ask({**BODY, **prefill.address, "bootstrap_room": -1}, decode) == [400]
        # what had not been exported yet is when they end
        spans = collected.spans
    good = [
        span for span in spans if span.attributes.get("etcd_pd.room", 7) == 7 and not span.attributes.get("error.type")
    ]
    traces = {span.service: {other.trace for other in good if other.service == span.service} for span in good}
    assert {service: len(ids) for service, ids in traces.items()} == {"etcd-pd-prefill": 1, "etcd-pd-decode": 1}
    assert traces["etcd-pd-prefill"] != traces["etcd-pd-decode"]
    assert sorted(span.name for span in good if not span.parent) == ["POST /generate"] * 2
    assert len(good) == 7
    (refused,) = [span for span in spans if span not in good]
    assert refused.attributes["error.type"] == "BadRequest" and not refused.failed
    for instance in (prefill, decode):
        assert "Traceback" not in instance.log


def test_a_collector_that_is_gone_costs_no_answer_and_no_end(
    tmp_path: Path, model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    prefill, decode = pair(tmp_path, model_path)
    with prefill, decode:
        assert ask({**BODY, **prefill.address, "bootstrap_room": 7}, prefill, decode) == [200, 200]
        assert [instance.stop(signal.SIGTERM) for instance in (prefill, decode)] == [0, 0]


def test_the_console_gets_a_span_a_line(tmp_path: Path, model_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    prefill, decode = pair(tmp_path, model_path)
    with decode:
        assert ask({**BODY, **prefill.address, "bootstrap_room": -1}, decode) == [400]
    (line,) = [line for line in decode.log.splitlines() if line.startswith("{")]
    assert json.loads(line)["name"] == "POST /generate"
