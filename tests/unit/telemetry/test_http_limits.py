"""Every HTTP listener ends slow and huge clients, within the same limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from aiohttp import web

from etcd_pd.reference.engine.front import Front
from etcd_pd.reference.engine.settings import DecodeSettings
from etcd_pd.sglang.gateway.routes import make_app
from etcd_pd.telemetry import http as plain_http, http_limits
from etcd_pd.telemetry.http_server import make_runner

pytestmark = pytest.mark.asyncio
NOTHING = cast(Any, None)
#: How long a test waits for what the limits, which are short here, must bring.
PATIENCE = 10.0


@pytest.fixture(autouse=True)
def _short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IDLE_SECONDS", "REQUEST_SECONDS"):
        monkeypatch.setattr(http_limits, name, 0.3)


@asynccontextmanager
async def serving(application: web.Application) -> AsyncIterator[int]:
    runner = make_runner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield runner.addresses[0][1]
    await runner.cleanup()


@asynccontextmanager
async def engine() -> AsyncIterator[int]:
    front = Front(DecodeSettings(), NOTHING, NOTHING, NOTHING, NOTHING, NOTHING)
    async with serving(front.application()) as port:
        yield port


@asynccontextmanager
async def gateway() -> AsyncIterator[int]:
    async with serving(make_app(NOTHING, NOTHING, NOTHING, "")) as port:
        yield port


@asynccontextmanager
async def page() -> AsyncIterator[int]:
    """What answers a scrape, and serves the dashboard."""
    server = await plain_http.serve("127.0.0.1", 0, {"/": lambda: plain_http.Answer("text/plain", b"x" * 100)})
    yield server.sockets[0].getsockname()[1]
    server.close()


Listener = Callable[[], Any]
EVERY = pytest.mark.parametrize("listener", [engine, gateway, page])
TAKES_BODIES = pytest.mark.parametrize(("listener", "path"), [(engine, "/generate"), (gateway, "/query_dp_ranks")])


async def say(port: int, data: bytes) -> bytes:
    """All that is answered until the listener closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.read(), PATIENCE)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


@EVERY
async def test_a_connection_is_closed_when_its_header_does_not_come(listener: Listener) -> None:
    async with listener() as port:
        assert not (await say(port, b"")).startswith(b"HTTP/1.1 200")
        assert not (await say(port, b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow")).startswith(b"HTTP/1.1 200")


@EVERY
async def test_a_connection_is_closed_when_its_header_is_huge(listener: Listener) -> None:
    async with listener() as port:
        huge = b"GET / HTTP/1.1\r\nHost: x\r\nX-Huge: " + b"x" * 3 * http_limits.HEADER_BYTES + b"\r\n\r\n"
        assert not (await say(port, huge)).startswith(b"HTTP/1.1 200")


@TAKES_BODIES
async def test_a_request_is_ended_when_its_body_does_not_come(listener: Listener, path: str) -> None:
    async with listener() as port:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
        assert (await say(port, head.encode() + b"{")).startswith(b"HTTP/1.1 408 ")


@TAKES_BODIES
async def test_a_request_is_refused_when_its_body_is_huge(listener: Listener, path: str) -> None:
    size = http_limits.BODY_BYTES + 1
    async with listener() as port:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"
        answer = await say(port, head.encode() + b"x" * size)
        assert answer.startswith(b"HTTP/1.1 413 ") or answer == b"", answer[:80]


@TAKES_BODIES
async def test_no_crash_is_logged_when_a_client_goes_amid_its_body(
    listener: Listener, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with listener() as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
        await writer.drain()
        await asyncio.sleep(0.1)  # so that the request is being read
        writer.close()
        await asyncio.sleep(0.1)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
