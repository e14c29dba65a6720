"""A stand-in for an OpenTelemetry collector: takes OTLP over HTTP on loopback, and keeps the spans."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

Value = str | int | list[str]


@dataclass(frozen=True)
class Seen:
    """A span as it arrived.

    Attributes:
        name: its name.
        trace: trace id, in hex as a ``traceparent`` has it.
        id: its own id, in hex.
        parent: its parent's id, in hex; empty for a root.
        service: ``service.name`` of who sent it.
        process: ``service.instance.id`` of who sent it.
        attributes: its attributes.
        start_ns, end_ns: wall time in nanoseconds.
        failed: whether its status is an error.
    """

    name: str
    trace: str
    id: str
    parent: str
    service: str
    process: str
    attributes: dict[str, Value]
    start_ns: int
    end_ns: int
    failed: bool


class Collector:
    """What has arrived so far.

    Attributes:
        endpoint: for ``OTEL_EXPORTER_OTLP_ENDPOINT``.
        bodies: the requests' bodies, as they came.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.bodies: list[bytes] = []

    @property
    def spans(self) -> list[Seen]:
        """Every span."""
        return [seen for body in list(self.bodies) for seen in _spans(ExportTraceServiceRequest.FromString(body))]


@contextmanager
def collector() -> Iterator[Collector]:
    """A collector on a free port of loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            known = self.path == "/v1/traces" and self.headers["Content-Type"] == "application/x-protobuf"
            if known:
                found.bodies.append(body)
            self.send_response(200 if known else 404)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found = Collector(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, name="collector")
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()


def _spans(request: ExportTraceServiceRequest) -> Iterator[Seen]:
    for resource in request.resource_spans:
        sender = _attributes(resource.resource.attributes)
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield _seen(span, str(sender["service.name"]), str(sender["service.instance.id"]))


def _seen(span: Span, service: str, process: str) -> Seen:
    return Seen(
        name=span.name,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        service=service,
        process=process,
        attributes=_attributes(span.attributes),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        failed=span.status.code == Status.STATUS_CODE_ERROR,
    )


def _attributes(given: Iterable[KeyValue]) -> dict[str, Value]:
    return {one.key: _value(one.value) for one in given}


def _value(value: AnyValue) -> Value:
    if value.HasField("int_value"):
        return value.int_value
    if value.HasField("array_value"):
        return [one.string_value for one in value.array_value.values]
    return value.string_value
