"""One request through the real router, agents and etcd is one trace."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import pytest

from tests.e2e.running import RunningStack, generation, post
from tests.support.otlp import Seen, collector
from tests.support.waiting import wait_until

#: By service, the spans of a request.
STEPS = {
    "etcd-pd-prefill": {"POST /generate", "register", "prefill"},
    "etcd-pd-decode": {"POST /generate", "resolve", "kv_transfer", "decode"},
}
COUNT = sum(map(len, STEPS.values()))
PROMPT = "Nobody but the model may read this."


def test_one_request_is_one_trace_over_router_prefill_and_decode(
    start_stack: Callable[..., RunningStack], monkeypatch: pytest.MonkeyPatch
) -> None:
    trace, caller = secrets.token_hex(16), secrets.token_hex(8)
    with collector() as collected:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collected.endpoint)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        stack = start_stack()
        headers = {"traceparent": f"00-{trace}-{caller}-01", "X-Request-ID": "req-traced"}
        told = post(f"{stack.router}/generate", generation(PROMPT), headers).told
        wait_until(lambda: len(collected.spans) >= COUNT, "the spans of the request", 30)
        assert stack.stop() == 0, stack.output.read_text()
        spans = collected.spans
    assert {span.trace for span in spans} == {trace} and len(spans) == COUNT
    assert not any(span.failed for span in spans)
    assert {service: {span.name for span in spans if span.service == service} for service in STEPS} == STEPS
    requests, steps = split(spans)
    for span in requests:
        assert span.parent == caller
        assert span.attributes["etcd_pd.rooms"] == [str(told["bootstrap_room"])]
        assert (span.attributes["etcd_pd.request_id"], span.attributes["http.response.status_code"]) == (
            "req-traced",
            200,
        )
    for span in steps:
        (above,) = [request for request in requests if request.service == span.service]
        assert span.parent == above.id
        for name, expected in (
            ("room", told["bootstrap_room"]),
            ("instance", "prefill-0"),
            ("dp_rank", told["dp_rank"]),
        ):
            assert span.attributes[f"etcd_pd.{name}"] == expected, span
        if span.name != "prefill":
            assert span.attributes["etcd_pd.revision"] == told["revision"], span
        assert span.start_ns <= span.end_ns
    processes = {span.process for span in steps}
    assert f"prefill-0/dp{told['dp_rank']}" in processes and len(processes) == 2
    assert not any(PROMPT.encode() in body for body in collected.bodies)


def split(spans: list[Seen]) -> tuple[list[Seen], list[Seen]]:
    """The HTTP requests, and the steps of ranks."""
    requests = [span for span in spans if span.name.startswith("POST ")]
    return requests, [span for span in spans if span not in requests]
