"""The spans of one engine process, and their way out through OpenTelemetry's SDK.

The front makes a span of each HTTP request, a child of the ``traceparent`` header that a router forwards, and hands a
``traceparent`` of its own to the rank with the request. A rank's loop is busy with many requests at once, so it enters
no context: when a step of a request has ended, it says when that step began. Nothing here is registered globally.

Prompts, tokens and texts are never attributes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from etcd_pd import __version__

from .messages import Work

#: How long, in seconds, the end of a process may wait for its last spans to be taken; a collector may be gone.
_CLOSE_SECONDS = 2.0
_TRACE_CONTEXT = TraceContextTextMapPropagator()


class RequestSpan:
    """An HTTP request that is being served.

    Attributes:
        traceparent: for the spans below it.
    """

    def __init__(self, span: Span) -> None:
        self._span = span
        carrier: dict[str, str] = {}
        _TRACE_CONTEXT.inject(carrier, set_span_in_context(span))
        self.traceparent = carrier["traceparent"]

    def tell(self, rooms: Sequence[int], request_id: str) -> None:
        """What was found in the request: its bootstrap rooms, and the router's name for it, if it gave one."""
        self._span.set_attribute("etcd_pd.rooms", [str(room) for room in rooms])
        if request_id:
            self._span.set_attribute("etcd_pd.request_id", request_id)

    def end(self, status: int, error: str) -> None:
        """It was answered with this status; ``error``: the type of what went wrong, or empty."""
        self._span.set_attribute("http.response.status_code", status)
        # what the client did wrong is no error of a server's span; a stream that broke off is one, whatever its status
        _finish(self._span, error, failed=bool(error) and not 400 <= status < 500)


class Spans:
    """Records and exports spans.

    Args:
        exporters: where to.
        service: ``service.name``, unless the environment names the service.
        process: ``service.instance.id``, unless the environment gives one.
    """

    def __init__(self, exporters: Sequence[SpanExporter], service: str, process: str) -> None:
        named = OTELResourceDetector().detect().attributes
        resource = Resource.create({"service.name": service, "service.instance.id": process, **named})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        for one in exporters:
            self._provider.add_span_processor(BatchSpanProcessor(one))
        self._tracer = self._provider.get_tracer("etcd_pd.reference.engine", __version__)

    def request(self, method: str, route: str, headers: Mapping[str, str]) -> RequestSpan:
        """An HTTP request has come in; without a valid ``traceparent`` among its headers it starts a trace."""
        span = self._tracer.start_span(
            f"{method} {route}",
            _TRACE_CONTEXT.extract(headers),
            SpanKind.SERVER,
            {"http.request.method": method, "http.route": route},
        )
        return RequestSpan(span)

    def record(self, step: str, work: Work, began_ns: int, error: str = "", **facts: int | str) -> None:
        """A step of a request has ended just now.

        Args:
            step: what was done, the span's name.
            work: the request.
            began_ns: ``time.monotonic_ns()`` when the step began.
            error: the type of what ended it without a result, or empty.
            facts: attributes, without their prefix.
        """
        ended_ns, now_ns = time.monotonic_ns(), time.time_ns()
        attributes = {f"etcd_pd.{name}": value for name, value in facts.items()}
        span = self._tracer.start_span(
            step,
            _TRACE_CONTEXT.extract({"traceparent": work.traceparent}),
            attributes={"etcd_pd.room": work.room, **attributes},
            start_time=now_ns - (ended_ns - began_ns),
        )
        _finish(span, error, failed=bool(error), end_time=now_ns)

    def close(self) -> None:
        """Export what is left, as far as it is taken soon."""
        closing = threading.Thread(target=self._provider.shutdown, name="close-spans", daemon=True)
        closing.start()
        closing.join(_CLOSE_SECONDS)


def exporter(over_otlp: bool) -> SpanExporter:
    """To a collector over OTLP, or else to the console; the environment says the rest of it.

    Raises:
        ImportError: OTLP's is not installed.
        ValueError: a variable has a value that the SDK does not take.
    """
    if over_otlp:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter()
    return ConsoleSpanExporter(formatter=_line)


def _line(span: ReadableSpan) -> str:
    return f"{span.to_json(indent=None)}\n"


def _finish(span: Span, error: str, failed: bool, end_time: int | None = None) -> None:
    if error:
        span.set_attribute("error.type", error)
    if failed:
        span.set_status(StatusCode.ERROR)
    span.end(end_time)
