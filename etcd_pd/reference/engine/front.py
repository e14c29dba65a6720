"""The HTTP front of an instance: the routes that a router and SGLang's load generator use."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware

from etcd_pd.telemetry.http_limits import BODY_BYTES
from etcd_pd.telemetry.http_server import read_body
from etcd_pd.telemetry.metrics import CONTENT_TYPE, render

from .answers import Answer, GenerateShape
from .card import ModelCard
from .dispatch import Dispatcher, Replies
from .errors import ABORTED, RequestFailed
from .metrics import families
from .openai import ChatShape, CompletionShape
from .rank_pool import RankPool
from .requests import Limits, Plan, plan_chat, plan_completion, plan_generate
from .settings import EMULATED, EngineSettings
from .text import Tokenizer

if TYPE_CHECKING:
    from .spans import RequestSpan, Spans

_log = logging.getLogger(__name__)

#: A body from here on is read, tokenised and checked beside the event loop, bytes: less takes under a millisecond.
_LARGE_BYTES = 4096
#: What a 503 says of when to come again, whole seconds.
RETRY_AFTER_SECONDS = 1
#: Longest request id that is taken up.
_MAX_REQUEST_ID = 128
#: The routes whose requests are traced.
_GENERATION = ("/generate", "/v1/completions", "/v1/chat/completions")
#: What a request keeps for its trace: its span, and the type of what went wrong.
_SPAN, _ERROR = "etcd_pd.span", "etcd_pd.error"

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Shape(Protocol):
    """How a route spells answers."""

    def whole(self, answers: Sequence[Answer]) -> Any:
        """The body of an answer that is not streamed."""

    def event(self, answer: Answer) -> Any:
        """What is sent after an update."""

    def last(self, answers: Sequence[Answer]) -> list[Any]:
        """What ends a stream."""


class Front:
    """The routes of one instance.

    Args:
        settings: the instance's.
        card: what is known about its model.
        tokenizer: the model's.
        dispatcher: knows the ranks' loads.
        pool: its ranks.
        limits: what requests are checked against.
        spans: where traces of requests go; None: nowhere.
    """

    def __init__(
        self,
        settings: EngineSettings,
        card: ModelCard,
        tokenizer: Tokenizer,
        dispatcher: Dispatcher,
        pool: RankPool,
        limits: Limits,
        spans: Spans | None = None,
    ) -> None:
        self._settings = settings
        self._card = card
        self._dispatcher = dispatcher
        self._pool = pool
        self._limits = limits
        self._tokenizer = tokenizer
        self._spans = spans
        self._emulated = settings.compute == EMULATED

    def application(self) -> web.Application:
        """The routes."""
        tracing = [_traced(self._spans)] if self._spans else []
        app = web.Application(middlewares=[*tracing, _errors_as_json, read_body], client_max_size=BODY_BYTES)
        app.add_routes(
            [
                web.get("/liveness", self._liveness),
                web.get("/health", self._health),
                web.get("/server_info", self._server_info),
                web.get("/get_server_info", self._server_info),
                web.get("/model_info", self._model_info),
                web.get("/get_model_info", self._model_info),
                web.get("/v1/models", self._models),
                web.get("/get_load", self._get_load),
                web.get("/metrics", self._metrics),
                web.post("/flush_cache", self._flush_cache),
                web.post("/generate", self._generate),
                web.post("/v1/completions", self._completions),
                web.post("/v1/chat/completions", self._chat),
            ]
        )
        return app

    # --- what the instance is

    async def _liveness(self, request: web.Request) -> web.Response:
        """Whether this process lives: it depends on neither agent nor etcd, and a restart would mend neither."""
        return web.Response(text="ok")

    async def _health(self, request: web.Request) -> web.Response:
        """Whether requests belong here: 503 without an agent, without a rank, while it drains; never for etcd alone."""
        if trouble := self._pool.trouble:
            raise trouble
        return web.Response(text="ok")

    async def _server_info(self, request: web.Request) -> web.Response:
        settings = self._settings
        return _json(
            {
                "model_path": self._card.path,
                "served_model_name": self._card.name,
                "tp_size": 1,
                "dp_size": settings.dp_size,
                "load_balance_method": settings.policy,
                "disaggregation_mode": self._limits.role,
                "max_total_num_tokens": self._card.context,
                "compute": settings.compute,
                "etcd_pd": {
                    "instance": settings.instance_id,
                    "addresses": self._limits.addresses,
                    "fingerprint": self._card.fingerprint,
                    "ranks": self._pool.describe(),
                },
            }
        )

    async def _model_info(self, request: web.Request) -> web.Response:
        return _json(
            {
                "model_path": self._card.path,
                "tokenizer_path": self._card.path,
                "is_generation": True,
                "model_type": self._card.model_type,
                "architectures": self._card.architectures,
            }
        )

    async def _models(self, request: web.Request) -> web.Response:
        model = {"id": self._card.name, "object": "model", "owned_by": "etcd_pd", "root": self._card.path}
        return _json({"object": "list", "data": [{**model, "max_model_len": self._card.context}]})

    async def _get_load(self, request: web.Request) -> web.Response:
        return _json(
            [
                {"dp_rank": dp_rank, "num_reqs": load.requests, "num_waiting_reqs": 0, "num_tokens": load.tokens}
                for dp_rank, load in enumerate(self._dispatcher.loads)
            ]
        )

    async def _metrics(self, request: web.Request) -> web.Response:
        body = render(lambda: families(self._dispatcher.served, self._dispatcher.loads))
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    async def _flush_cache(self, request: web.Request) -> web.Response:
        return web.Response(text="nothing is cached between requests\n")

    # --- generation

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        started = time.perf_counter()
        plan = await self._plan(plan_generate, request)
        return await self._serve(request, plan, GenerateShape(plan), started)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        started = time.perf_counter()
        plan = await self._plan(plan_completion, request)
        shape = CompletionShape(plan, self._card.name, f"cmpl-{uuid.uuid4().hex}")
        return await self._serve(request, plan, shape, started)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        started = time.perf_counter()
        plan = await self._plan(plan_chat, request)
        shape = ChatShape(plan, self._card.name, f"chatcmpl-{uuid.uuid4().hex}")
        return await self._serve(request, plan, shape, started)

    async def _plan(self, plan: Callable[[bytes, Tokenizer, Limits], Plan], request: web.Request) -> Plan:
        body = await request.read()
        if len(body) < _LARGE_BYTES:
            return plan(body, self._tokenizer, self._limits)
        return await asyncio.to_thread(plan, body, self._tokenizer, self._limits)

    async def _serve(self, request: web.Request, plan: Plan, shape: Shape, started: float) -> web.StreamResponse:
        ids = plan.rids or [uuid.uuid4().hex for _ in plan.items]
        answers = [
            Answer(item, id, index, self._limits.role, started, self._emulated)
            for index, (item, id) in enumerate(zip(plan.items, ids, strict=True))
        ]
        traceparent = _tell_trace(request, plan) if self._spans else ""
        async with self._pool.request(plan.items, request_id(request), traceparent) as replies:
            if plan.stream:
                return await _stream(request, shape, answers, replies)
            while not _finished(answers):
                await _next(answers, replies)
        return _json(shape.whole(answers))


def request_id(request: web.Request) -> str:
    """The router's name for a request, from ``X-Request-ID``; empty where that is missing or no word for a log."""
    given = request.headers.get("X-Request-ID", "")
    is_word = given.isascii() and given.isprintable() and " " not in given
    return given if is_word and len(given) <= _MAX_REQUEST_ID else ""


async def _stream(
    request: web.Request, shape: Shape, answers: Sequence[Answer], replies: Replies
) -> web.StreamResponse:
    """Server-sent events. Until the first token a failure still gets a status of its own."""
    answer = await _next(answers, replies)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(request)
    try:
        await response.write(_event(shape.event(answer)))
        while not _finished(answers):
            await response.write(_event(shape.event(await _next(answers, replies))))
    except RequestFailed as error:
        request[_ERROR] = error.type
        await response.write(_event(error.to_json()))
        # a stream that ends properly would count as a success
        if request.transport is not None:
            request.transport.close()
        return response
    for event in shape.last(answers):
        await response.write(_event(event))
    await response.write(b"data: [DONE]\n\n")
    return response


async def _next(answers: Sequence[Answer], replies: Replies) -> Answer:
    index, update = await replies.next()
    answers[index].add(update)
    return answers[index]


def _finished(answers: Sequence[Answer]) -> bool:
    return all(answer.finish_reason is not None for answer in answers)


def _traced(spans: Spans) -> Middleware:
    """Makes a span of each request for generation."""

    @web.middleware
    async def traced(request: web.Request, handler: _Handler) -> web.StreamResponse:
        if request.path not in _GENERATION:
            return await handler(request)
        span = request[_SPAN] = spans.request(request.method, request.path, request.headers)
        # if the handler is cancelled, the client has gone
        status, error = 499, ABORTED
        try:
            response = await handler(request)
            status, error = response.status, request.get(_ERROR, "")
            return response
        finally:
            span.end(status, error)

    return traced


def _tell_trace(request: web.Request, plan: Plan) -> str:
    """The ``traceparent`` of what ranks do for the request."""
    span: RequestSpan = request[_SPAN]
    span.tell([item.room for item in plan.items], request_id(request))
    return span.traceparent


@web.middleware
async def _errors_as_json(request: web.Request, handler: _Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except RequestFailed as error:
        request[_ERROR] = error.type
        known = (request.path, error.status, error.type, request_id(request))
        _log.debug("request failed path=%s status=%d type=%s request=%s", *known)
        # a router asks another instance at once, and a person this one again
        headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if error.status == 503 else None
        return _json(error.to_json(), error.status, headers)
    except web.HTTPException as error:
        return _json(RequestFailed(error.status, "HTTPError", error.reason).to_json(), error.status)
    except Exception:
        request[_ERROR] = "InternalError"
        _log.exception("request crashed path=%s request=%s", request.path, request_id(request))
        return _json(RequestFailed(500, "InternalError", "see the instance's log").to_json(), 500)


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json", headers=headers)


def _event(body: Any) -> bytes:
    return b"data: " + msgspec.json.encode(body) + b"\n\n"
