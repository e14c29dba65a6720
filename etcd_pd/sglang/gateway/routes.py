"""The HTTP side: SGLang's bootstrap protocol, answer for answer, and what its own server does not refuse."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from ...errors import (
    AgentBusy,
    AnnounceError,
    ConfigError,
    EtcdPDError,
    InstanceConflict,
    RankDraining,
    RegistrationError,
    RoomConflict,
)
from ...telemetry.http_limits import BOOTSTRAP_BODY_BYTES
from ...telemetry.http_server import read_body
from ...wire.limits import check_int, check_room
from ...wire.values import Rank
from ..route import is_complete, parse_row, rank_info, registered, server_info
from .health import EngineState, EngineWatch
from .metrics import GatewayMetrics
from .ranks import Contradiction, NotInEtcdYet, RankHeld, Ranks
from .rooms import Rooms

log = logging.getLogger(__name__)

#: What each refusal is over HTTP; the first that fits counts.
STATUS: tuple[tuple[type[Exception], int], ...] = (
    (ConfigError, 400),
    (Contradiction, 400),
    (RoomConflict, 409),
    (RankHeld, 409),
    (InstanceConflict, 409),
    (RankDraining, 503),
    (NotInEtcdYet, 503),
    (LookupError, 503),
    (asyncio.TimeoutError, 503),
    (AgentBusy, 503),
    (RegistrationError, 503),
    (AnnounceError, 503),
    (EtcdPDError, 503),
)

#: SGLang's own words for two contradictions, by the field.
_SGLANG_TEXT = {
    "dsv41_spec_layout": "DeepSeek-V4.1 DSpark PD layout differs across prefill ranks",
    "decode_allocation_policy": "Inconsistent prefill allocation policies",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(
    ranks: Ranks, rooms: Rooms, engine: EngineWatch, token: str, *, open_reads: bool = False
) -> web.Application:
    """The application; where a token is set, every request but ``/health`` needs it, or only those that write."""
    routes, metrics = Routes(ranks, rooms, engine), GatewayMetrics(ranks, engine)
    steps = [metrics.count, _authorised(token, open_reads), _refusals, read_body]
    app = web.Application(middlewares=steps, client_max_size=BOOTSTRAP_BODY_BYTES)
    app.router.add_route("*", "/route", routes.route)
    app.router.add_post("/register_dp_rank", routes.register)
    app.router.add_post("/query_dp_ranks", routes.query)
    app.router.add_get("/health", routes.health)
    app.router.add_get("/metrics", metrics.answer)
    return app


class Routes:
    """The handlers."""

    def __init__(self, ranks: Ranks, rooms: Rooms, engine: EngineWatch) -> None:
        self._ranks, self._rooms, self._engine = ranks, rooms, engine

    async def route(self, request: web.Request) -> web.Response:
        """``PUT /route``: a rank registers. ``GET /route``: decode asks for the topology, or for one rank."""
        if request.method == "PUT":
            return await self._put(request)
        if request.method == "GET":
            return self._get(request)
        return web.Response(text="Method not allowed", status=405, content_type="application/json")

    async def register(self, request: web.Request) -> web.Response:
        """``POST /register_dp_rank``: a rank took a room."""
        data = await _body(request)
        room = check_room(_integer(data, "bootstrap_room"))
        instance = self._ranks.instance()
        sizes = instance.info.topology.dp if instance else 4096
        dp_rank = check_int("dp_rank", _integer(data, "dp_rank"), 0, sizes - 1)
        await self._rooms.register(room, dp_rank)
        return web.Response(text="OK")

    async def query(self, request: web.Request) -> web.Response:
        """``POST /query_dp_ranks``: which ranks own these rooms; ``?wait=SECONDS`` waits for those that are missing."""
        data = await _body(request)
        asked = data.get("bootstrap_rooms")
        if not isinstance(asked, list):
            raise ConfigError("bootstrap_rooms", "must be a list of bootstrap rooms")
        rooms = [check_room(_integer({"bootstrap_rooms": room}, "bootstrap_rooms")) for room in asked]
        found = await self._rooms.query(rooms, _seconds(request.query.get("wait", "0")))
        return web.json_response({str(room): dp_rank for room, dp_rank in found.items()})

    async def health(self, request: web.Request) -> web.Response:
        """``GET /health``: 200 unless the engine is known to be dead, for decode's heartbeat."""
        if self._engine.state is EngineState.DOWN:
            return web.Response(text="the engine does not answer", status=503)
        return web.Response(text="OK")

    async def _put(self, request: web.Request) -> web.Response:
        try:
            await self._ranks.put(parse_row(await _body(request)))
        except Contradiction as exc:
            return web.Response(text=_SGLANG_TEXT.get(exc.field, str(exc)), status=400)
        self._engine.registered()
        return web.Response(text="OK")

    def _get(self, request: web.Request) -> web.Response:
        names = ("prefill_dp_rank", "prefill_cp_rank", "target_tp_rank", "target_pp_rank")
        asked = [request.query.get(name) for name in names]
        if not all(asked):
            return web.Response(text="Missing inputs for bootstrap server.", status=400)
        dp, cp, tp, pp = [_integer(request.query, name) for name in names]
        instance = self._ranks.instance()
        if instance is None or not is_complete(instance):
            count = registered(instance)
            text = f"Prefill server not fully registered yet ({count} workers registered)."
            return web.Response(text=text, status=503)
        if (dp, cp, tp, pp) == (-1, -1, -1, -1):
            return web.json_response(server_info(instance))
        found = rank_info(instance, Rank(dp, cp, tp, pp))
        if found is None:
            text = f"Bootstrap info not found for dp_rank={dp} cp_rank={cp} tp_rank={tp} pp_rank={pp}"
            return web.Response(text=text, status=404)
        return web.json_response(found)


async def _body(request: web.Request) -> dict[str, Any]:
    try:
        data = json.loads(await request.read())
    except (ValueError, RecursionError):
        raise ConfigError("body", "must be JSON") from None
    if not isinstance(data, dict):
        raise ConfigError("body", "must be a JSON object")
    return data


def _integer(data: Any, name: str) -> int:
    """An integer, also spelled as a string, which SGLang's server takes too."""
    value = data.get(name)
    try:
        if value is None or isinstance(value, (bool, float)):
            raise ValueError
        return int(value)
    except (TypeError, ValueError):
        raise ConfigError(name, f"must be an integer, not {value!r:.80}") from None


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:  # also not a number
        raise ConfigError("wait", "must be a number of seconds")
    return seconds


def _authorised(token: str, open_reads: bool) -> Any:
    def is_open(request: web.Request) -> bool:
        reads = request.method == "GET" or request.path == "/query_dp_ranks"
        return not token or request.path == "/health" or (open_reads and reads)

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "")
        presented = given.encode(errors="surrogateescape")  # as aiohttp decodes what is no UTF-8
        if not is_open(request) and not hmac.compare_digest(presented, f"Bearer {token}".encode()):
            return web.Response(text="a bearer token is needed", status=401, headers={"WWW-Authenticate": "Bearer"})
        return await handler(request)

    return check


@web.middleware
async def _refusals(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException:
        raise
    except Exception as exc:
        status = next((status for kind, status in STATUS if isinstance(exc, kind)), None)
        if status is None:
            raise
        log.log(logging.INFO if status < 500 else logging.WARNING, "%s %s: %s", request.method, request.path, exc)
        return web.Response(text=str(exc) or type(exc).__name__, status=status)
