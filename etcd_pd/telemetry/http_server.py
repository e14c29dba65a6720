"""An aiohttp listener within the common limits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from . import http_limits


@web.middleware
async def read_body(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Have all of the body before the handler begins; ``request.read()`` then gives it at once.

    Raises:
        web.HTTPRequestTimeout: it took too long.
        web.HTTPBadRequest: it broke off, mostly since its client has gone.
        web.HTTPRequestEntityTooLarge: it is larger than the application's ``client_max_size``.
    """
    if request.can_read_body:
        try:
            await asyncio.wait_for(request.read(), http_limits.REQUEST_SECONDS)
        except asyncio.TimeoutError:
            raise web.HTTPRequestTimeout(headers={"Connection": "close"}) from None
        except (ConnectionError, web.RequestPayloadError):
            raise web.HTTPBadRequest(reason="the body broke off") from None
    return await handler(request)


def make_runner(application: web.Application, **more: Any) -> web.AppRunner:
    """A runner whose connections may be silent, and their headers long, as far as the limits go."""
    return web.AppRunner(
        application,
        access_log=None,
        keepalive_timeout=http_limits.IDLE_SECONDS,
        max_line_size=http_limits.HEADER_BYTES,
        max_field_size=http_limits.HEADER_BYTES,
        max_headers=http_limits.MOST_HEADERS,
        lingering_time=http_limits.LINGER_SECONDS,
        **more,
    )
