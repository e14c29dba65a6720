"""When an engine traces, and what its spans say."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from etcd_pd.reference.engine import tracing
from etcd_pd.reference.engine.spans import Spans
from tests.unit.reference.engine.test_loops import Bench, bench

__all__ = ["bench"]

TRACE, ROUTER = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7
TRACEPARENT = f"00-{TRACE:032x}-{ROUTER:016x}-01"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests' own environment says of OpenTelemetry does not count."""
    for name in ("OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER", "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(name, raising=False)
    for name in (*tracing._ENDPOINTS, *tracing._PROTOCOLS):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def traced() -> tuple[Spans, Callable[[], list[ReadableSpan]]]:
    """Spans, and what closes them and returns what was exported."""
    exporter = InMemorySpanExporter()
    spans = Spans([exporter], "etcd-pd-prefill", "p/dp0")

    def exported() -> list[ReadableSpan]:
        spans.close()
        return list(exporter.get_finished_spans())

    return spans, exported


Traced = tuple[Spans, Callable[[], list[ReadableSpan]]]
AT_HOME = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.mark.parametrize(
    ("environ", "exporters"),
    [
        ({}, []),
        (AT_HOME, ["otlp"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, ["otlp"]),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, ["otlp"]),
        ({"OTEL_TRACES_EXPORTER": "console"}, ["console"]),
        ({"OTEL_TRACES_EXPORTER": "console, otlp"}, ["otlp", "console"]),
        ({**AT_HOME, "OTEL_TRACES_EXPORTER": "none"}, []),
        ({**AT_HOME, "OTEL_SDK_DISABLED": "True"}, []),
        ({**AT_HOME, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, ["otlp"]),
        ({**AT_HOME, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, []),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, []),
    ],
)
def test_the_environment_says_where_spans_go(environ: dict[str, str], exporters: list[str]) -> None:
    assert tracing.wanted_exporters(environ) == exporters


def test_what_cannot_be_had_is_said(caplog: pytest.LogCaptureFixture) -> None:
    tracing.wanted_exporters({"OTEL_TRACES_EXPORTER": "zipkin"})
    tracing.wanted_exporters({**AT_HOME, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    assert "no such exporter of traces name='zipkin'" in caplog.text
    assert "the protocol must be http/protobuf, not 'grpc'" in caplog.text


def test_without_the_extra_an_engine_says_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert tracing.start("prefill", "p") is None
    assert caplog.text == ""
    monkeypatch.setitem(sys.modules, "etcd_pd.reference.engine.spans", None)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    assert tracing.start("prefill", "p") is None
    assert "pip install 'etcd-pd[tracing]'" in caplog.text


def test_a_variable_that_the_sdk_refuses_does_not_stop_an_engine(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "-1")
    assert tracing.start("prefill", "p") is None
    assert "no tracing" in caplog.text


def test_off_loads_nothing() -> None:
    program = (
        "import sys; from etcd_pd.reference.engine import tracing; assert tracing.start('prefill', 'p') is None\n"
        "print(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "False"


def test_a_process_names_itself_unless_the_environment_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")

    def resource() -> dict[str, object]:
        spans = tracing.start("decode", "d", 3)
        assert spans is not None
        spans.close()
        return dict(spans._provider.resource.attributes)

    found = resource()
    assert (found["service.name"], found["service.instance.id"]) == ("etcd-pd-decode", "d/dp3")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "llm")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    found = resource()
    assert (found["service.name"], found["service.instance.id"]) == ("llm", "d/dp3")
    assert found["deployment.environment.name"] == "test"


def test_a_request_s_span_continues_the_router_s_trace(traced: Traced) -> None:
    spans, exported = traced
    span = spans.request("POST", "/generate", {"traceparent": TRACEPARENT, "authorization": "Bearer secret"})
    span.tell([7, 2**64 - 1], "req-1")
    span.end(200, "")
    (found,) = exported()
    assert found.context is not None and found.parent is not None and found.attributes is not None
    assert (found.context.trace_id, found.parent.span_id, found.kind) == (TRACE, ROUTER, SpanKind.SERVER)
    assert span.traceparent == f"00-{TRACE:032x}-{found.context.span_id:016x}-01"
    assert dict(found.attributes) == {
        "http.request.method": "POST",
        "http.route": "/generate",
        "http.response.status_code": 200,
        "etcd_pd.rooms": ("7", str(2**64 - 1)),
        "etcd_pd.request_id": "req-1",
    }


@pytest.mark.parametrize("headers", [{}, {"traceparent": "garbage"}, {"traceparent": f"00-{0:032x}-{0:016x}-01"}])
def test_a_request_without_a_trace_starts_one(traced: Traced, headers: dict[str, str]) -> None:
    spans, exported = traced
    spans.request("POST", "/generate", headers).end(200, "")
    (found,) = exported()
    assert found.parent is None and found.context is not None and found.context.trace_id != 0


def test_what_the_router_does_not_sample_is_not_exported(traced: Traced, bench: Bench) -> None:
    spans, exported = traced
    span = spans.request("POST", "/generate", {"traceparent": TRACEPARENT[:-2] + "00"})
    assert span.traceparent.endswith("-00")
    spans.record("resolve", bench.work(1, traceparent=span.traceparent), 0)
    span.end(200, "")
    assert exported() == []


@pytest.mark.parametrize(
    ("status", "error", "told"),
    [
        (200, "", StatusCode.UNSET),
        (400, "BadRequest", StatusCode.UNSET),
        (499, "Aborted", StatusCode.UNSET),
        (504, "KVTimeout", StatusCode.ERROR),
        (200, "RankDied", StatusCode.ERROR),
    ],
)
def test_a_server_s_own_failures_are_errors(traced: Traced, status: int, error: str, told: StatusCode) -> None:
    spans, exported = traced
    spans.request("POST", "/generate", {}).end(status, error)
    (found,) = exported()
    assert found.status.status_code is told
    assert (found.attributes or {}).get("error.type", "") == error


def by_name(spans: list[ReadableSpan]) -> dict[str, ReadableSpan]:
    """Spans, each of which is there once."""
    named = {span.name: span for span in spans}
    assert len(named) == len(spans)
    return named


def test_the_steps_of_a_request_on_both_sides(traced: Traced, bench: Bench) -> None:
    bench.spans, exported = traced
    began_ns = time.time_ns()
    (prefill, said_prefill), (decode, said_decode) = bench.prefill(dp_rank=1), bench.decode()
    work = bench.work(5, traceparent=TRACEPARENT)
    prefill.accept(work)
    decode.accept(work)
    bench.until(lambda: said_decode.ended(work.id) and said_prefill.ended(work.id))
    found = by_name(exported())
    assert set(found) == {"register", "prefill", "resolve", "kv_transfer", "decode"}
    place = {"etcd_pd.room": 5, "etcd_pd.instance": "p", "etcd_pd.dp_rank": 1}
    revision = {"etcd_pd.revision": said_decode.meta(work.id)["revision"]}
    assert {name: dict(span.attributes or {}) for name, span in found.items()} == {
        "register": place | revision,
        "prefill": place | {"etcd_pd.tokens": 20},
        "resolve": place | revision | {"etcd_pd.source": "registry"},
        "kv_transfer": place | revision | {"etcd_pd.kv_bytes": said_decode.meta(work.id)["kv_bytes"]},
        "decode": place | revision | {"etcd_pd.tokens": 6},
    }
    for span in found.values():
        assert span.context is not None and span.parent is not None
        assert (span.context.trace_id, span.parent.span_id) == (TRACE, ROUTER)
        assert span.status.status_code is StatusCode.UNSET
    times = [
        (span.start_time or 0, span.end_time or 0)
        for span in map(found.__getitem__, ("resolve", "kv_transfer", "decode"))
    ]
    assert all(began_ns <= start <= end <= time.time_ns() for start, end in times)
    # each record looks at both clocks anew, so only the order of what really lies apart can be told
    assert times[0][0] < times[1][1] < times[2][1]


def test_a_room_that_is_taken_ends_its_registration(traced: Traced, bench: Bench) -> None:
    bench.spans, exported = traced
    (first, _), (second, said) = bench.prefill(), bench.prefill(dp_rank=1)
    first.accept(bench.work(5))
    work = bench.work(5, traceparent=TRACEPARENT)
    second.accept(work)
    bench.until(lambda: said.ended(work.id))
    (failed,) = [span for span in exported() if span.status.status_code is StatusCode.ERROR]
    assert failed.name == "register"
    assert (failed.attributes or {})["error.type"] == "RoomConflict"


@pytest.mark.parametrize("assigned", [False, True])
def test_a_request_that_is_given_up_fails_the_step_that_it_is_at(traced: Traced, bench: Bench, assigned: bool) -> None:
    bench.spans, exported = traced
    decode, said = bench.decode()
    work = bench.work(5, traceparent=TRACEPARENT)
    if assigned:
        prefill, _ = bench.prefill(max_held_tokens=1)
        held = bench.work(6, tokens=30)
        prefill.accept(held)
        bench.until(lambda: prefill._held_tokens)
        prefill.accept(work)
    decode.accept(work)
    if assigned:
        bench.until(lambda: decode._tasks[work.id].peer)
    decode.abort(work.id, "the client has gone")
    assert said.ended(work.id)
    failed = by_name([span for span in exported() if span.status.status_code is StatusCode.ERROR])
    assert set(failed) == ({"kv_transfer"} if assigned else {"resolve"})
    (span,) = failed.values()
    assert (span.attributes or {})["error.type"] == "Aborted"


def test_waiting_for_a_place_in_the_batch_is_no_step(traced: Traced, bench: Bench) -> None:
    bench.spans, exported = traced
    (prefill, _), (decode, said) = bench.prefill(), bench.decode(max_batch=1)
    first, second = bench.work(5), bench.work(6)
    decode.accept(first)
    decode.accept(second)
    prefill.registry.prefill.register(5)
    bench.until(lambda: decode._tasks[first.id].peer)
    prefill.registry.prefill.register(6)
    bench.until(lambda: decode._tasks[second.id].assignment)
    decode.abort(second.id, "the client has gone")
    assert said.ended(second.id)
    spans = [span for span in exported() if (span.attributes or {})["etcd_pd.room"] == 6]
    assert [(span.name, span.status.status_code) for span in spans] == [("resolve", StatusCode.UNSET)]
