"""What the gateway counts: requests by route and status, and how long they took."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

from aiohttp import web

from ...telemetry.metrics import (
    CONTENT_TYPE,
    Histogram,
    Metric,
    counters_by,
    gauge,
    histograms,
    latencies,
    render,
    state,
)
from .health import EngineState, EngineWatch
from .ranks import Ranks

#: Whatever else strangers ask, by path or method, is no label of its own.
METHODS = ("GET", "POST", "PUT")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class GatewayMetrics:
    """Counts requests, and answers ``GET /metrics``.

    Args:
        ranks, engine: what else is shown.
    """

    def __init__(self, ranks: Ranks, engine: EngineWatch) -> None:
        self._ranks, self._engine = ranks, engine
        self._requests: Counter[tuple[str, ...]] = Counter()
        self._seconds: dict[str, Histogram] = {}

    @web.middleware
    async def count(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Middleware: count a request when it is answered."""
        resource = request.match_info.route.resource
        route = f"{request.method} {resource.canonical}" if resource and request.method in METHODS else "other"
        started, code = time.monotonic(), "500"
        try:
            response = await handler(request)
            code = str(response.status)
            return response
        except web.HTTPException as exc:
            code = str(exc.status)
            raise
        finally:
            self._requests[route, code] += 1
            self._seconds.setdefault(route, latencies()).observe(time.monotonic() - started)

    async def answer(self, request: web.Request) -> web.Response:
        """``GET /metrics``."""
        return web.Response(body=render(self.families), headers={"Content-Type": CONTENT_TYPE})

    def families(self) -> Iterator[Metric]:
        """Every metric of a gateway."""
        name = "etcd_pd_gateway_requests_total"
        yield counters_by(name, "Requests answered, by route and status.", ["route", "code"], self._requests)
        yield histograms("etcd_pd_gateway_request_seconds", "Time of requests, by route.", "route", self._seconds)
        states = [one.name.lower() for one in EngineState]
        yield state(
            "etcd_pd_gateway_engine_state", "What is known of the engine.", self._engine.state.name.lower(), states
        )
        yield gauge("etcd_pd_gateway_ranks", "Rank processes that the engine registered here.", len(self._ranks))
